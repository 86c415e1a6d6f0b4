"""The guard on a real server over real TLS: who gets through, what an error looks like, what ends an open call."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterable, AsyncIterator
from datetime import timedelta

import grpc
import pytest
import structlog
from grpc import StatusCode

from common.clock import SystemClock
from common.errors import AccordError, BaseModelMismatch, CertificateRevoked, StorageFailed, Unauthenticated
from common.identifiers import FederationId, Role
from common.rpc.channels import server_options
from common.rpc.identity import Caller, current_caller
from common.rpc.interceptors import CallGuard
from common.rpc.status import to_error
from common.rpc.tls import ServerTls, mutual_tls
from tests.fakes import FakeClock
from tests.rpc.parts import FEDERATION, Pki, dialling, serving, serving_mutual_tls

SERVICE = "accord.test.Echo"
DEADLINE = 10.0


class Echo:
    """One handler of each kind; `fail_with` is raised by all of them."""

    def __init__(self) -> None:
        self.fail_with: Exception | None = None
        self.callers: list[Caller] = []
        self.entered = asyncio.Event()
        self.left = asyncio.Event()

    def _enter(self) -> None:
        self.callers.append(current_caller())
        self.entered.set()
        if self.fail_with is not None:
            raise self.fail_with

    async def unary(self, request: bytes, context: object) -> bytes:
        self._enter()
        in_thread = await asyncio.to_thread(current_caller)
        return in_thread.actor.encode()

    async def down(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        yield b"first"
        self._enter()
        yield b"second"

    async def up(self, requests: AsyncIterator[bytes], context: object) -> bytes:
        total = 0
        async for message in requests:
            total += len(message)
        self._enter()
        return str(total).encode()

    async def both(self, requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
        self._enter()
        async for message in requests:
            yield message

    async def wait(self, request: bytes, context: object) -> bytes:
        """A long poll to which no answer comes."""
        self._enter()
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()
        return b""

    async def trickle(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        """A stream that never ends."""
        self._enter()
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            self.left.set()

    async def own_write(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """As health's Watch does it."""
        await context.write(b"written")

    async def own_abort(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        """As health's Check does it."""
        await context.abort(StatusCode.NOT_FOUND, "no such service")

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
                "Down": grpc.unary_stream_rpc_method_handler(self.down),
                "Up": grpc.stream_unary_rpc_method_handler(self.up),
                "Both": grpc.stream_stream_rpc_method_handler(self.both),
                "Wait": grpc.unary_unary_rpc_method_handler(self.wait),
                "Trickle": grpc.unary_stream_rpc_method_handler(self.trickle),
                "OwnWrite": grpc.unary_stream_rpc_method_handler(self.own_write),
                "OwnAbort": grpc.unary_unary_rpc_method_handler(self.own_abort),
                "Unruled": grpc.unary_unary_rpc_method_handler(self.unary),
                "Sync": grpc.unary_unary_rpc_method_handler(lambda request, context: b""),
            },
        )


class Revoked:
    """Revocations that a test adds to."""

    def __init__(self) -> None:
        self.serials: set[str] = set()
        self.is_down = False

    async def check(self, caller: Caller) -> None:
        if self.is_down:
            raise StorageFailed("postgresql://accord:secret@db refused")
        if caller.serial in self.serials:
            raise CertificateRevoked(f"{caller.actor} was revoked")


RULES = {
    f"{SERVICE}/{name}": frozenset({Role.PARTICIPANT})
    for name in ("Unary", "Down", "Up", "Both", "Wait", "Trickle", "OwnWrite", "OwnAbort", "Sync")
}


