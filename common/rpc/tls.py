"""TLS of both ends: credentials from PEM files, read again when the files change.

A server presents a renewed certificate, and trusts a changed list of client CAs, from the next handshake on; open
connections live on (who they are is checked with every call). Knows nothing of what a certificate says.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import grpc
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from common.certificates import parse_authorities, parse_certificates
from common.errors import ConfigInvalid, InvalidArgument
from common.log import get_logger

log: Final = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServerTls:
    """Where a listener's PEM files lie: its chain (leaf first), its key, and the CAs whose clients it accepts.

    authority_folders: folders whose *.pem files hold further client CAs; they may be missing or empty.
    """

    certificate: Path
    key: Path
    client_authorities: tuple[Path, ...] = ()
    authority_folders: tuple[Path, ...] = ()


def mutual_tls(files: ServerTls) -> grpc.ServerCredentials:
    """Credentials of a listener that shakes no hand without a client certificate of one of `client_authorities`.

    Raises ConfigInvalid if a file is missing, broken, or the key is not the certificate's.
    """
    if not files.client_authorities:
        raise ConfigInvalid("a listener with client certificates needs at least one file of client CAs")
    return _reloading(files, require_client_certificate=True)


def server_tls(files: ServerTls) -> grpc.ServerCredentials:
    """Credentials of the enrolment listener: encrypted, the server proves who it is, the client shows nothing.

    Raises ConfigInvalid as `mutual_tls` does.
    """
    if files.client_authorities or files.authority_folders:
        raise ConfigInvalid("a listener without client certificates has no client CAs")
    return _reloading(files, require_client_certificate=False)


def channel_credentials(
    *, trust_bundle: bytes, certificate_chain: bytes | None = None, key: bytes | None = None
) -> grpc.ChannelCredentials:
    """A client's credentials from PEM. There is no reloading on this end: make a new channel after a renewal."""
    return grpc.ssl_channel_credentials(
        root_certificates=trust_bundle, private_key=key, certificate_chain=certificate_chain
    )


def _reloading(files: ServerTls, *, require_client_certificate: bool) -> grpc.ServerCredentials:
    reader = _ReloadingFiles(files)
    return grpc.dynamic_ssl_server_credentials(
        reader.first(),
        # The library takes None for "no change"; the stubs leave that out.
        cast("Callable[[], grpc.ServerCertificateConfiguration]", reader.changed),
        require_client_authentication=require_client_certificate,
    )


_Stamp = tuple[tuple[str, int, int, int], ...]


class _ReloadingFiles:
    """Reads a listener's files, and again when one of them has changed. Called by the transport's own threads."""

    def __init__(self, files: ServerTls) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._seen: _Stamp | None = None

    def first(self) -> grpc.ServerCertificateConfiguration:
        self._seen = self._stamp()
        return self._read()

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What to use from now on; None while the files are as they were, or are not usable."""
        with self._lock:
            try:
                stamp = self._stamp()
                if stamp == self._seen:
                    return None
                # Remembered before it is read: a broken file is complained about once, not at every handshake.
                self._seen = stamp
                configuration = self._read()
            except ConfigInvalid as error:
                # In the middle of a swap of two files they do not fit yet: the old pair goes on serving.
                log.warning("tls_files_not_usable", certificate=str(self._files.certificate), error=str(error))
                return None
            log.info("tls_files_reloaded", certificate=str(self._files.certificate))
            return configuration

    def _authority_files(self) -> tuple[Path, ...]:
        folders = (path for folder in self._files.authority_folders for path in sorted(folder.glob("*.pem")))
        return (*self._files.client_authorities, *folders)

    def _stamp(self) -> _Stamp:
        paths = (self._files.certificate, self._files.key, *self._authority_files())
        try:
            states = [(path, path.stat()) for path in paths]
        except OSError as error:
            raise ConfigInvalid(f"cannot read TLS file: {error}") from error
        return tuple((str(path), state.st_mtime_ns, state.st_size, state.st_ino) for path, state in states)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        try:
            chain = self._files.certificate.read_bytes()
            key = self._files.key.read_bytes()
            authorities = b"\n".join(path.read_bytes() for path in self._authority_files())
        except OSError as error:
            raise ConfigInvalid(f"cannot read TLS file: {error}") from error
        self._check(chain, key, authorities)
        return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=authorities or None)

    def _check(self, chain: bytes, key: bytes, authorities: bytes) -> None:
        """gRPC takes any bytes and fails at the handshake, without a word why."""
        try:
            leaf = parse_certificates(chain, what=str(self._files.certificate))[0]
            public_key = load_pem_private_key(key, password=None).public_key()
            if self._files.client_authorities:
                parse_authorities(authorities, what=", ".join(map(str, self._authority_files())))
        except InvalidArgument as error:
            raise ConfigInvalid(str(error)) from error
        except (ValueError, TypeError) as error:  # broken, or locked with a passphrase
            raise ConfigInvalid(f"{self._files.key} is not an unencrypted PEM private key") from error
        if public_key != leaf.public_key():
            raise ConfigInvalid(f"{self._files.key} is not the key of {self._files.certificate}")
