"""Callers that want to do harm, beside those who come to work: a whole round succeeds while each of them tries."""

from __future__ import annotations

import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from accord.v1 import adapter_pb2, adapter_pb2_grpc, round_pb2, round_pb2_grpc, secure_aggregation_pb2
from common.errors import InvalidArgument, Unavailable
from common.rpc.channels import channel_options
from common.rpc.status import raised_as_errors
from common.rpc.tls import channel_credentials
from demo.ports import HOST
from participant.client import CoordinatorClient
from participant.identity import SiteIdentity
from tests.rpc.federation import DEFAULTS, Federation, MadeUpTrainer, base_model, delta_of, federation_in

# Another address of this host than the one from which the sites call.
ATTACKER = "127.0.0.2"
PER_ADDRESS = 24
OPEN_CALLS = 16
DEADLINE = 30.0
HELLO = bytes.fromhex("160301020001")  # how a TLS handshake begins, cut off
# What the attackers' own end takes in without being read: it is in this process too, and not what is measured.
SMALL_WINDOW = ("grpc.http2.lookahead_bytes", 64 * 1024)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    limits = f"connections_per_address = {PER_ADDRESS}\nopen_calls = {OPEN_CALLS}\n"
    with federation_in(tmp_path, limits=limits) as made:
        made.add_sites(3)
        yield made


def port_of(federation: Federation) -> int:
    assert federation.addresses is not None
    return int(federation.addresses.participants.rsplit(":", 1)[1])


def connect(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), timeout=DEADLINE, source_address=(ATTACKER, 0))


def is_closed(connection: socket.socket) -> bool:
    """Wait until the other end has closed; what it says before (a TLS alert, an HTTP/2 frame) does not matter."""
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def succeeds(federation: Federation) -> bool:
    federation.create_run()
    return bool(federation.play(1, sites=["site-0", "site-1", "site-2"])["state"] == "succeeded")


@contextmanager
def channels_of(identity: SiteIdentity, address: str, count: int) -> Iterator[list[grpc.Channel]]:
    """So many connections of one participant's."""
    credentials = channel_credentials(
        trust_bundle=identity.trust_bundle.encode(),
        certificate_chain=identity.certificate_chain.encode(),
        key=identity.key_pem,
    )
    with ExitStack() as stack:
        yield [
            stack.enter_context(grpc.secure_channel(address, credentials, options=[*channel_options(), SMALL_WINDOW]))
            for _ in range(count)
        ]


def lines(federation: Federation, actor: str) -> list[tuple[str, int]]:
    """Reason and count of each audit line about somebody's refused calls, once there is one."""
    found: list[tuple[str, int]] = []
    give_up = time.monotonic() + DEADLINE
    while not found and time.monotonic() < give_up:
        rows = federation.admin.audit_events(actor=actor, action="call_refused")
        found = [(d["reason"], d["count"]) for d in (json.loads(row["details_json"]) for row in rows)]
    return found


@pytest.mark.parametrize(
    "said",
    [b"", b"\x00" * 1000, HELLO],
    ids=["silence", "garbage", "half a handshake"],
)
def test_a_round_succeeds_beside_connections_that_never_shake_hands(federation: Federation, said: bytes) -> None:
    port = port_of(federation)
    with ExitStack() as stack:
        opened = [stack.enter_context(connect(port)) for _ in range(5 * PER_ADDRESS)]
        for connection in opened:
            connection.sendall(said)

        assert succeeds(federation)

        # All but as many as one address may have are closed soon, whatever they wait for.
        assert sum(is_closed(one) for one in opened[PER_ADDRESS:]) == 4 * PER_ADDRESS
    if said in (b"", HELLO):  # the transport closes the others itself, as soon as it has read
        assert federation.metric("accord_refusals_total", reason="TOO_MANY_CONNECTIONS") >= 1
        assert ("TOO_MANY_CONNECTIONS", 1) in lines(federation, f"address/{ATTACKER}")
        assert len(lines(federation, f"address/{ATTACKER}")) <= 2


def test_a_round_succeeds_while_somebody_connects_again_and_again(federation: Federation) -> None:
    port, stop = port_of(federation), threading.Event()

    def attack() -> None:
        held: list[socket.socket] = []
        while not stop.is_set():
            try:
                held.append(connect(port))
                held[-1].sendall(HELLO)
            except OSError:
                continue
            if len(held) > 200:
                held.pop(0).close()
        for one in held:
            one.close()

    attackers = [threading.Thread(target=attack) for _ in range(2)]
    for attacker in attackers:
        attacker.start()
    try:
        assert succeeds(federation)
    finally:
        stop.set()
        for attacker in attackers:
            attacker.join()


def test_one_participant_with_a_thousand_calls_has_as_many_as_one_may_and_the_others_their_round(
    federation: Federation,
) -> None:
    hostile = federation.add_site("hostile", MadeUpTrainer(delta_of(9))).connection.identity
    assert federation.addresses is not None
    request = round_pb2.GetAssignmentRequest(wait_seconds=50)
    request.known_tag = round_pb2_answer(federation, hostile)
    with channels_of(hostile, federation.addresses.participants, 10) as channels:
        calls = [
            round_pb2_grpc.RoundServiceStub(channel).GetAssignment.future(request, timeout=60)
            for channel in channels
            for _ in range(100)
        ]
        refused = threading.Semaphore(0)
        for call in calls:
            call.add_done_callback(lambda done: refused.release() if is_exhausted(done) else None)
        for _ in range(1000 - OPEN_CALLS):
            assert refused.acquire(timeout=DEADLINE)

        federation.create_run()
        found = federation.play(1, sites=["site-0", "site-1", "site-2"])
        assert found["state"] == "succeeded"
        for call in calls:
            call.cancel()
    reason, count = lines(federation, "participants/hostile")[0]
    assert (reason, count) == ("RESOURCE_EXHAUSTED", 1)
    assert (
        federation.metric("accord_refusals_total", role="participant", reason="RESOURCE_EXHAUSTED") >= 1000 - OPEN_CALLS
    )
    assert len(lines(federation, "participants/hostile")) == 1  # of a thousand refusals


