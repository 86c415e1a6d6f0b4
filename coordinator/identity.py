"""What the coordinator proves itself by, and whom it trusts: its own CA's files, or those of an organisation's PKI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.certificates import parse_certificates, to_pem
from common.clock import Clock
from common.errors import ConfigInvalid
from common.identifiers import FederationId
from common.rpc.tls import ServerTls, mutual_tls
from coordinator.config import Config, PkiMode
from coordinator.keystore import PkiFolder, ensure_signing_key
from coordinator.pki import CertificateAuthority


@dataclass(frozen=True, slots=True)
class OwnAuthority:
    """The coordinator's own CA with its folder; keeps the listeners' certificate fresh."""

    authority: CertificateAuthority
    folder: PkiFolder
    host_names: Sequence[str]
    clock: Clock

    @property
    def certificate_pem(self) -> str:
        return to_pem([self.authority.certificate])

    def refresh(self) -> bool:
        """Renew the listeners' certificate at half of its life. True if it was renewed."""
        return self.folder.ensure_server_certificate(self.authority, self.host_names, self.clock)


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
    signing_key = ensure_signing_key(config.signing_key_file)
    if config.certificates.mode is PkiMode.FILES:
        return _from_files(config, federation, signing_key)
    folder = PkiFolder(config.pki_folder)
    own = OwnAuthority(folder.load_authority(federation), folder, config.host_names, clock)
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
