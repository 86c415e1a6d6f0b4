"""Old and new talk: what a newer side sends more is borne where it only tells, and refused where it asks."""

from __future__ import annotations

from contextlib import closing

import grpc
import pytest

from accord.v1 import resources_pb2, round_pb2, round_pb2_grpc
from common.assignments import ReviewRun
from common.clock import SystemClock
from common.errors import InvalidArgument
from common.rpc.assignments import is_understood, to_proto
from common.rpc.channels import VERSION_METADATA
from common.rpc.unknown import unknown_fields
from common.version import software_version
from coordinator.services import convert
from participant.client import CoordinatorClient
from participant.network.dialling import dial, straight
from participant.preflight import network

# Field 1000 of wire type 2 with the text "newer": no message of this version has it.
NEWER = b"\xc2\x3e\x05newer"


@pytest.fixture
def identity(coordinator, tmp_path):
    return coordinator.enroll(tmp_path / "identity")


class NewerCoordinator(round_pb2_grpc.RoundServiceServicer):
    """Asks for what it will, in bytes: a server of tomorrow."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def GetAssignment(self, request, context):
        return round_pb2.GetAssignmentResponse.FromString(self.answer)


def asked_by(answer: bytes):
    """What a site of this version takes from an answer."""
    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(1))
    round_pb2_grpc.add_RoundServiceServicer_to_server(NewerCoordinator(answer), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with closing(grpc.insecure_channel(f"127.0.0.1:{port}")) as channel:
            client = CoordinatorClient(channel, channel, software_version="0.0.1")
            return client.assignments("", wait_seconds=0)
    finally:
        server.stop(None).wait()


def test_a_newer_site_is_served_and_its_version_is_kept(coordinator, identity):
    request = round_pb2.GetAssignmentRequest.FromString(
        round_pb2.GetAssignmentRequest(software_version="99.1").SerializeToString() + NEWER
    )
    assert unknown_fields(request) == ("1000",)
    with dial(identity) as channel:
        round_pb2_grpc.RoundServiceStub(channel).GetAssignment(request, timeout=20)
    with coordinator.store.read() as reader:
        assert reader.participant("bank").software_version == "99.1"


def test_every_authenticated_answer_says_the_coordinators_version(coordinator, identity):
    assert (
        network.ask(identity, straight(identity.coordinator_address), clock=SystemClock()).software_version
        == software_version()
    )
    with dial(identity) as channel:
        stub = round_pb2_grpc.RoundServiceStub(channel)
        _, call = stub.GetCharter.with_call(round_pb2.GetCharterRequest(), timeout=20)
    assert (VERSION_METADATA, software_version()) in call.trailing_metadata()


def test_a_task_that_is_too_new_keeps_a_site_from_no_other(coordinator):
    known = ReviewRun("support", "aa" * 32)
    unknown = round_pb2.Assignment.FromString(NEWER)
    later_state = round_pb2.Assignment(finish_run=round_pb2.FinishRun(run="support", adapter_digest="bb" * 32))
    later_state.finish_run.state = 99  # type: ignore[assignment]
    answer = round_pb2.GetAssignmentResponse(tag="t", assignments=[unknown, to_proto(known), later_state])

    understood = asked_by(answer.SerializeToString() + NEWER)

    assert understood.tasks == (known,)
    assert understood.not_understood == 2
    assert understood.tag == "t"


def test_a_field_more_in_a_known_task_is_borne():
    known = ReviewRun("support", "aa" * 32)
    wire = round_pb2.Assignment.FromString(to_proto(known).SerializeToString() + NEWER)
    assert is_understood(wire)
    answer = round_pb2.GetAssignmentResponse(assignments=[wire])
    assert asked_by(answer.SerializeToString()).tasks == (known,)


@pytest.mark.parametrize("within", ["", "forming"])
def test_settings_of_a_plan_that_are_too_new_are_refused_and_not_forgotten(within):
    """A newer client may have asked for privacy by them: a run without it must not begin."""
    settings = resources_pb2.PlanSettings()
    if within:
        settings.forming.MergeFromString(NEWER)
    else:
        settings.MergeFromString(NEWER)
    path = "forming.1000" if within else "1000"
    with pytest.raises(InvalidArgument, match=rf"does not know \({path}\): upgrade"):
        convert.plan_settings(settings)
