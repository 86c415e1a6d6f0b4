"""The coordinator's CA: what its certificates say, for how long, and how its folder is kept."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from common.certificates import identity_of
from common.errors import AlreadyExists, ConfigInvalid, InvalidArgument, NotFound
from common.identifiers import FederationId, OperatorId, OperatorIdentity, ParticipantId, ParticipantIdentity, Role
from common.rpc.tls import ServerTls, mutual_tls
from coordinator.keystore import PkiFolder, ensure_signing_key
from coordinator.pki import BACKDATING, CertificateAuthority, key_pem, new_authority, requested_key
from participant.identity import certificate_request
from tests.fakes import START_OF_TIME, FakeClock

NORTH = FederationId("north")
BANK = ParticipantId("bank")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START_OF_TIME)


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return new_authority(NORTH, now=START_OF_TIME)


@pytest.fixture
def folder(tmp_path) -> PkiFolder:
    return PkiFolder(tmp_path / "pki")


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def verify_as_client(certificate: x509.Certificate, authority: CertificateAuthority, *, at) -> None:
    store = Store([authority.certificate])
    PolicyBuilder().store(store).time(at).build_client_verifier().verify(certificate, [])


# --- certificates --------------------------------------------------------------------------------------------------


def test_a_participants_certificate_names_it_and_verifies_for_thirty_days(authority):
    key = new_key()
    certificate = authority.issue_participant(key.public_key(), BANK, now=START_OF_TIME).certificate

    assert identity_of(certificate) == ParticipantIdentity(NORTH, BANK)
    assert certificate.public_key() == key.public_key()
    verify_as_client(certificate, authority, at=START_OF_TIME + timedelta(days=29))
    with pytest.raises(VerificationError):
        verify_as_client(certificate, authority, at=START_OF_TIME + timedelta(days=31))


def test_a_certificate_is_good_for_machines_whose_clock_is_a_little_behind(authority):
    later = START_OF_TIME + timedelta(days=1)
    certificate = authority.issue_participant(new_key().public_key(), BANK, now=later).certificate

    assert certificate.not_valid_before_utc == later - BACKDATING


def test_a_certificate_never_outlives_its_ca(authority):
    last_day = authority.certificate.not_valid_after_utc - timedelta(days=1)
    certificate = authority.issue_participant(new_key().public_key(), BANK, now=last_day).certificate

    assert certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_a_ca_that_has_ended_issues_nothing(authority):
    with pytest.raises(InvalidArgument, match="CA's own certificate ended"):
        authority.issue_participant(new_key().public_key(), BANK, now=authority.certificate.not_valid_after_utc)


def test_an_operators_certificate_carries_its_role_and_comes_with_a_key(authority):
    identity = OperatorIdentity(NORTH, OperatorId("alice"), Role.SECURITY_OFFICER)
    issued = authority.issue_operator(identity, now=START_OF_TIME)

    assert identity_of(issued.certificate) == identity
    assert b"PRIVATE KEY" in issued.key_pem
    assert "PRIVATE KEY" not in repr(issued)


def test_an_operator_of_another_federation_gets_no_certificate(authority):
    identity = OperatorIdentity(FederationId("south"), OperatorId("alice"), Role.VIEWER)

    with pytest.raises(InvalidArgument, match="not for south"):
        authority.issue_operator(identity, now=START_OF_TIME)


def test_clients_and_servers_certificates_are_not_good_for_each_other(authority):
    client = authority.issue_participant(new_key().public_key(), BANK, now=START_OF_TIME).certificate
    server = authority.issue_server(["localhost"], now=START_OF_TIME).certificate

    def usage(certificate):
        return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)

    assert usage(client) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert usage(server) == [ExtendedKeyUsageOID.SERVER_AUTH]
    with pytest.raises(VerificationError):
        verify_as_client(server, authority, at=START_OF_TIME)


def test_a_servers_certificate_has_its_host_names_and_addresses(authority):
    names = ["coordinator.example", "127.0.0.1", "::1", "127.0.0.1"]
    certificate = authority.issue_server(names, now=START_OF_TIME).certificate
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    assert found.get_values_for_type(x509.DNSName) == ["coordinator.example"]
    assert [str(address) for address in found.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert found.get_values_for_type(x509.UniformResourceIdentifier) == ["accord://north/coordinator"]


@pytest.mark.parametrize("names", [[], ["münchen.example"]])
def test_a_server_without_a_usable_name_gets_no_certificate(authority, names):
    with pytest.raises(InvalidArgument):
        authority.issue_server(names, now=START_OF_TIME)


def test_two_certificates_for_one_key_have_different_serial_numbers(authority):
    key = new_key().public_key()
    serials = {authority.issue_participant(key, BANK, now=START_OF_TIME).certificate.serial_number for _ in range(5)}

    assert len(serials) == 5


@pytest.mark.parametrize(
    "key",
    [new_key(), ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()],
    ids=["P-256", "P-384", "Ed25519"],
)
def test_a_request_yields_its_key(key):
    assert requested_key(certificate_request(key)) == key.public_key()


@pytest.mark.parametrize(
    "key",
    [rsa.generate_private_key(public_exponent=65537, key_size=2048), ec.generate_private_key(ec.SECP256K1())],
    ids=["RSA-2048", "secp256k1"],
)
def test_a_weak_or_strange_key_is_refused(key):
    with pytest.raises(InvalidArgument, match="not accepted"):
        requested_key(certificate_request(key))


# --- the folder ----------------------------------------------------------------------------------------------------


def test_a_ca_is_read_back_from_its_folder_and_its_key_is_its_owners(folder, clock):
    created = folder.create_authority(NORTH, clock)

    loaded = folder.load_authority(NORTH)

    assert loaded.certificate == created.certificate
    assert folder.authority_key.stat().st_mode & 0o777 == 0o600
    assert folder.path.stat().st_mode & 0o777 == 0o700
    certificate = loaded.issue_participant(new_key().public_key(), BANK, now=START_OF_TIME).certificate
    verify_as_client(certificate, created, at=START_OF_TIME)


def test_a_ca_is_not_made_over(folder, clock):
    folder.create_authority(NORTH, clock)

    with pytest.raises(AlreadyExists):
        folder.create_authority(NORTH, clock)


def test_a_folder_without_a_ca_says_what_makes_one(folder):
    with pytest.raises(NotFound, match="accord-coordinator init"):
        folder.load_authority(NORTH)


def test_the_ca_of_another_federation_is_not_used(folder, clock):
    folder.create_authority(FederationId("south"), clock)

    with pytest.raises(ConfigInvalid, match="another federation"):
        folder.load_authority(NORTH)


def test_a_key_that_is_not_the_cas_is_noticed(folder, clock):
    folder.create_authority(NORTH, clock)
    folder.authority_key.write_bytes(key_pem(new_key()))

    with pytest.raises(ConfigInvalid, match="is not the key of"):
        folder.load_authority(NORTH)


def test_a_broken_key_is_a_typed_error(folder, clock):
    folder.create_authority(NORTH, clock)
    folder.authority_key.write_bytes(b"not a key")

    with pytest.raises(ConfigInvalid, match="not an unencrypted PEM private key"):
        folder.load_authority(NORTH)


def test_a_partners_ca_does_not_count_for_the_coordinator(folder, clock):
    folder.create_authority(NORTH, clock)
    partner = PkiFolder(folder.path.parent / "partner")
    partner.create_authority(FederationId("partner"), clock)
    folder.trusted.mkdir()
    (folder.trusted / "partner.pem").write_text(partner.trust_bundle())

    assert folder.trust_bundle() == folder.authority_certificate.read_text()


def test_a_certificate_that_is_no_ca_is_not_trusted_as_one(folder, clock):
    authority = folder.create_authority(NORTH, clock)
    folder.ensure_server_certificate(authority, ["localhost"], clock)
    folder.trusted.mkdir()
    (folder.trusted / "leaf.pem").write_bytes(folder.server_certificate.read_bytes())

    with pytest.raises(ConfigInvalid, match="is not a CA's"):
        mutual_tls(
            ServerTls(
                folder.server_certificate,
                folder.server_key,
                (folder.authority_certificate,),
                authority_folders=(folder.trusted,),
            )
        )


# --- the server's certificate --------------------------------------------------------------------------------------


def test_the_server_certificate_is_issued_once_and_again_at_half_of_its_life(folder, clock):
    authority = folder.create_authority(NORTH, clock)

    assert folder.ensure_server_certificate(authority, ["localhost"], clock)
    assert not folder.ensure_server_certificate(authority, ["localhost"], clock)
    clock.advance(days=44)
    assert not folder.ensure_server_certificate(authority, ["localhost"], clock)
    clock.advance(days=2)
    assert folder.ensure_server_certificate(authority, ["localhost"], clock)


def test_the_server_certificate_is_issued_again_for_another_name(folder, clock):
    authority = folder.create_authority(NORTH, clock)
    folder.ensure_server_certificate(authority, ["localhost", "127.0.0.1"], clock)

    assert not folder.ensure_server_certificate(authority, ["localhost"], clock)
    assert folder.ensure_server_certificate(authority, ["coordinator.example"], clock)


@pytest.mark.parametrize("content", [None, b"", b"garbage"])
def test_the_server_certificate_is_issued_again_where_its_key_is_gone_or_broken(folder, clock, content):
    authority = folder.create_authority(NORTH, clock)
    folder.ensure_server_certificate(authority, ["localhost"], clock)
    folder.server_key.unlink()
    if content is not None:
        folder.server_key.write_bytes(content)

    assert folder.ensure_server_certificate(authority, ["localhost"], clock)
    assert not folder.ensure_server_certificate(authority, ["localhost"], clock)


def test_the_server_certificate_of_an_earlier_ca_is_replaced(folder, clock):
    old = folder.create_authority(NORTH, clock)
    folder.ensure_server_certificate(old, ["localhost"], clock)

    assert folder.ensure_server_certificate(new_authority(NORTH, now=clock.now()), ["localhost"], clock)


# --- other files ---------------------------------------------------------------------------------------------------


def test_the_signing_key_is_made_once(tmp_path):
    path = tmp_path / "keys" / "signing-key.pem"

    first, second = ensure_signing_key(path), ensure_signing_key(path)

    assert first.public_key() == second.public_key()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_signing_key_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "signing-key.pem"
    path.write_bytes(key_pem(new_key()))

    with pytest.raises(ConfigInvalid, match="not an Ed25519 key"):
        ensure_signing_key(path)


def test_serial_numbers_are_revoked_however_they_are_written(folder, clock):
    folder.create_authority(NORTH, clock)
    assert folder.revoked_serials() == frozenset()

    folder.revoke_serial("0A:BC")
    folder.revoke_serial("abd")
    folder.revoke_serial("ABC")

    assert folder.revoked_serials() == {"abc", "abd"}


def test_what_is_no_serial_number_is_refused(folder, clock):
    folder.create_authority(NORTH, clock)

    with pytest.raises(InvalidArgument):
        folder.revoke_serial("bank")
