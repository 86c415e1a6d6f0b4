"""Who this site is: its key, its certificate, whom it trusts and whom it dials.

Either as `enroll` writes it into one folder, or as files that the site's own PKI writes (`OwnPki`). The folder:

    identity.key       the private key; made here, never leaves, and stays the same when the certificate is renewed
    certificate.pem    the chain, leaf first
    trust.pem          the CAs that sign the coordinator's certificates
    enrollment.json    federation, participant, coordinator's address; written last: without it, nothing is enrolled

Each file is replaced at once, and any mix of older and newer ones is usable: the key stays, and both certificates are
good. Reads no clock and dials nobody.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from common import jsonform
from common.certificates import identity_of, parse_authorities, parse_certificates, spki_sha256
from common.durable import OWNER_ONLY, write_durably
from common.errors import (
    AccordError,
    ClockWrong,
    ConfigInvalid,
    InvalidArgument,
    NotFound,
    StorageFailed,
    Unauthenticated,
)
from common.identifiers import FederationId, ParticipantId, ParticipantIdentity, parse_federation_id, parse_id

# Asked for at half of a certificate's life, so that there is a sixth of it left for trying again before two thirds.
RENEW_AT: Final = 0.5

IdentityKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Enrollment:
    """Where this site is enrolled. is_renewed_by_coordinator: False where an organisation's own PKI renews."""

    federation: str
    participant: str
    coordinator_address: str
    is_renewed_by_coordinator: bool


@dataclass(frozen=True, slots=True)
class SiteIdentity:
    """What the site shows and whom it trusts, as it was read from the folder. PEM texts."""

    enrollment: Enrollment
    certificate_chain: str
    trust_bundle: str
    key_pem: bytes = field(repr=False)

    @property
    def federation(self) -> FederationId:
        return FederationId(self.enrollment.federation)

    @property
    def participant(self) -> ParticipantId:
        return ParticipantId(self.enrollment.participant)

    @property
    def coordinator_address(self) -> str:
        """HOST:PORT of the participants' listener."""
        return self.enrollment.coordinator_address

    @property
    def certificate(self) -> x509.Certificate:
        return parse_certificates(self.certificate_chain, what="the site's certificate")[0]

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """Leaf first."""
        return parse_certificates(self.certificate_chain, what="the site's certificate")

    @property
    def expires_at(self) -> datetime:
        return self.certificate.not_valid_after_utc

    @property
    def private_key(self) -> IdentityKey:
        """Signs the advertisement of masking keys."""
        return _parse_key(self.key_pem, what="the site's key")

    @property
    def trust_bundle_sha256(self) -> str:
        """What tells the present CAs from others, as the coordinator names them."""
        return hashlib.sha256(self.trust_bundle.encode()).hexdigest()

    def needs_renewal(self, now: datetime) -> bool:
        """Whether to ask for a new certificate now. False where somebody else renews it."""
        return self.enrollment.is_renewed_by_coordinator and now >= renewal_time(self.certificate)


def renewal_time(certificate: x509.Certificate) -> datetime:
    """When a certificate's successor is asked for."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return begin + (end - begin) * RENEW_AT


def certificate_request(key: IdentityKey) -> bytes:
    """A PKCS#10 request, DER. It names nobody: the name comes from the join token, or from the present certificate."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "accord participant")])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, algorithm).public_bytes(Encoding.DER)


class IdentityFiles(Protocol):
    """Where the files are, and what they say at the moment."""

    @property
    def key_file(self) -> Path: ...
    @property
    def certificate_file(self) -> Path: ...
    @property
    def trust_file(self) -> Path: ...
    @property
    def is_there(self) -> bool:
        """Whether there is something to load: False before a site is enrolled."""

    def load(self) -> SiteIdentity:
        """What the files say now. Raises NotFound for one that is missing, ConfigInvalid if they do not fit."""


@dataclass(frozen=True, slots=True)
class OwnPki:
    """Files of the site's own PKI, which renews them: who the site is says the certificate, and nobody enrols."""

    certificate_file: Path
    key_file: Path
    trust_file: Path
    coordinator_address: str

    @property
    def is_there(self) -> bool:
        return True

    def load(self) -> SiteIdentity:
        """Raises NotFound, and ConfigInvalid if the certificate is not for the key, or is no participant's."""
        missing = "{path} does not exist: your own PKI puts it there, as [certificates] names it"
        chain, key_pem, trust_bundle = (
            _read(path, missing=missing) for path in (self.certificate_file, self.key_file, self.trust_file)
        )
        try:
            name = identity_of(parse_certificates(chain, what=str(self.certificate_file))[0])
            if not isinstance(name, ParticipantIdentity):
                raise Unauthenticated(f"{self.certificate_file} is for {name.uri}, which is no participant")
            _require_key(chain, key_pem, file=self.key_file)
            parse_authorities(trust_bundle, what=str(self.trust_file))
        except AccordError as error:
            raise ConfigInvalid(f"the identity in {self.certificate_file} is not usable: {error.message}") from error
        enrollment = Enrollment(
            federation=name.federation,
            participant=name.id,
            coordinator_address=self.coordinator_address,
            is_renewed_by_coordinator=False,
        )
        # What stands around the certificates may be in any encoding.
        return SiteIdentity(enrollment, chain.decode(errors="replace"), trust_bundle.decode(errors="replace"), key_pem)


