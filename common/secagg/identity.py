"""Who a member is: signatures by long-lived identity keys, and the check of a certificate against the pinned charter.

An identity key signs once an epoch, over the member's advertised keys; everything later is signed by the Ed25519 key
certified there. Knows no message; the time of the check is passed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from common.errors import MemberRejected, SignatureInvalid
from common.secagg.hashing import DIGEST_BYTES, PREFIX

IdentityPrivateKey = Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
IdentityPublicKey = Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey

IdentitySigner = Callable[[str, bytes], bytes]
"""(message name, 32-byte digest) -> signature; `identity_signer` makes one of a key in memory, an HSM has its own."""

RSA_LEAST_BITS: Final = 3072
_PADDING: Final = b" " * 64


def signature_input(name: str, digest: bytes) -> bytes:
    """What is signed: 64 spaces, "xsa1/" + name, a zero byte, the digest.

    The form of TLS 1.3 (RFC 8446, 4.4.3) with another context, so an mTLS handshake's signature is never one of ours.
    """
    if len(digest) != DIGEST_BYTES:
        raise ValueError("identity signatures are over 32-byte digests")
    return _PADDING + (PREFIX + name).encode() + b"\0" + digest


def _curve_hash(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> hashes.HashAlgorithm:
    if isinstance(key.curve, ec.SECP256R1):
        return hashes.SHA256()
    if isinstance(key.curve, ec.SECP384R1):
        return hashes.SHA384()
    raise MemberRejected(f"identity keys on curve {key.curve.name} are not accepted; use P-256 or P-384")


def _check_rsa(bits: int) -> None:
    if bits < RSA_LEAST_BITS:
        raise MemberRejected(f"RSA identity keys need {RSA_LEAST_BITS} bits, this one has {bits}")


def _pss(salt_length: int | padding._DigestLength) -> padding.PSS:
    return padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=salt_length)


def sign_as_identity(key: IdentityPrivateKey, name: str, digest: bytes) -> bytes:
    """Sign with a certificate's key: Ed25519, ECDSA P-256 or P-384, RSA-PSS from 3072 bits.

    Raises MemberRejected for another key.
    """
    message = signature_input(name, digest)
    if isinstance(key, Ed25519PrivateKey):
        return key.sign(message)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(message, ec.ECDSA(_curve_hash(key)))
    if isinstance(key, rsa.RSAPrivateKey):
        _check_rsa(key.key_size)
        return key.sign(message, _pss(padding.PSS.DIGEST_LENGTH), hashes.SHA256())
    raise MemberRejected("identity keys are Ed25519, ECDSA P-256 or P-384, or RSA")


def identity_signer(key: IdentityPrivateKey) -> IdentitySigner:
    """A signer over a key that is in memory."""
    return lambda name, digest: sign_as_identity(key, name, digest)


def verify_identity(key: IdentityPublicKey, name: str, digest: bytes, signature: bytes) -> None:
    """Raises SignatureInvalid, or MemberRejected for a key that is too weak to count."""
    message = signature_input(name, digest)
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, message)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, message, ec.ECDSA(_curve_hash(key)))
        else:
            _check_rsa(key.key_size)
            key.verify(signature, message, _pss(padding.PSS.DIGEST_LENGTH), hashes.SHA256())
    except InvalidSignature as error:
        raise SignatureInvalid(f"the identity signature on {name} does not verify") from error


class MemberVerifier(Protocol):
    """Decides whether a certificate chain is that of an organisation in the charter."""

    def verify(self, org_id: str, certificate_chain: Sequence[bytes]) -> IdentityPublicKey:
        """Public key of the leaf. certificate_chain: DER, leaf first. Raises ProtocolViolation."""
        ...


@dataclass(frozen=True, slots=True)
class PinnedMember:
    """What the charter says of one member.

    uri: SAN of its certificate, `accord://{federation}/participants/{id}`. ca_certificates: PEM, one or more.
    key_sha256: SHA-256 of the SubjectPublicKeyInfo (DER) of its identity key, where the charter pins it.
    """

    uri: str
    ca_certificates: bytes
    key_sha256: bytes | None = None


class PinnedMembers:
    """MemberVerifier over the charter's members, as of one aware time."""

    def __init__(self, members: Mapping[str, PinnedMember], at: datetime) -> None:
        if at.tzinfo is None:
            raise ValueError("certificates are checked as of an aware datetime")
        self._members = dict(members)
        self._at = at

    def verify(self, org_id: str, certificate_chain: Sequence[bytes]) -> IdentityPublicKey:
        """Chain to the member's own pinned CA, validity, client use, the one SAN URI, pinned key if any.

        Raises MemberRejected.
        """
        member = self._members.get(org_id)
        if member is None:
            raise MemberRejected(f"{org_id} is not a member of this federation's charter")
        leaf = self._verified_leaf(org_id, member, certificate_chain)
        key = leaf.public_key()
        if member.key_sha256 is not None and spki_sha256(leaf) != member.key_sha256:
            raise MemberRejected(f"the certificate of {org_id} does not have the identity key that the charter pins")
        if not isinstance(key, Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
            raise MemberRejected(f"the certificate of {org_id} has a key of a kind that is not accepted")
        return key

    def _verified_leaf(self, org_id: str, member: PinnedMember, chain: Sequence[bytes]) -> x509.Certificate:
        try:
            certificates = [x509.load_der_x509_certificate(der) for der in chain]
            roots = x509.load_pem_x509_certificates(member.ca_certificates)
        except ValueError as error:
            raise MemberRejected(f"the certificates of {org_id} cannot be read") from error
        if not certificates:
            raise MemberRejected(f"{org_id} sent no certificate")
        verifier = PolicyBuilder().store(Store(roots)).time(self._at).build_client_verifier()
        try:
            verified = verifier.verify(certificates[0], certificates[1:])
        except VerificationError as error:
            raise MemberRejected(
                f"the certificate of {org_id} does not chain to its pinned CA as of {self._at:%Y-%m-%d %H:%M}Z: {error}"
            ) from error
        names = [name.value for name in verified.subjects or () if isinstance(name, x509.UniformResourceIdentifier)]
        if names != [member.uri]:
            raise MemberRejected(f"the certificate of {org_id} is for {names}, the charter says {member.uri}")
        return certificates[0]


def spki_sha256(certificate: x509.Certificate) -> bytes:
    """SHA-256 of a certificate's SubjectPublicKeyInfo, as a charter pins it."""
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).digest()
