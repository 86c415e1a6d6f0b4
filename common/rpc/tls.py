"""TLS of both ends: credentials from PEM files, read again when the files change.

A server presents a renewed certificate, and trusts a changed list of client CAs, from the next handshake on; open
connections live on (who they are is checked with every call). Knows nothing of what a certificate says.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar, cast

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


def browser_tls(files: ServerTls, *, requires_certificate: bool) -> ssl.SSLContext:
    """The TLS of a listener for browsers: files that change are read again at the next handshake, as for the others.

    requires_certificate: whether a client without a certificate is turned away; one that comes with a certificate is
    always verified by `client_authorities`. Raises ConfigInvalid as `mutual_tls` does.
    """

    def build(_chain: bytes, _key: bytes, authorities: bytes) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.verify_mode = ssl.CERT_REQUIRED if requires_certificate else ssl.CERT_OPTIONAL
        # As gRPC does it: an organisation's issuing CA may be all that is named.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            context.load_cert_chain(files.certificate, files.key)
            context.load_verify_locations(cadata=authorities.decode("ascii", "replace"))
        except (ssl.SSLError, OSError) as error:
            raise ConfigInvalid(f"cannot use {files.certificate} and {files.key}: {error}") from error
        return context

    reader = _ReloadingFiles(files, build)
    newest = first = reader.first()

    def choose(connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        nonlocal newest
        newest = reader.changed() or newest
        connection.context = newest

    first.sni_callback = choose
    return first


def channel_credentials(
    *, trust_bundle: bytes, certificate_chain: bytes | None = None, key: bytes | None = None
) -> grpc.ChannelCredentials:
    """A client's credentials from PEM. There is no reloading on this end: make a new channel after a renewal."""
    return grpc.ssl_channel_credentials(
        root_certificates=trust_bundle, private_key=key, certificate_chain=certificate_chain
    )


def _reloading(files: ServerTls, *, require_client_certificate: bool) -> grpc.ServerCredentials:
    reader = _ReloadingFiles(files, _grpc_configuration)
    return grpc.dynamic_ssl_server_credentials(
        reader.first(),
        # The library takes None for "no change"; the stubs leave that out.
        cast("Callable[[], grpc.ServerCertificateConfiguration]", reader.changed),
        require_client_authentication=require_client_certificate,
    )


def _grpc_configuration(chain: bytes, key: bytes, authorities: bytes) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=authorities or None)


Built = TypeVar("Built")
_Stamp = tuple[tuple[str, int, int, int], ...]


class _ReloadingFiles(Generic[Built]):
    """Reads a listener's files, and again when one of them has changed. Called by the transport's own threads.

    build: makes of chain, key and client CAs what the transport takes.
    """

    def __init__(self, files: ServerTls, build: Callable[[bytes, bytes, bytes], Built]) -> None:
        self._files = files
        self._build = build
        self._lock = threading.Lock()
        self._seen: _Stamp | None = None

    def first(self) -> Built:
        self._seen = self._stamp()
        return self._read()

    def changed(self) -> Built | None:
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

    def _read(self) -> Built:
        try:
            chain = self._files.certificate.read_bytes()
            key = self._files.key.read_bytes()
            authorities = b"\n".join(path.read_bytes() for path in self._authority_files())
        except OSError as error:
            raise ConfigInvalid(f"cannot read TLS file: {error}") from error
        self._check(chain, key, authorities)
        return self._build(chain, key, authorities)

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