@pytest.fixture(scope="module")
def pki(tmp_path_factory) -> Pki:
    return Pki.create(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(SystemClock().now())


@pytest.fixture
def revoked() -> Revoked:
    return Revoked()


@pytest.fixture
def measured() -> asyncio.Queue[tuple[str, StatusCode]]:
    """What was measured; a queue, since a caller may have its answer before the call is counted."""
    return asyncio.Queue()


@pytest.fixture
def guard(clock, revoked, measured) -> CallGuard:
    return CallGuard(
        federation=FEDERATION,
        rules=RULES,
        revocations=revoked,
        clock=clock,
        on_call=lambda method, code, seconds: measured.put_nowait((method.rsplit("/")[-1], code)),
        recheck_seconds=3600,  # tests ask for the check themselves
    )


@pytest.fixture
async def echo() -> Echo:
    return Echo()


@pytest.fixture
async def port(echo, guard, pki):
    async with serving_mutual_tls([echo.handler()], guard, pki) as port:
        yield port


@pytest.fixture
async def channel(port, pki):
    async with dialling(port, trust_bundle=pki.trust_bundle, caller=pki.participant("bank")) as channel:
        yield channel


async def drained(call) -> None:
    """Wait for the end of a call that answers once or streams."""
    if isinstance(call, AsyncIterable):
        async for _ in call:
            pass
    else:
        await call


async def failure(call) -> AccordError:
    """The error that the call fails with."""
    with pytest.raises(grpc.RpcError) as caught:
        await drained(call)
    return to_error(caught.value)


def unary(channel, name: str = "Unary", **options):
    return channel.unary_unary(f"/{SERVICE}/{name}")(b"", timeout=DEADLINE, **options)


def down(channel, name: str = "Down"):
    return channel.unary_stream(f"/{SERVICE}/{name}")(b"", timeout=DEADLINE)


async def test_the_handler_knows_who_calls_also_in_a_thread(channel, echo):
    assert await unary(channel) == b"participants/bank"
    assert echo.callers[0].role is Role.PARTICIPANT


async def test_all_four_kinds_of_call_pass_through(channel):
    messages = [b"ab", b"cde"]

    assert [message async for message in down(channel)] == [b"first", b"second"]
    assert await channel.stream_unary(f"/{SERVICE}/Up")(iter(messages), timeout=DEADLINE) == b"5"
    both = channel.stream_stream(f"/{SERVICE}/Both")(iter(messages), timeout=DEADLINE)
    assert [message async for message in both] == messages


async def test_handlers_that_write_or_abort_for_themselves_are_left_alone(channel, measured):
    assert [message async for message in down(channel, "OwnWrite")] == [b"written"]
    assert await measured.get() == ("OwnWrite", StatusCode.OK)

    error = await failure(unary(channel, "OwnAbort"))

    assert "no such service" in error.message
    assert await measured.get() == ("OwnAbort", StatusCode.NOT_FOUND)


@pytest.mark.parametrize("kind", ["Unary", "Down", "Up", "Both"])
async def test_an_error_reaches_the_caller_as_the_class_that_was_raised(channel, echo, kind):
    echo.fail_with = BaseModelMismatch("the plan names another model", metadata={"wanted": "abc"})
    calls = {
        "Unary": lambda: unary(channel),
        "Down": lambda: down(channel),
        "Up": lambda: channel.stream_unary(f"/{SERVICE}/Up")(iter([b"x"]), timeout=DEADLINE),
        "Both": lambda: channel.stream_stream(f"/{SERVICE}/Both")(iter([b"x"]), timeout=DEADLINE),
    }

    error = await failure(calls[kind]())

    assert type(error) is BaseModelMismatch
    assert error.message == "the plan names another model"
    assert error.metadata == {"wanted": "abc"}


@pytest.mark.parametrize("kind", [unary, down])
async def test_what_nobody_raised_on_purpose_says_nothing_to_the_caller_and_everything_to_the_log(channel, echo, kind):
    echo.fail_with = ValueError("password=hunter2")

    with structlog.testing.capture_logs() as lines:
        error = await failure(kind(channel))

    assert error.message == "INTERNAL: internal error"
    assert [line["exc_info"] for line in lines if line["event"] == "rpc_failed"] == [True]


async def test_the_text_of_a_storage_failure_stays_inside(channel, echo):
    echo.fail_with = StorageFailed("postgresql://accord:secret@db refused")

    error = await failure(unary(channel))

    assert type(error) is StorageFailed
    assert "secret" not in error.message


async def test_a_handler_that_is_no_coroutine_is_refused_not_run_in_a_thread(channel):
    assert (await failure(unary(channel, "Sync"))).message == "INTERNAL: internal error"


async def test_a_method_without_a_rule_has_no_callers(channel, echo):
    error = await failure(unary(channel, "Unruled"))

    assert error.reason == "PERMISSION_DENIED"
    assert "no rule" in error.message
    assert echo.callers == []


async def test_an_unknown_method_is_unimplemented(channel):
    assert "UNIMPLEMENTED" in (await failure(unary(channel, "Nothing"))).message


async def test_every_call_is_measured_with_its_code(channel, echo, measured):
    await unary(channel)
    assert await measured.get() == ("Unary", StatusCode.OK)
    await failure(unary(channel, "Unruled"))
    assert await measured.get() == ("Unruled", StatusCode.PERMISSION_DENIED)
    echo.fail_with = ValueError("x")
    await failure(unary(channel))
    assert await measured.get() == ("Unary", StatusCode.INTERNAL)


async def test_a_revocation_holds_from_the_next_call_of_an_open_connection_on(port, pki, revoked):
    caller = pki.participant("bank")
    async with dialling(port, trust_bundle=pki.trust_bundle, caller=caller) as channel:
        await unary(channel)
        revoked.serials.add(caller.serial)

        error = await failure(unary(channel))

    assert type(error) is CertificateRevoked


@pytest.mark.parametrize("name", ["Wait", "Trickle"])
async def test_a_revocation_ends_calls_that_are_open(port, pki, revoked, guard, echo, name):
    caller, other = pki.participant("bank"), pki.participant("clinic")
    async with (
        dialling(port, trust_bundle=pki.trust_bundle, caller=caller) as channel,
        dialling(port, trust_bundle=pki.trust_bundle, caller=other) as other_channel,
    ):
        call = unary(channel, name) if name == "Wait" else down(channel, name)
        failing = asyncio.create_task(failure(call))
        await echo.entered.wait()
        echo.entered.clear()
        other_call = unary(other_channel, "Wait")
        waiting = asyncio.ensure_future(other_call)
        await echo.entered.wait()
        revoked.serials.add(caller.serial)

        await guard.recheck()

        assert type(await failing) is CertificateRevoked
        await echo.left.wait()
        assert not waiting.done()
        other_call.cancel()


async def test_open_calls_are_rechecked_without_being_asked(clock, revoked, echo, pki):
    guard = CallGuard(federation=FEDERATION, rules=RULES, revocations=revoked, clock=clock, recheck_seconds=0.01)
    caller = pki.participant("bank")
    async with (
        serving_mutual_tls([echo.handler()], guard, pki) as port,
        dialling(port, trust_bundle=pki.trust_bundle, caller=caller) as channel,
    ):
        failing = asyncio.create_task(failure(unary(channel, "Wait")))
        await echo.entered.wait()
        revoked.serials.add(caller.serial)

        assert type(await failing) is CertificateRevoked


@pytest.mark.parametrize("end", ["the caller goes", "the server stops"])
async def test_nothing_is_left_running_when_the_last_open_call_has_ended(guard, echo, pki, end):
    async with (
        serving_mutual_tls([echo.handler()], guard, pki) as port,
        dialling(port, trust_bundle=pki.trust_bundle, caller=pki.participant("bank")) as channel,
    ):
        call = unary(channel, "Wait")
        waiting = asyncio.ensure_future(call)
        await echo.entered.wait()
        (watch,) = (task for task in asyncio.all_tasks() if task.get_name() == "recheck-open-calls")
        if end == "the caller goes":
            call.cancel()
            await asyncio.wait([watch], timeout=30)
            assert watch.done()
    await asyncio.wait([watch], timeout=30)
    assert watch.done()
    await asyncio.wait([waiting])


async def test_an_open_call_outlives_a_store_that_does_not_answer(channel, echo, revoked, guard):
    call = unary(channel, "Wait")
    waiting = asyncio.ensure_future(call)
    await echo.entered.wait()
    revoked.is_down = True

    await guard.recheck()

    assert not echo.left.is_set()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_new_call_fails_while_nobody_can_say_who_was_revoked(channel, echo, revoked):
    revoked.is_down = True

    assert type(await failure(unary(channel))) is StorageFailed
    assert echo.callers == []


async def test_a_certificate_that_expires_while_the_connection_lives_is_refused(channel, clock, echo, guard):
    failing = asyncio.create_task(failure(down(channel, "Trickle")))
    await echo.entered.wait()
    clock.advance(days=31)

    error = await failure(unary(channel))
    await guard.recheck()

    assert type(error) is Unauthenticated
    assert "expired" in error.message
    assert type(await failing) is Unauthenticated


async def test_a_caller_that_goes_away_ends_its_handler_and_is_counted_as_cancelled(channel, echo, measured):
    call = unary(channel, "Wait")
    waiting = asyncio.ensure_future(call)
    await echo.entered.wait()

    call.cancel()

    await echo.left.wait()
    assert await measured.get() == ("Wait", StatusCode.CANCELLED)
    with pytest.raises(asyncio.CancelledError):
        await waiting


# --- the handshake -------------------------------------------------------------------------------------------------


async def test_no_certificate_no_handshake(port, pki, echo):
    async with dialling(port, trust_bundle=pki.trust_bundle) as channel:
        error = await failure(unary(channel))

    assert error.reason == "UNAVAILABLE"
    assert echo.callers == []


async def test_a_certificate_of_another_ca_does_not_get_in(port, pki, echo, tmp_path):
    impostor = Pki.create(tmp_path / "other").participant("bank")
    async with dialling(port, trust_bundle=pki.trust_bundle, caller=impostor) as channel:
        error = await failure(unary(channel))

    assert error.reason == "UNAVAILABLE"
    assert echo.callers == []


async def test_an_expired_certificate_does_not_get_in(port, pki, echo):
    expired = pki.participant("bank", age=timedelta(days=31))
    async with dialling(port, trust_bundle=pki.trust_bundle, caller=expired) as channel:
        error = await failure(unary(channel))

    assert error.reason == "UNAVAILABLE"
    assert echo.callers == []


async def test_a_server_certificate_is_no_callers(port, pki, echo):
    async with dialling(port, trust_bundle=pki.trust_bundle, caller=pki.server_as_client()) as channel:
        error = await failure(unary(channel))

    assert error.reason in {"UNAVAILABLE", "UNAUTHENTICATED"}
    assert echo.callers == []


async def test_a_client_does_not_talk_to_a_server_of_another_ca(port, pki, echo, tmp_path):
    other = Pki.create(tmp_path / "other")
    async with dialling(port, trust_bundle=other.trust_bundle, caller=pki.participant("bank")) as channel:
        error = await failure(unary(channel))

    assert "certificate does not verify" in error.message
    assert echo.callers == []


async def test_a_participants_certificate_does_not_pass_for_the_coordinators(guard, pki, echo, tmp_path):
    participant = pki.participant("bank")
    certificate, key = tmp_path / "c.pem", tmp_path / "c.key"
    certificate.write_bytes(participant.chain)
    key.write_bytes(participant.key)
    tls = mutual_tls(ServerTls(certificate, key, (pki.folder.authority_certificate,)))
    async with (
        serving([echo.handler()], guard, tls) as port,
        dialling(port, trust_bundle=pki.trust_bundle, caller=pki.participant("clinic")) as channel,
    ):
        error = await failure(unary(channel))

    assert "certificate does not verify" in error.message


async def test_a_member_of_another_federation_is_nobody_here_even_under_a_trusted_ca(pki, port, echo, tmp_path):
    other = Pki.create(tmp_path / "other", FederationId("south"))
    pki.folder.trusted.mkdir()
    (pki.folder.trusted / "south.pem").write_bytes(other.trust_bundle)
    try:
        async with dialling(port, trust_bundle=pki.trust_bundle, caller=other.participant("bank")) as channel:
            error = await failure(unary(channel))
    finally:
        (pki.folder.trusted / "south.pem").unlink()
        pki.folder.trusted.rmdir()

    assert type(error) is Unauthenticated
    assert "'south'" in error.message
    assert echo.callers == []


# --- files that change ---------------------------------------------------------------------------------------------


async def test_a_further_ca_counts_from_the_next_handshake_on(guard, echo, tmp_path):
    pki, partner = Pki.create(tmp_path / "own"), Pki.create(tmp_path / "partner")
    caller = partner.participant("hospital")
    async with serving_mutual_tls([echo.handler()], guard, pki) as port:
        async with dialling(port, trust_bundle=pki.trust_bundle, caller=caller) as channel:
            before = await failure(unary(channel))
        pki.folder.trusted.mkdir()
        (pki.folder.trusted / "hospital.pem").write_bytes(partner.trust_bundle)
        async with dialling(port, trust_bundle=pki.trust_bundle, caller=caller) as channel:
            answer = await unary(channel)
        (pki.folder.trusted / "hospital.pem").unlink()
        async with dialling(port, trust_bundle=pki.trust_bundle, caller=caller) as channel:
            after = await failure(unary(channel))

    assert before.reason == "UNAVAILABLE"
    assert answer == b"participants/hospital"
    assert after.reason == "UNAVAILABLE"


async def test_a_renewed_server_certificate_is_presented_and_a_half_written_one_is_not(guard, echo, tmp_path):
    pki = Pki.create(tmp_path)
    caller = pki.participant("bank")
    async with serving_mutual_tls([echo.handler()], guard, pki) as port:
        old_key = pki.folder.server_key.read_bytes()
        renewed = pki.authority.issue_server(["127.0.0.1"], now=pki.now)
        pki.folder.server_certificate.write_text(renewed.chain_pem)
        with structlog.testing.capture_logs() as lines:
            async with dialling(port, trust_bundle=pki.trust_bundle, caller=caller) as channel:
                await unary(channel)
        pki.folder.server_key.write_bytes(renewed.key_pem)
        async with dialling(port, trust_bundle=pki.trust_bundle, caller=caller) as channel:
            await unary(channel)
        served = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))

    assert old_key != renewed.key_pem
    assert "tls_files_not_usable" in [line["event"] for line in lines]
    assert served.strip() == renewed.chain_pem.strip()


async def test_two_servers_do_not_share_a_port_in_silence(port, pki, guard):
    second = grpc.aio.server(interceptors=[guard], options=server_options())

    with pytest.raises(RuntimeError, match="address"):
        second.add_secure_port(f"127.0.0.1:{port}", mutual_tls(pki.tls))
