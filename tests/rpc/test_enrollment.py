"""Enrolment and renewal end to end: both listeners over real TLS, a real database, and the participant's own code."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from accord.v1 import enrollment_pb2, enrollment_pb2_grpc
from common import join_token
from common.clock import SystemClock
from common.errors import (
    AccordError,
    AlreadyExists,
    CertificateRevoked,
    InvalidArgument,
    JoinTokenInvalid,
    NotFound,
    TlsIntercepted,
    Unauthenticated,
    WrongHost,
)
from common.identifiers import ParticipantId
from common.rpc.channels import server_options
from common.rpc.interceptors import CallGuard, NobodyRevoked
from common.rpc.status import to_error
from common.rpc.tls import ServerTls, mutual_tls, server_tls
from coordinator.authorization import RULES, StoredRevocations
from coordinator.invitations import Inviter
from coordinator.rounds.model import AuditEvent, JoinToken
from coordinator.services.enrollment import EnrollmentServicer
from coordinator.store.interface import Store
from coordinator.store.opening import open_store
from coordinator.store.schema import migrate
from participant.enrollment import enroll, renew
from participant.identity import IdentityFolder, SiteIdentity, certificate_request
from participant.network.dialling import dial
from tests.conformance.samples import PARTICIPANT
from tests.fakes import FakeClock
from tests.rpc.parts import FEDERATION, HOST, Pki, dialling

BANK = ParticipantId("bank")
DEADLINE = 10.0


@dataclass(frozen=True)
class Coordinator:
    """The two listeners that enrolment concerns, with what lies behind them."""

    pki: Pki
    store: Store
    clock: FakeClock
    guard: CallGuard
    inviter: Inviter
    enrollment_port: int
    port: int

    def invite(self, participant: str = "bank", *, life: timedelta = timedelta(hours=1)) -> str:
        token, text = self.inviter.invite(ParticipantId(participant), life=life)
        with self.store.write() as writer:
            writer.add_join_token(token)
        return text

    def token_of(self, text: str) -> JoinToken:
        with self.store.read() as reader:
            return reader.join_token_by_secret(join_token.secret_sha256(join_token.from_text(text).secret))

    def revoke_token(self, text: str) -> None:
        with self.store.write() as writer:
            writer.update_join_token(replace(self.token_of(text), revoked_at=self.clock.now()))

    def revoke(self, participant: str) -> None:
        with self.store.write() as writer:
            writer.revoke_participant(participant, at=self.clock.now(), reason="left the federation")

    def audit(self, action: str) -> list[AuditEvent]:
        with self.store.read() as reader:
            return [event for event in reader.audit_events().rows if event.action == action]


@pytest.fixture
def store(tmp_path):
    url = f"sqlite:///{tmp_path / 'coordinator.sqlite'}"
    migrate(url)
    store = open_store(url)
    yield store
    store.close()


@pytest.fixture
async def coordinator(tmp_path, store):
    pki, clock = Pki.create(tmp_path / "pki"), FakeClock(SystemClock().now())
    servicer = EnrollmentServicer(
        store=store, authority=lambda: pki.authority, trust_bundle=pki.folder.trust_bundle, clock=clock
    )
    open_tls = server_tls(ServerTls(pki.folder.server_certificate, pki.folder.server_key))
    guard = CallGuard(
        federation=FEDERATION,
        rules=RULES,
        revocations=StoredRevocations(store, clock, revoked_serials=pki.folder.revoked_serials),
        clock=clock,
    )
    open_guard = CallGuard(federation=FEDERATION, rules=RULES, revocations=NobodyRevoked(), clock=clock)
    async with AsyncExitStack() as stack:
        ports = []
        for some_guard, tls in ((open_guard, open_tls), (guard, mutual_tls(pki.tls))):
            server = grpc.aio.server(interceptors=[some_guard], options=server_options())
            enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(servicer, server)
            ports.append(server.add_secure_port(f"{HOST}:0", tls))
            await server.start()
            stack.push_async_callback(server.stop, None)
        inviter = Inviter(
            federation=FEDERATION,
            enrollment_address=f"{HOST}:{ports[0]}",
            coordinator_address=f"{HOST}:{ports[1]}",
            authority=pki.folder.trust_bundle,
            clock=clock,
        )
        yield Coordinator(pki, store, clock, guard, inviter, *ports)


@pytest.fixture
def folder(tmp_path) -> IdentityFolder:
    return IdentityFolder(tmp_path / "site" / "identity")


async def enrolled(coordinator: Coordinator, folder: IdentityFolder, token: str) -> SiteIdentity:
    return await asyncio.to_thread(enroll, folder, token, coordinator.clock)


async def renewed(coordinator: Coordinator, folder: IdentityFolder) -> SiteIdentity:
    return await asyncio.to_thread(renew, folder, coordinator.clock)


async def raw_enroll(coordinator: Coordinator, *, secret: str, request: bytes) -> AccordError:
    """The error to a request that the participant's own code would not send."""
    async with dialling(coordinator.enrollment_port, trust_bundle=coordinator.pki.trust_bundle) as channel:
        stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
        message = enrollment_pb2.EnrollRequest(token_secret=secret, certificate_request=request)
        with pytest.raises(grpc.RpcError) as caught:
            await stub.Enroll(message, timeout=DEADLINE)
    return to_error(caught.value)


