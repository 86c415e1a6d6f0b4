"""What the coordinator proves itself by, and whom it trusts: its own CA's files, or those of an organisation's PKI."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.certificates import parse_certificates, to_pem
from common.clock import Clock
from common.errors import AccordError, ConfigInvalid, NotFound
from common.identifiers import FederationId
from common.log import get_logger
from common.rpc.tls import ServerTls, mutual_tls
from coordinator.config import Config, PkiMode
from coordinator.keystore import PkiFolder, ensure_signing_key
from coordinator.pki import CertificateAuthority, Trust

log: Final = get_logger(__name__)


class OwnAuthority:
    """The coordinator's own CA as its folder has it now; keeps the listeners' certificate fresh.

    `accord-coordinator ca` replaces the CA while this runs: files that have changed are read anew when somebody asks.
    """

    def __init__(self, folder: PkiFolder, federation: FederationId, host_names: Sequence[str], clock: Clock) -> None:
        """Raises NotFound or ConfigInvalid as PkiFolder.load_authority does."""
        self._folder = folder
        self._federation = federation
        self._host_names = host_names
        self._clock = clock
        self._lock = threading.Lock()
        self._stamp = self._stamp_now()
        self._now = self._load()

    def authority(self) -> CertificateAuthority:
        """The CA that issues."""
        return self._current()[0]

    def trust(self) -> Trust:
        """The CAs that count, for those who verify the coordinator and write charters."""
        return self._current()[1]

    def bundle(self) -> str:
        """PEM of the CAs that count, the issuing one first."""
        return self.trust().bundle

    def bundle_sha256(self) -> str:
        """What tells a participant that its own bundle is not the present one."""
        return self._current()[2]

    def refresh(self) -> bool:
        """Renew the listeners' certificate at half of its life, or by another CA. True if it was renewed."""
        return self._folder.ensure_server_certificate(self.authority(), self._host_names, self._clock)

    def _current(self) -> tuple[CertificateAuthority, Trust, str]:
        with self._lock:
            try:
                stamp = self._stamp_now()
                if stamp != self._stamp:
                    self._now, self._stamp = self._load(), stamp
            except AccordError as error:
                # Between two files of a swap they do not fit: the pair that was read before goes on serving.
                log.warning("authority_not_reloaded", reason=error.reason, message=error.message)
            return self._now

    def _load(self) -> tuple[CertificateAuthority, Trust, str]:
        authority = self._folder.load_authority(self._federation)
        rotation = self._folder.rotation(self._federation)
        others = (rotation.staged, *rotation.former)
        certificates = tuple(to_pem([one]) for one in (rotation.issuing, *others) if one is not None)
        trust = Trust(certificates, rotation.issuing.not_valid_after_utc)
        return authority, trust, hashlib.sha256(trust.bundle.encode()).hexdigest()

    def _stamp_now(self) -> tuple[tuple[int, int, int], ...]:
        try:
            states = [path.stat() for path in (self._folder.authority_certificate, self._folder.authority_key)]
        except OSError as error:
            raise NotFound(f"{error.filename} does not exist; `accord-coordinator init` makes it") from error
        return tuple((state.st_mtime_ns, state.st_size, state.st_ino) for state in states)


@dataclass(frozen=True, slots=True)
class ServingIdentity:
    """Keys and TLS files of a running coordinator. `own` is None where an organisation's PKI issues certificates."""

    federation: FederationId
    signing_key: Ed25519PrivateKey = field(repr=False)
    participants_tls: ServerTls
    admin_tls: ServerTls
    own: OwnAuthority | None

    def certificate_expires_at(self) -> datetime:
        """End of the certificate that the listeners present now. Raises ConfigInvalid if it cannot be read."""
        path = self.participants_tls.certificate
        try:
            return parse_certificates(path.read_bytes(), what=str(path))[0].not_valid_after_utc
        except OSError as error:
            raise ConfigInvalid(f"cannot read {path}: {error.strerror}") from error


def load_identity(config: Config, clock: Clock) -> ServingIdentity:
    """Read keys and certificates, and issue the listeners' own where it is due.

    Raises NotFound before `accord-coordinator init`, ConfigInvalid for files that are missing or do not fit.
    """
    federation = FederationId(config.federation)
    if config.keys.folder is not None and not config.signing_key_file.exists():
        # Replicas that each made one would sign what nobody but themselves could verify.
        raise NotFound(f"{config.signing_key_file} does not exist; `accord-coordinator init` makes it, once for all")
    signing_key = ensure_signing_key(config.signing_key_file)
    if config.certificates.mode is PkiMode.FILES:
        return _from_files(config, federation, signing_key)
    folder = PkiFolder(config.pki_folder, own=config.server_folder)
    own = OwnAuthority(folder, federation, config.host_names, clock)
    own.refresh()
    return ServingIdentity(
        federation=federation,
        signing_key=signing_key,
        participants_tls=ServerTls(
            folder.server_certificate,
            folder.server_key,
            (folder.authority_certificate,),
            authority_folders=(folder.trusted,),
        ),
        # Only the own CA makes operators: a partner's CA that is trusted for participants must not.
        admin_tls=ServerTls(folder.server_certificate, folder.server_key, (folder.authority_certificate,)),
        own=own,
    )


def check_files(config: Config) -> None:
    """Raises ConfigInvalid if the files of an organisation's PKI are missing, broken or do not fit each other."""
    if config.certificates.mode is PkiMode.FILES:
        for tls in _tls_of_files(config):
            mutual_tls(tls)


def _from_files(config: Config, federation: FederationId, signing_key: Ed25519PrivateKey) -> ServingIdentity:
    participants_tls, admin_tls = _tls_of_files(config)
    return ServingIdentity(
        federation=federation,
        signing_key=signing_key,
        participants_tls=participants_tls,
        admin_tls=admin_tls,
        own=None,
    )


def _tls_of_files(config: Config) -> tuple[ServerTls, ServerTls]:
    files = config.certificates
    if files.certificate is None or files.key is None or files.participant_cas is None or files.operator_cas is None:
        raise ConfigInvalid('certificates: mode = "files" needs certificate, key, participant_cas and operator_cas')
    return (
        ServerTls(files.certificate, files.key, (files.participant_cas,)),
        ServerTls(files.certificate, files.key, (files.operator_cas,)),
    )