@dataclass(frozen=True, slots=True)
class IdentityFolder:
    """The folder, and how its files are written."""

    path: Path

    @property
    def key_file(self) -> Path:
        return self.path / "identity.key"

    @property
    def certificate_file(self) -> Path:
        return self.path / "certificate.pem"

    @property
    def trust_file(self) -> Path:
        return self.path / "trust.pem"

    @property
    def enrollment_file(self) -> Path:
        return self.path / "enrollment.json"

    @property
    def is_there(self) -> bool:
        return self.enrollment_file.exists()

    def ensure_key(self) -> IdentityKey:
        """The site's key, made where there is none: an interrupted enrolment goes on with the key of its beginning."""
        if not self.key_file.exists():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            key = ec.generate_private_key(ec.SECP256R1())
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            write_durably(self.key_file, pem, mode=OWNER_ONLY)
        return _parse_key(_read(self.key_file), what=str(self.key_file))

    def enroll(
        self, enrollment: Enrollment, *, certificate_chain: str, trust_bundle: str, now: datetime
    ) -> SiteIdentity:
        """Keep a certificate. Raises Unauthenticated if it is not for this key and this site, ClockWrong if it is not
        valid now."""
        self._check(enrollment, certificate_chain, trust_bundle, now)
        self._write(certificate_chain, trust_bundle)
        write_durably(self.enrollment_file, jsonform.encode(enrollment, Enrollment).encode())
        return self.load()

    def renew(self, *, certificate_chain: str, trust_bundle: str, now: datetime) -> SiteIdentity:
        """Keep a renewed certificate. Raises as `enroll` does, and then the present one stays."""
        self._check(self._enrollment(), certificate_chain, trust_bundle, now)
        self._write(certificate_chain, trust_bundle)
        return self.load()

    def load(self) -> SiteIdentity:
        """What the files say now.

        Raises NotFound if the site is not enrolled, and ConfigInvalid if the files do not belong together.
        """
        enrollment, key_pem = self._enrollment(), _read(self.key_file)
        # Bytes that are no text are no PEM either, and are named as such below.
        chain = _read(self.certificate_file).decode(errors="replace")
        trust_bundle = _read(self.trust_file).decode(errors="replace")
        try:
            self._check_names(enrollment, chain)
            parse_authorities(trust_bundle, what=str(self.trust_file))
        except AccordError as error:
            raise ConfigInvalid(f"the identity in {self.path} is not usable: {error.message}") from error
        return SiteIdentity(enrollment, chain, trust_bundle, key_pem)

    def _enrollment(self) -> Enrollment:
        try:
            enrollment = jsonform.decode(_read(self.enrollment_file), Enrollment, what=str(self.enrollment_file))
            parse_federation_id(enrollment.federation)
            parse_id(enrollment.participant, field="participant")
        except InvalidArgument as error:
            raise ConfigInvalid(error.message) from error
        return enrollment

    def _check(self, enrollment: Enrollment, chain: str, trust_bundle: str, now: datetime) -> None:
        self._check_names(enrollment, chain)
        certificate = parse_certificates(chain, what="the certificate")[0]
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not begin <= now < end:
            # It was issued this moment: the clocks of who issued it and of this machine do not agree.
            raise ClockWrong(
                f"the certificate that was just issued is valid from {begin.isoformat()} to {end.isoformat()}, and "
                f"here it is {now.isoformat()}; set this machine's clock (timedatectl set-ntp true) and repeat the "
                "command. If the coordinator's is the wrong one, its operator sets it and makes a new join token"
            )
        parse_authorities(trust_bundle, what="the trust bundle")

    def _check_names(self, enrollment: Enrollment, chain: str) -> None:
        """The certificate is for this folder's key and for the enrolled name, whatever the other side has sent."""
        certificate = _require_key(chain, _read(self.key_file), file=self.key_file)
        wanted = ParticipantIdentity(FederationId(enrollment.federation), ParticipantId(enrollment.participant))
        found = identity_of(certificate)
        if found != wanted:
            raise Unauthenticated(f"the certificate is for {found.uri}, not for {wanted.uri}")

    def _write(self, certificate_chain: str, trust_bundle: str) -> None:
        try:
            # Trust first: with the new CAs the old certificate still works, while the other way round need not.
            write_durably(self.trust_file, trust_bundle.encode())
            write_durably(self.certificate_file, certificate_chain.encode())
        except OSError as error:
            raise StorageFailed(f"cannot write the certificate into {self.path}: {error.strerror}") from error


def _parse_key(pem: bytes, *, what: str) -> IdentityKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigInvalid(f"{what} is not an unencrypted PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey):
        raise ConfigInvalid(f"{what} is of a kind that is not accepted; use ECDSA, Ed25519 or RSA")
    return key


def _require_key(chain: str | bytes, key_pem: bytes, *, file: Path) -> x509.Certificate:
    """The chain's leaf. Raises Unauthenticated unless it is for this key."""
    certificate = parse_certificates(chain, what="the certificate")[0]
    if spki_sha256(certificate.public_key()) != spki_sha256(_parse_key(key_pem, what=str(file)).public_key()):
        raise Unauthenticated(f"the certificate is not for the key in {file}")
    return certificate


_NOT_ENROLLED: Final = "{path} does not exist: this site is not enrolled. Run `accord-participant enroll`"


def _read(path: Path, *, missing: str = _NOT_ENROLLED) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(missing.format(path=path)) from error
    except OSError as error:
        raise ConfigInvalid(f"cannot read {path}: {error.strerror}") from error