def round_pb2_answer(federation: Federation, identity: SiteIdentity) -> str:
    """The tag of what there is to do now, so that the next question waits."""
    assert federation.addresses is not None
    with channels_of(identity, federation.addresses.participants, 1) as (channel,), raised_as_errors():
        return str(
            round_pb2_grpc.RoundServiceStub(channel).GetAssignment(round_pb2.GetAssignmentRequest(), timeout=10).tag
        )


def is_exhausted(call: Any) -> bool:
    return not call.cancelled() and call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_downloads_that_are_never_read_take_bounded_memory_and_end_with_their_caller(federation: Federation) -> None:
    hostile = federation.add_site("hostile", MadeUpTrainer(delta_of(9))).connection.identity
    federation.create_run("small", is_started=False)
    large = {**DEFAULTS, "base_model_json": base_model(size=200_000).to_json(), "rank": 8}
    run = federation.admin.create_run("large", large)
    assert federation.addresses is not None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with channels_of(hostile, federation.addresses.participants, 1) as (channel,):
        stub = adapter_pb2_grpc.AdapterServiceStub(channel)
        joining = round_pb2.JoinRunRequest(
            run="large", plan_digest=run["plan_digest"], base_model_digest=run["plan"]["base_model"]["digest"]
        )
        with raised_as_errors():
            round_pb2_grpc.RoundServiceStub(channel).JoinRun(joining, timeout=10)
        request = adapter_pb2.DownloadAdapterRequest(digest=run["adapter_digest"])
        streams = [stub.DownloadAdapter(request) for _ in range(OPEN_CALLS)]
        firsts = [next(stream) for stream in streams]  # all of them are under way, and nobody reads on
        assert all(first.chunk for first in firsts)
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.DownloadAdapter(request))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

        federation.admin.cancel_run("runs/small", reason="")
        assert succeeds(federation)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown < OPEN_CALLS * 10, f"{grown:.0f} MiB for {OPEN_CALLS} downloads of 24 MiB each"

        federation.admin.revoke_participant("participants/hostile", reason="never reads")
        for stream in streams:
            with pytest.raises(grpc.RpcError) as caught:
                for _ in stream:
                    pass
            assert "was revoked: never reads" in str(caught.value.details())


def test_uploads_that_come_drop_by_drop_end_with_their_round_and_the_others_have_theirs(federation: Federation) -> None:
    hostile = federation.add_site("hostile", MadeUpTrainer(delta_of(9)))
    federation.create_run()
    upload, ended, streams = CoordinatorClient.upload, threading.Event(), list[Any]()

    def dribble(client: CoordinatorClient, run: str, round_: int, **parts: Any) -> None:
        if client is not hostile.client:
            upload(client, run, round_, **parts)
            return
        header = secure_aggregation_pb2.UploadHeader(
            run=run,
            round=round_,
            chunk_count=len(parts["chunk_sizes"]),
            total_bytes=parts["spool"].stat().st_size,
            chunk_digests=parts["chunk_digests"],
        )

        def messages() -> Iterator[secure_aggregation_pb2.UploadMaskedUpdateRequest]:
            yield secure_aggregation_pb2.UploadMaskedUpdateRequest(header=header)
            ended.wait()

        if not streams:
            streams.extend(client._uploads.UploadMaskedUpdate.future(messages()) for _ in range(OPEN_CALLS - 1))
        raise Unavailable("slowly")

    try:
        with patch.object(CoordinatorClient, "upload", dribble):
            found = federation.play(1)
    finally:
        ended.set()
    assert found["state"] == "succeeded"
    assert sorted(found["survivors"]) == [f"participants/site-{index}" for index in range(3)]
    assert federation.participations(1)["hostile"] == ("dropped", "WINDOW_PASSED")
    assert {stream.code() for stream in streams} == {grpc.StatusCode.ABORTED}


def call_with(channel: grpc.Channel, method: MethodDescriptor, content: bytes) -> None:
    path = f"/{method.containing_service.full_name}/{method.name}"
    whole: Any = content  # the stubs know of no bytes without a serializer
    if method.client_streaming:
        channel.stream_unary(path)(iter([whole]), timeout=DEADLINE)
    elif method.server_streaming:
        list(channel.unary_stream(path)(whole, timeout=DEADLINE))
    else:
        channel.unary_unary(path)(whole, timeout=DEADLINE)


def test_bytes_that_are_no_message_are_refused_in_every_call(federation: Federation) -> None:
    hostile = federation.sites["site-0"].connection.identity
    assert federation.addresses is not None
    services = [
        *round_pb2.DESCRIPTOR.services_by_name.values(),
        *adapter_pb2.DESCRIPTOR.services_by_name.values(),
        *secure_aggregation_pb2.DESCRIPTOR.services_by_name.values(),
    ]
    methods = [method for service in services for method in service.methods]
    with channels_of(hostile, federation.addresses.participants, 1) as (channel,):
        for method in methods:
            with pytest.raises(InvalidArgument, match="500 bytes are no message"), raised_as_errors():
                call_with(channel, method, b"\xff" * 500)
    refused = federation.metric("accord_refusals_total", role="participant", reason="INVALID_ARGUMENT")
    assert refused == len(methods)
    assert lines(federation, "participants/site-0") == [("INVALID_ARGUMENT", 1)]
    assert succeeds(federation)