async def raw_renew(identity: SiteIdentity, request: bytes) -> None:
    def call() -> None:
        with dial(identity) as channel:
            stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
            try:
                stub.RenewCertificate(
                    enrollment_pb2.RenewCertificateRequest(certificate_request=request), timeout=DEADLINE
                )
            except grpc.RpcError as failure:
                raise to_error(failure) from failure

    await asyncio.to_thread(call)


# --- enrol ---------------------------------------------------------------------------------------------------------


async def test_a_site_that_enrolls_has_an_identity_that_the_coordinator_knows(coordinator, folder):
    identity = await enrolled(coordinator, folder, coordinator.invite())

    assert (identity.federation, identity.participant) == ("north", "bank")
    with coordinator.store.read() as reader:
        known = reader.participant("bank")
    assert known.certificate_expires_at == identity.expires_at
    assert known.certificate_serial == format(identity.certificate.serial_number, "x")
    await renewed(coordinator, folder)  # the certificate opens the other listener


async def test_the_key_stays_at_the_site_and_is_readable_for_its_owner_alone(coordinator, folder):
    await enrolled(coordinator, folder, coordinator.invite())

    assert folder.key_file.stat().st_mode & 0o777 == 0o600
    assert folder.path.stat().st_mode & 0o777 == 0o700


