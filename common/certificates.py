"""X.509 as both services read it: PEM chains, key digests, who a certificate names.

Pure: reads no file and no clock. Issuing lies in `coordinator.pki`, requesting in `participant.identity`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.errors import InvalidArgument, Unauthenticated
from common.identifiers import IDENTITY_SCHEME, Identity, parse_identity_uri


def parse_certificates(pem: str | bytes, *, what: str) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM text, in its order. Raises InvalidArgument if there is none or one is broken."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem.encode() if isinstance(pem, str) else pem))
    except ValueError as error:
        raise InvalidArgument(f"{what} is not a PEM certificate or chain: {error}") from error


def parse_authorities(pem: str | bytes, *, what: str) -> tuple[x509.Certificate, ...]:
    """The CA certificates of a PEM text. Raises InvalidArgument if one of them may not sign certificates."""
    certificates = parse_certificates(pem, what=what)
    for certificate in certificates:
        try:
            is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except (x509.ExtensionNotFound, ValueError):
            is_authority = False
        if not is_authority:
            raise InvalidArgument(f"{what}: {certificate.subject.rfc4514_string() or 'a certificate'} is not a CA's")
    return certificates


def to_pem(certificates: Sequence[x509.Certificate]) -> str:
    return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in certificates)


def spki_sha256(key: CertificatePublicKeyTypes) -> str:
    """SHA-256 of the SubjectPublicKeyInfo, lower-case hex: what a charter pins and what survives a renewal."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def serial_text(certificate: x509.Certificate) -> str:
    """The serial number in lower-case hex, as store, log and audit spell it."""
    return format(certificate.serial_number, "x")


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the whole certificate (DER), lower-case hex."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def identity_of(certificate: x509.Certificate) -> Identity:
    """Who the certificate names: its one URI that begins with accord://; other names in it do not matter.

    Raises Unauthenticated if there is none, more than one (it would be ours to choose), or one that names nobody.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise Unauthenticated("the certificate has no subject alternative name; it needs a URI accord://...") from error
    uris = [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith(IDENTITY_SCHEME)]
    if len(uris) != 1:
        raise Unauthenticated(f"the certificate has {len(uris)} names of the form accord://...; it needs exactly one")
    try:
        return parse_identity_uri(uris[0])
    except InvalidArgument as error:
        raise Unauthenticated(f"the certificate's name: {error}") from error
