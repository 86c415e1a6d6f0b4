"""The folder in which the coordinator's keys and certificates lie.

    ca.pem ca.key              the CA that issues, and with it those that count too while it is being replaced
    ca-next.key                key of the CA that is to issue next; its certificate is in ca.pem already
    trusted/*.pem              CAs of partners with a PKI of their own; they count for participants' certificates alone
    server.pem server.key      what the listeners present; issued anew before it expires. In the data folder always
    revoked.txt                serial numbers of revoked certificates, one a line

Keys are readable for their owner alone. The Ed25519 signing key lies where the configuration says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from common.certificates import parse_authorities, parse_certificates, to_pem
from common.clock import Clock
from common.durable import OWNER_ONLY, write_durably
from common.errors import AlreadyExists, ConfigInvalid, InvalidArgument, NotFound, OutOfTurn
from common.identifiers import FederationId
from coordinator.pki import CertificateAuthority, federation_of, host_name_entries, key_pem, new_authority


@dataclass(frozen=True, slots=True)
class Rotation:
    """CAs of the coordinator. staged: known to all who renew now, the next to issue. former: count, issue no more."""

    issuing: x509.Certificate
    staged: x509.Certificate | None
    former: tuple[x509.Certificate, ...]


@dataclass(frozen=True, slots=True)
class PkiFolder:
    """Where the coordinator's keys and certificates lie. Knows the names of the files, and how they are written.

    own: where the listeners' certificate lies, if the rest is shared with other replicas, and perhaps read-only.
    """

    path: Path
    own: Path | None = None

    @property
    def authority_certificate(self) -> Path:
        return self.path / "ca.pem"

    @property
    def authority_key(self) -> Path:
        return self.path / "ca.key"

    @property
    def next_authority_key(self) -> Path:
        return self.path / "ca-next.key"

    @property
    def server_certificate(self) -> Path:
        return (self.own or self.path) / "server.pem"

    @property
    def server_key(self) -> Path:
        return (self.own or self.path) / "server.key"

    @property
    def revoked(self) -> Path:
        return self.path / "revoked.txt"

    @property
    def trusted(self) -> Path:
        """Folder of partners' CAs; need not be there."""
        return self.path / "trusted"

    # --- the CA --------------------------------------------------------------------------------------------------

    def create_authority(self, federation: FederationId, clock: Clock) -> CertificateAuthority:
        """Make the CA. Raises AlreadyExists if one is there: a new one would cut off every participant."""
        if self.authority_key.exists() or self.authority_certificate.exists():
            raise AlreadyExists(f"there is a CA in {self.path} already")
        self._make()
        authority = new_authority(federation, now=clock.now())
        write_durably(self.authority_key, key_pem(authority.key), mode=OWNER_ONLY)
        write_durably(self.authority_certificate, to_pem([authority.certificate]).encode())
        return authority

    def load_authority(self, federation: FederationId) -> CertificateAuthority:
        """The CA that issues. Raises NotFound, or ConfigInvalid if it is broken or another federation's.

        It is whichever certificate of the file the key belongs to: the key alone decides when another CA takes over.
        """
        key = _load_key(self.authority_key)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigInvalid(f"{self.authority_key} is not an ECDSA key")
        certificate = next((one for one in self._authorities() if one.public_key() == key.public_key()), None)
        if certificate is None:
            raise ConfigInvalid(f"{self.authority_key} is not the key of {self.authority_certificate}")
        if federation_of(certificate) != federation:
            raise ConfigInvalid(f"{self.authority_certificate} is the CA of another federation than {federation}")
        return CertificateAuthority(federation, certificate, key)

    def trust_bundle(self) -> str:
        """PEM of the CAs that sign the coordinator's own certificates: what participants verify it by.

        Those in `trusted` are not among them, or a partner's CA could make itself a coordinator.
        Raises NotFound or InvalidArgument.
        """
        return to_pem(self._authorities())

    def _authorities(self) -> tuple[x509.Certificate, ...]:
        return parse_authorities(_read(self.authority_certificate), what=str(self.authority_certificate))

    # --- another CA ----------------------------------------------------------------------------------------------

    def rotation(self, federation: FederationId) -> Rotation:
        """Where the replacement of the CA stands. Raises as `load_authority` does."""
        issuing = self.load_authority(federation).certificate
        others = [one for one in self._authorities() if one != issuing]
        staged = None
        if self.next_authority_key.exists():
            coming = _load_key(self.next_authority_key).public_key()
            staged = next((one for one in others if one.public_key() == coming), None)
        return Rotation(issuing, staged, tuple(one for one in others if one != staged))

    def stage_authority(self, federation: FederationId, clock: Clock) -> x509.Certificate:
        """Make another CA, which counts from now on and issues nothing yet. Raises OutOfTurn if one is staged already.

        A server reads the file anew at the next handshake.
        """
        rotation = self.rotation(federation)
        if rotation.staged is not None or rotation.former:
            raise OutOfTurn("another CA is being brought in already: end that first (`ca show` says how)")
        authority = new_authority(federation, now=clock.now())
        write_durably(self.next_authority_key, key_pem(authority.key), mode=OWNER_ONLY)
        self._write_authorities([rotation.issuing, authority.certificate])
        return authority.certificate

    def switch_authority(self, federation: FederationId) -> CertificateAuthority:
        """Let the staged CA issue from now on; the former one counts on, and its key is gone. Safe to repeat.

        Raises OutOfTurn if none is staged.
        """
        rotation = self.rotation(federation)
        if rotation.staged is not None:
            write_durably(self.authority_key, self.next_authority_key.read_bytes(), mode=OWNER_ONLY)
            rotation = Rotation(rotation.staged, None, (rotation.issuing, *rotation.former))
        elif not self.next_authority_key.exists():  # else a switch was interrupted after the key was in its place
            raise OutOfTurn("there is no CA to switch to; `ca begin` makes one")
        self._write_authorities([rotation.issuing, *rotation.former])
        self.next_authority_key.unlink()
        return self.load_authority(federation)

    def retire_authorities(self, federation: FederationId) -> tuple[x509.Certificate, ...]:
        """Let only the issuing CA count from the next handshake on; the CAs that counted beside it.

        A CA that was staged and never issued is given up with them.
        """
        rotation = self.rotation(federation)
        self._write_authorities([rotation.issuing])
        self.next_authority_key.unlink(missing_ok=True)
        return (*rotation.former, *((rotation.staged,) if rotation.staged is not None else ()))

    def _write_authorities(self, certificates: Sequence[x509.Certificate]) -> None:
        write_durably(self.authority_certificate, to_pem(certificates).encode())

    # --- the server's certificate --------------------------------------------------------------------------------

    def ensure_server_certificate(
        self, authority: CertificateAuthority, host_names: Sequence[str], clock: Clock
    ) -> bool:
        """Issue the listeners' certificate where there is none, at half of its life, or for changed names.

        Returns whether it was issued; running listeners present it from the next handshake on.
        """
        now = clock.now()
        if self._server_certificate_serves(authority, host_names, now):
            return False
        self.server_key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        issued = authority.issue_server(host_names, now=now)
        # Listeners read both files again when one has changed, and go on with the old pair until the two fit.
        write_durably(self.server_key, issued.key_pem, mode=OWNER_ONLY)
        write_durably(self.server_certificate, issued.chain_pem.encode())
        return True

    def _server_certificate_serves(
        self, authority: CertificateAuthority, host_names: Sequence[str], now: datetime
    ) -> bool:
        try:
            certificate = parse_certificates(_read(self.server_certificate), what=str(self.server_certificate))[0]
            key = _load_key(self.server_key)
            certificate.verify_directly_issued_by(authority.certificate)
        except (NotFound, ConfigInvalid, InvalidArgument, InvalidSignature, ValueError, TypeError):
            return False  # whatever is wrong with it, a new one is the answer
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return (
            key.public_key() == certificate.public_key()
            and set(host_name_entries(host_names)) <= set(names)
            and now < _half_life(certificate)
        )

    # --- revoked certificates ---------------------------------------------------------------------------------------

    def revoke_serial(self, serial: str) -> None:
        """Refuse a certificate from its next call on. Raises InvalidArgument unless it is a number in hex."""
        try:
            text = format(int(serial.replace(":", ""), 16), "x")
        except ValueError as error:
            raise InvalidArgument(f"{serial!r} is not a serial number in hex") from error
        serials = sorted(self.revoked_serials() | {text})
        write_durably(self.revoked, "".join(f"{line}\n" for line in serials).encode())

    def revoked_serials(self) -> frozenset[str]:
        """Serial numbers in lower-case hex, as they stand in the file now."""
        try:
            return frozenset(self.revoked.read_text().split())
        except FileNotFoundError:
            return frozenset()

    def _make(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)


def ensure_signing_key(path: Path) -> ed25519.Ed25519PrivateKey:
    """The coordinator's Ed25519 key, made where there is none. Raises ConfigInvalid if the file holds another kind."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(path, key_pem(ed25519.Ed25519PrivateKey.generate()), mode=OWNER_ONLY)
    key = _load_key(path)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigInvalid(f"{path} is not an Ed25519 key")
    return key


def _half_life(certificate: x509.Certificate) -> datetime:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return begin + (end - begin) / 2


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist; `accord-coordinator init` makes it") from error
    except OSError as error:
        raise ConfigInvalid(f"cannot read {path}: {error}") from error


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey:
    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigInvalid(f"{path} is not an unencrypted PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise ConfigInvalid(f"{path} is neither an ECDSA nor an Ed25519 key")
    return key
