"""Every assignment goes over the wire and comes back as it was; what is unknown is refused, not guessed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import get_args

import pytest

from accord.v1 import round_pb2
from common.assignments import (
    AdvertiseKeys,
    Assignment,
    CloseRound,
    ConfirmShares,
    DepositShares,
    FinishRound,
    FinishRun,
    PrepareUpdate,
    ReviewRun,
    UploadUpdate,
)
from common.errors import InvalidArgument
from common.rpc.assignments import ROUND_KINDS, ROUND_STATES, RUN_STATES, from_proto, to_proto
from common.states import RoundKind, RoundState, RunState

AT = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
TASKS: tuple[Assignment, ...] = (
    ReviewRun("run", "aa" * 32),
    AdvertiseKeys("run", 2, 17),
    DepositShares("run", 2),
    ConfirmShares("run", 2),
    *(PrepareUpdate("run", 3, kind, "bb" * 32, '{"templates":[]}', AT) for kind in RoundKind),
    UploadUpdate("run", 3, 2, b"\x00start\xff", AT),
    CloseRound("run", 3, 2, b"\x00start\xff"),
    *(FinishRound("run", 3, state, "cc" * 32) for state in RoundState),
    FinishRound("run", 3, RoundState.FAILED, None),
    *(FinishRun("run", state, "dd" * 32) for state in RunState),
)


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_an_assignment_arrives_as_it_was_sent(task: Assignment):
    content = to_proto(task).SerializeToString()
    assert from_proto(round_pb2.Assignment.FromString(content)) == task


def test_every_assignment_and_every_task_of_the_api_is_tried():
    assert {type(task) for task in TASKS} == set(get_args(Assignment))
    sent = {to_proto(task).WhichOneof("task") for task in TASKS}
    assert sent == {field.name for field in round_pb2.Assignment.DESCRIPTOR.oneofs_by_name["task"].fields}


@pytest.mark.parametrize(
    ("table", "states"), [(ROUND_KINDS, RoundKind), (ROUND_STATES, RoundState), (RUN_STATES, RunState)]
)
def test_every_state_has_a_number_of_its_own_that_is_not_the_unspecified_one(table, states):
    assert set(table) == set(states)
    assert len(set(table.values())) == len(table)
    assert 0 not in table.values()


def test_a_task_or_a_state_that_this_version_does_not_know_is_refused():
    with pytest.raises(InvalidArgument, match="upgrade"):
        from_proto(round_pb2.Assignment())
    wire = to_proto(FinishRun("run", RunState.FAILED, "dd" * 32))
    wire.finish_run.state = 99  # type: ignore[assignment]
    with pytest.raises(InvalidArgument, match="upgrade"):
        from_proto(wire)


PATHS = ("../outside", "/etc", "..", "", "run/../..", "Run")


@pytest.mark.parametrize("run", PATHS)
@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_a_path_does_not_pass_for_a_runs_name(task: Assignment, run: str):
    """A site's folders are named by runs, and are deleted with them."""
    with pytest.raises(InvalidArgument, match="is not an id"):
        from_proto(to_proto(replace(task, run=run)))


@pytest.mark.parametrize("digest", ["../outside", "/etc", "AA" * 32, "aa" * 31])
@pytest.mark.parametrize(
    "task", [task for task in TASKS if hasattr(task, "adapter") and task.adapter], ids=lambda task: type(task).__name__
)
def test_a_path_does_not_pass_for_an_adapters_digest(task: PrepareUpdate | FinishRound | FinishRun, digest: str):
    with pytest.raises(InvalidArgument, match="is not a digest"):
        from_proto(to_proto(replace(task, adapter=digest)))
