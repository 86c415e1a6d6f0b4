"""The coordinator's own small CA (ECDSA P-256): issues the certificates of participants, operators and the coordinator.

Pure: what time it is comes with every call, and who got which certificate is the store's to remember. Where the keys
lie is known to `coordinator.keystore`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.certificates import to_pem
from common.errors import InvalidArgument
from common.identifiers import (
    CoordinatorIdentity,
    FederationId,
    Identity,
    OperatorIdentity,
    ParticipantId,
    ParticipantIdentity,
    parse_federation_id,
)

AUTHORITY_LIFE: Final = timedelta(days=3650)
SERVER_LIFE: Final = timedelta(days=90)
PARTICIPANT_LIFE: Final = timedelta(days=30)
OPERATOR_LIFE: Final = timedelta(days=90)
# A certificate that begins this second is refused by whoever's clock is a little behind.
BACKDATING: Final = timedelta(minutes=5)
LEAST_RSA_BITS: Final = 3072
MOST_REQUEST_BYTES: Final = 16 * 1024

IssuerKey = ec.EllipticCurvePrivateKey
LeafPublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate with its chain (PEM, leaf first) and, where this side has made it, its key (PEM)."""

    certificate: x509.Certificate
    chain_pem: str
    key_pem: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Trust:
    """The coordinator's own CA. certificates: PEM, one each, the issuing one first; two while it is being replaced.

    expires_at: end of the issuing one.
    """

    certificates: tuple[str, ...]
    expires_at: datetime

    @property
    def bundle(self) -> str:
        """All of them in one text."""
        return "".join(self.certificates)


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """Issues the federation's certificates. What time it is comes with every call."""

    federation: FederationId
    certificate: x509.Certificate
    key: IssuerKey = field(repr=False)

    def issue_participant(
        self, key: LeafPublicKey, participant: ParticipantId, *, now: datetime, life: timedelta = PARTICIPANT_LIFE
    ) -> IssuedCertificate:
        """A certificate for `key` that names the participant. Raises InvalidArgument if the CA itself has expired."""
        identity = ParticipantIdentity(self.federation, participant)
        return self._issue(key, identity, usage=ExtendedKeyUsageOID.CLIENT_AUTH, now=now, life=life)

    def issue_operator(
        self, identity: OperatorIdentity, *, now: datetime, life: timedelta = OPERATOR_LIFE
    ) -> IssuedCertificate:
        """A new key and its certificate for a person in one role. Raises InvalidArgument for another federation."""
        if identity.federation != self.federation:
            raise InvalidArgument(f"this CA issues for federation {self.federation}, not for {identity.federation}")
        key = ec.generate_private_key(ec.SECP256R1())
        issued = self._issue(key.public_key(), identity, usage=ExtendedKeyUsageOID.CLIENT_AUTH, now=now, life=life)
        return IssuedCertificate(issued.certificate, issued.chain_pem, key_pem(key))

    def issue_server(
        self, host_names: Sequence[str], *, now: datetime, life: timedelta = SERVER_LIFE
    ) -> IssuedCertificate:
        """A new key and its certificate for the coordinator's listeners.

        host_names: DNS names and IP addresses by which participants dial. Raises InvalidArgument if there is none.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        issued = self._issue(
            key.public_key(),
            CoordinatorIdentity(self.federation),
            usage=ExtendedKeyUsageOID.SERVER_AUTH,
            now=now,
            life=life,
            host_names=host_name_entries(host_names),
        )
        return IssuedCertificate(issued.certificate, issued.chain_pem, key_pem(key))

    def _issue(
        self,
        key: LeafPublicKey,
        identity: Identity,
        *,
        usage: x509.ObjectIdentifier,
        now: datetime,
        life: timedelta,
        host_names: Sequence[x509.GeneralName] = (),
    ) -> IssuedCertificate:
        if now >= self.certificate.not_valid_after_utc:
            ended = self.certificate.not_valid_after_utc.isoformat()
            raise InvalidArgument(
                f"the CA's own certificate ended at {ended}; make a new CA and trust both for a while"
            )
        names = [x509.UniformResourceIdentifier(identity.uri), *host_names]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _common_name(identity))]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - BACKDATING, self.certificate.not_valid_before_utc))
            .not_valid_after(min(now + life, self.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(_authority_key_identifier(self.certificate), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return IssuedCertificate(certificate, to_pem([certificate]))


def new_authority(federation: FederationId, *, now: datetime) -> CertificateAuthority:
    """A fresh CA for a federation."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{federation} coordinator CA"),
        ]
    )
    public = key.public_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATING)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    return CertificateAuthority(federation, certificate, key)


def federation_of(authority: x509.Certificate) -> FederationId | None:
    """Whose CA a certificate of `new_authority` is; None for anybody else's."""
    names = authority.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    try:
        return parse_federation_id(str(names[0].value)) if names else None
    except InvalidArgument:
        return None


def host_name_entries(host_names: Sequence[str]) -> list[x509.GeneralName]:
    """Alternative names for DNS names and IP addresses, each once. Raises InvalidArgument."""
    if not host_names:
        raise InvalidArgument("a server certificate needs at least one DNS name or IP address")
    return [_host_name(name) for name in dict.fromkeys(host_names)]


def key_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    """PKCS#8, not encrypted: the file's mode protects it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


# --- certificate requests ------------------------------------------------------------------------------------------


def requested_key(request_der: bytes) -> LeafPublicKey:
    """The public key of a PKCS#10 request, whose signature shows that the sender has its private half.

    Everything else in the request is ignored. Raises InvalidArgument.
    """
    if len(request_der) > MOST_REQUEST_BYTES:
        raise InvalidArgument(
            f"certificate_request has {len(request_der)} bytes; at most {MOST_REQUEST_BYTES} are read"
        )
    try:
        request = x509.load_der_x509_csr(request_der)
        is_signed = request.is_signature_valid
        key = request.public_key()
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise InvalidArgument("certificate_request is not a PKCS#10 request in DER that this CA understands") from error
    if not is_signed:
        raise InvalidArgument("certificate_request is not signed by the key that it holds")
    match key:
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1() | ec.SECP384R1()) | ed25519.Ed25519PublicKey():
            return key
        case rsa.RSAPublicKey() if key.key_size >= LEAST_RSA_BITS:
            return key
        case _:
            raise InvalidArgument(
                "certificate_request has a key that is not accepted; use ECDSA P-256 or P-384, Ed25519, or RSA with "
                f"at least {LEAST_RSA_BITS} bits"
            )


# --- parts ---------------------------------------------------------------------------------------------------------


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_key_identifier(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _common_name(identity: Identity) -> str:
    """For people who look at a certificate; nothing reads it."""
    return "coordinator" if isinstance(identity, CoordinatorIdentity) else identity.id


def _host_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:  # not ASCII
        raise InvalidArgument(f"{name!r} is neither a DNS name nor an IP address; write it in its xn-- form") from error
