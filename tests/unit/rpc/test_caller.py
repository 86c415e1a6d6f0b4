"""Who a certificate says is calling."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from common.certificates import spki_sha256
from common.errors import PermissionDenied, Unauthenticated
from common.identifiers import FederationId, OperatorId, OperatorIdentity, ParticipantId, Role
from common.rpc.identity import ANONYMOUS, CallerReader, current_caller
from coordinator.pki import new_authority
from tests.fakes import START_OF_TIME

NORTH = FederationId("north")
AUTHORITY = new_authority(NORTH, now=START_OF_TIME)
KEY = ec.generate_private_key(ec.SECP256R1())


def read(pem: bytes | str):
    return CallerReader(NORTH).read({"x509_pem_cert": [pem.encode() if isinstance(pem, str) else pem]})


def certificate(*names: x509.GeneralName) -> bytes:
    """A certificate with these alternative names; who signed it was the handshake's to check."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "participants/clinic")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(KEY.public_key())
        .serial_number(7)
        .not_valid_before(START_OF_TIME)
        .not_valid_after(START_OF_TIME)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.PEM)


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def test_a_participants_certificate_makes_a_participant():
    issued = AUTHORITY.issue_participant(KEY.public_key(), ParticipantId("bank"), now=START_OF_TIME)

    caller = read(issued.chain_pem)

    assert (caller.role, caller.id, caller.actor) == (Role.PARTICIPANT, "bank", "participants/bank")
    assert caller.participant == "bank"
    assert caller.serial == format(issued.certificate.serial_number, "x")
    assert caller.spki_sha256 == spki_sha256(KEY.public_key())
    assert caller.not_after == issued.certificate.not_valid_after_utc


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR, Role.SECURITY_OFFICER])
def test_an_operators_certificate_carries_the_role(role):
    issued = AUTHORITY.issue_operator(OperatorIdentity(NORTH, OperatorId("alice"), role), now=START_OF_TIME)

    caller = read(issued.chain_pem)

    assert (caller.role, caller.actor) == (role, "operators/alice")
    with pytest.raises(PermissionDenied):
        _ = caller.participant


def test_without_a_certificate_a_caller_is_anonymous():
    assert CallerReader(NORTH).read({}) == ANONYMOUS


def test_other_names_in_a_certificate_do_not_matter():
    pem = certificate(
        uri("spiffe://corp.example/accord"), x509.DNSName("bank.example"), uri("accord://north/participants/bank")
    )

    assert read(pem).id == "bank"


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ((), "no subject alternative name"),
        ((x509.DNSName("bank.example"),), "0 names of the form"),
        ((uri("accord://north/participants/bank"), uri("accord://north/participants/clinic")), "2 names of the form"),
        ((uri("accord://south/participants/bank"),), "is of federation 'south'"),
        ((uri("accord://north/coordinator"),), "not a caller's"),
        ((uri("accord://north/operators/root/eve"),), "is not a role"),
        ((uri("accord://north/operators/participant/eve"),), "is not a role"),
        ((uri("accord://north/participants/bank/extra"),), "names nobody"),
        ((uri("accord://north/participants/Bank"),), "is not an id"),
        ((uri("accord://north/participants/"),), "is not an id"),
        ((uri("accord:///participants/bank"),), "is not an id"),
    ],
)
def test_a_certificate_that_names_nobody_here_is_nobodys(names, why):
    with pytest.raises(Unauthenticated, match=why):
        read(certificate(*names))


def test_a_common_name_is_no_identity():
    with pytest.raises(Unauthenticated):
        read(certificate(x509.DNSName("participants/clinic")))


def test_garbage_is_nobody():
    with pytest.raises(Unauthenticated):
        read(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def test_code_outside_a_call_has_no_caller():
    with pytest.raises(Unauthenticated):
        current_caller()