async def test_the_name_comes_from_the_token_and_not_from_the_request(coordinator, folder):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "clinic")]))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier("accord://north/operators/operator/eve"), x509.DNSName("localhost")]
            ),
            critical=False,
        )
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    secret = join_token.from_text(coordinator.invite()).secret
    async with dialling(coordinator.enrollment_port, trust_bundle=coordinator.pki.trust_bundle) as channel:
        response = await enrollment_pb2_grpc.EnrollmentServiceStub(channel).Enroll(
            enrollment_pb2.EnrollRequest(token_secret=secret, certificate_request=request), timeout=DEADLINE
        )

    certificate = x509.load_pem_x509_certificate(response.certificate_chain.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["accord://north/participants/bank"]


async def test_a_lost_answer_is_asked_for_again_and_is_the_same_certificate(coordinator, folder):
    token = coordinator.invite()
    first = await enrolled(coordinator, folder, token)

    again = await enrolled(coordinator, folder, token)

    assert again.certificate_chain == first.certificate_chain
    assert len(coordinator.audit("participant_enrolled")) == 1


async def test_an_enrolment_that_was_killed_goes_on_with_its_first_key(coordinator, folder):
    key = folder.ensure_key()

    identity = await enrolled(coordinator, folder, coordinator.invite())

    assert identity.private_key.public_key() == key.public_key()


async def test_a_used_token_with_another_key_is_refused_and_the_operator_can_see_it(coordinator, folder, tmp_path):
    token = coordinator.invite()
    first = await enrolled(coordinator, folder, token)

    with pytest.raises(JoinTokenInvalid, match="used before"):
        await enrolled(coordinator, IdentityFolder(tmp_path / "thief"), token)

    (event,) = coordinator.audit("enrollment_refused")
    assert event.subject == f"joinTokens/{coordinator.token_of(token).name}"
    assert json.loads(event.details)["participant"] == "bank"
    with coordinator.store.read() as reader:
        assert reader.participant("bank").certificate_serial == format(first.certificate.serial_number, "x")


async def test_two_sites_at_once_with_one_token_get_one_certificate(coordinator, tmp_path):
    token = coordinator.invite()
    folders = [IdentityFolder(tmp_path / f"site-{number}") for number in range(4)]

    outcomes = await asyncio.gather(
        *(enrolled(coordinator, folder, token) for folder in folders), return_exceptions=True
    )

    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["JoinTokenInvalid"] * 3 + ["SiteIdentity"]


async def test_an_expired_token_is_refused_also_for_a_repeat(coordinator, folder):
    token, used = coordinator.invite(), coordinator.invite("clinic")
    await enrolled(coordinator, IdentityFolder(folder.path.parent / "clinic"), used)
    coordinator.clock.advance(hours=1)

    with pytest.raises(JoinTokenInvalid, match="expired"):
        await enrolled(coordinator, folder, token)
    with pytest.raises(JoinTokenInvalid, match="expired"):
        await enrolled(coordinator, IdentityFolder(folder.path.parent / "clinic"), used)
    assert not folder.is_there


async def test_a_revoked_token_is_refused(coordinator, folder):
    token = coordinator.invite()
    coordinator.revoke_token(token)

    with pytest.raises(JoinTokenInvalid, match="revoked"):
        await enrolled(coordinator, folder, token)


async def test_a_token_that_nobody_made_tells_nothing_and_writes_nothing(coordinator):
    secret = join_token.new_secret(lambda size: b"\x07" * size)
    request = certificate_request(ec.generate_private_key(ec.SECP256R1()))

    error = await raw_enroll(coordinator, secret=secret, request=request)

    assert type(error) is JoinTokenInvalid
    assert "not known" in error.message
    with coordinator.store.read() as reader:
        assert reader.audit_events().rows == ()


@pytest.mark.parametrize("secret", ["", "x" * 10_000])
async def test_a_secret_that_can_be_none_is_refused(coordinator, secret):
    request = certificate_request(ec.generate_private_key(ec.SECP256R1()))

    assert type(await raw_enroll(coordinator, secret=secret, request=request)) is JoinTokenInvalid


async def test_a_token_made_for_a_participant_that_was_revoked_since_is_refused(coordinator, folder, tmp_path):
    await enrolled(coordinator, folder, coordinator.invite())
    token = coordinator.invite()
    coordinator.revoke("bank")

    with pytest.raises(JoinTokenInvalid, match="participants/bank was revoked"):
        await enrolled(coordinator, IdentityFolder(tmp_path / "again"), token)


async def test_one_key_is_not_enrolled_under_two_names(coordinator, folder):
    await enrolled(coordinator, folder, coordinator.invite())
    secret = join_token.from_text(coordinator.invite("clinic")).secret

    error = await raw_enroll(coordinator, secret=secret, request=certificate_request(folder.ensure_key()))

    assert type(error) is InvalidArgument
    assert "enrolled as participants/bank" in error.message


def small_rsa_request() -> bytes:
    from cryptography.hazmat.primitives.asymmetric import rsa

    return certificate_request(rsa.generate_private_key(public_exponent=65537, key_size=2048))


def forged_request() -> bytes:
    """A request whose signature is another key's."""
    request = bytearray(certificate_request(ec.generate_private_key(ec.SECP256R1())))
    request[-1] ^= 1
    return bytes(request)


@pytest.mark.parametrize(
    "request_der",
    [b"", b"garbage", b"\x30\x82\xff\xff", b"\x00" * 100_000, small_rsa_request(), forged_request()],
    ids=["empty", "garbage", "truncated", "huge", "weak key", "forged"],
)
async def test_a_request_that_is_none_is_a_typed_error_and_leaves_the_token_open(coordinator, request_der):
    token = coordinator.invite()

    error = await raw_enroll(coordinator, secret=join_token.from_text(token).secret, request=request_der)

    assert type(error) is InvalidArgument
    assert coordinator.token_of(token).used_at is None


async def test_a_site_enrolls_again_with_a_new_key_and_the_old_identity_ends(coordinator, folder, tmp_path):
    await enrolled(coordinator, folder, coordinator.invite())
    await enrolled(coordinator, IdentityFolder(tmp_path / "new"), coordinator.invite())

    with pytest.raises(CertificateRevoked, match="another key"):
        await renewed(coordinator, folder)
    await renewed(coordinator, IdentityFolder(tmp_path / "new"))


# --- the first connection ------------------------------------------------------------------------------------------


async def test_the_first_connection_is_verified_by_the_ca_in_the_token(coordinator, folder, tmp_path):
    other = Pki.create(tmp_path / "other")
    honest = join_token.from_text(coordinator.invite())
    token = join_token.to_text(replace(honest, authority=other.folder.trust_bundle()))

    with pytest.raises(TlsIntercepted, match="is not signed by it"):
        await enrolled(coordinator, folder, token)
    assert coordinator.token_of(join_token.to_text(honest)).used_at is None


async def test_the_first_connection_is_verified_by_the_host_name_that_was_dialled(coordinator, folder):
    coordinator.pki.folder.ensure_server_certificate(
        coordinator.pki.authority, ["coordinator.example"], coordinator.clock
    )

    with pytest.raises(WrongHost, match=r"it is for coordinator\.example"):
        await enrolled(coordinator, folder, coordinator.invite())


async def test_an_answer_under_another_name_is_not_kept(coordinator, folder):
    honest = join_token.from_text(coordinator.invite("clinic"))
    token = join_token.to_text(replace(honest, participant=BANK))

    with pytest.raises(Unauthenticated, match="the join token is for bank"):
        await enrolled(coordinator, folder, token)
    assert not folder.is_there


async def test_a_folder_is_not_enrolled_over_with_another_name(coordinator, folder):
    await enrolled(coordinator, folder, coordinator.invite())

    with pytest.raises(AlreadyExists, match="enrolled as bank"):
        await enrolled(coordinator, folder, coordinator.invite("clinic"))


# --- renew ---------------------------------------------------------------------------------------------------------


async def test_a_renewed_certificate_is_for_the_same_key_and_lasts_longer(coordinator, folder):
    first = await enrolled(coordinator, folder, coordinator.invite())
    coordinator.clock.advance(days=15)
    assert first.needs_renewal(coordinator.clock.now())

    second = await renewed(coordinator, folder)

    assert second.private_key.public_key() == first.private_key.public_key()
    assert second.expires_at - first.expires_at == timedelta(days=15)
    assert not second.needs_renewal(coordinator.clock.now())
    assert folder.load().certificate_chain == second.certificate_chain
    (event,) = coordinator.audit("certificate_renewed")
    assert json.loads(event.details)["replaces"] == format(first.certificate.serial_number, "x")


async def test_the_older_certificate_stays_valid_after_a_renewal(coordinator, folder):
    first = await enrolled(coordinator, folder, coordinator.invite())
    await renewed(coordinator, folder)

    await raw_renew(first, certificate_request(first.private_key))


async def test_a_certificate_is_not_renewed_for_another_key(coordinator, folder):
    identity = await enrolled(coordinator, folder, coordinator.invite())

    with pytest.raises(InvalidArgument, match="key of the present certificate"):
        await raw_renew(identity, certificate_request(ec.generate_private_key(ec.SECP256R1())))


async def test_a_revoked_participant_renews_nothing(coordinator, folder):
    await enrolled(coordinator, folder, coordinator.invite())
    coordinator.revoke("bank")

    with pytest.raises(CertificateRevoked, match="left the federation"):
        await renewed(coordinator, folder)


async def test_a_certificate_on_the_list_of_serials_is_refused(coordinator, folder):
    identity = await enrolled(coordinator, folder, coordinator.invite())
    coordinator.pki.folder.revoke_serial(format(identity.certificate.serial_number, "X"))

    with pytest.raises(CertificateRevoked, match="was revoked"):
        await renewed(coordinator, folder)


async def test_a_certificate_of_a_partners_own_ca_is_renewed_where_it_came_from(coordinator, tmp_path):
    partner = Pki.create(tmp_path / "partner")
    coordinator.pki.folder.trusted.mkdir()
    (coordinator.pki.folder.trusted / "partner.pem").write_bytes(partner.trust_bundle)
    caller = partner.participant("hospital")
    async with dialling(coordinator.port, trust_bundle=coordinator.pki.trust_bundle, caller=caller) as channel:
        request = certificate_request(ec.generate_private_key(ec.SECP256R1()))
        with pytest.raises(grpc.RpcError) as caught:
            await enrollment_pb2_grpc.EnrollmentServiceStub(channel).RenewCertificate(
                enrollment_pb2.RenewCertificateRequest(certificate_request=request), timeout=DEADLINE
            )

    assert type(to_error(caught.value)) is InvalidArgument


async def test_a_member_that_was_only_introduced_gets_no_certificate_of_this_coordinators_ca(coordinator, tmp_path):
    partner = Pki.create(tmp_path / "partner")
    coordinator.pki.folder.trusted.mkdir()
    (coordinator.pki.folder.trusted / "partner.pem").write_bytes(partner.trust_bundle)
    caller = partner.participant("hospital")
    with coordinator.store.write() as writer:
        writer.put_participant(
            replace(
                PARTICIPANT, name="hospital", identity_key_sha256=caller.spki_sha256, certificate_serial=caller.serial
            )
        )
    key = load_pem_private_key(caller.key, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    request = certificate_request(key)
    async with dialling(coordinator.port, trust_bundle=coordinator.pki.trust_bundle, caller=caller) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await enrollment_pb2_grpc.EnrollmentServiceStub(channel).RenewCertificate(
                enrollment_pb2.RenewCertificateRequest(certificate_request=request), timeout=DEADLINE
            )

    assert type(to_error(caught.value)) is NotFound
    assert "renewed where it came from" in str(caught.value)


async def test_a_partners_ca_cannot_take_the_name_of_a_site_that_is_enrolled_here(coordinator, folder, tmp_path):
    await enrolled(coordinator, folder, coordinator.invite())
    partner = Pki.create(tmp_path / "partner")
    coordinator.pki.folder.trusted.mkdir()
    (coordinator.pki.folder.trusted / "partner.pem").write_bytes(partner.trust_bundle)
    impostor = partner.participant("bank")
    async with dialling(coordinator.port, trust_bundle=coordinator.pki.trust_bundle, caller=impostor) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await enrollment_pb2_grpc.EnrollmentServiceStub(channel).RenewCertificate(
                enrollment_pb2.RenewCertificateRequest(), timeout=DEADLINE
            )

    assert type(to_error(caught.value)) is CertificateRevoked


async def test_a_certificate_that_has_expired_is_not_renewed_and_the_site_is_told_what_to_do(coordinator, folder):
    await enrolled(coordinator, folder, coordinator.invite())
    coordinator.clock.advance(days=31)

    with pytest.raises(Unauthenticated, match="ask the federation's operator for a join token"):
        await renewed(coordinator, folder)


async def test_enrolment_is_not_served_to_those_who_have_a_certificate(coordinator, folder):
    identity = await enrolled(coordinator, folder, coordinator.invite())

    def call() -> None:
        with dial(identity) as channel:
            enrollment_pb2_grpc.EnrollmentServiceStub(channel).Enroll(enrollment_pb2.EnrollRequest(), timeout=DEADLINE)

    with pytest.raises(grpc.RpcError) as caught:
        await asyncio.to_thread(call)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_renewal_without_a_certificate_is_not_served(coordinator):
    async with dialling(coordinator.enrollment_port, trust_bundle=coordinator.pki.trust_bundle) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await enrollment_pb2_grpc.EnrollmentServiceStub(channel).RenewCertificate(
                enrollment_pb2.RenewCertificateRequest(), timeout=DEADLINE
            )

    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_site_that_never_enrolled_is_told_so(coordinator, folder):
    with pytest.raises(NotFound, match="not enrolled"):
        await renewed(coordinator, folder)


def test_the_secret_is_in_no_repr(tmp_path):
    invitation = join_token.from_text(
        join_token.to_text(
            join_token.Invitation(
                federation=FEDERATION,
                participant=BANK,
                enrollment_address="localhost:1",
                coordinator_address="localhost:2",
                authority=Pki.create(tmp_path / "pki").folder.trust_bundle(),
                secret="s" * 43,
            )
        )
    )

    assert "s" * 43 not in repr(invitation)
    assert Path(tmp_path / "pki" / "ca.key").stat().st_mode & 0o777 == 0o600
