"""The three tables are the machines: complete, without a way out of an end, and nothing else moves a state."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from common.errors import TransitionNotAllowed
from common.secagg import ClosedGroup
from common.states import RoundState, RunState
from coordinator.rounds import events
from coordinator.rounds.lifecycle import (
    EPOCH_TRANSITIONS,
    ROUND_TRANSITIONS,
    RUN_TRANSITIONS,
    advance_epoch,
    advance_round,
    advance_run,
)
from coordinator.rounds.model import EpochState
from tests.unit.rounds import made

LATER = made.NOW.replace(hour=13)
DEADLINE = made.NOW.replace(hour=14)

CLOSED = ClosedGroup("ner", 1, 3)
EVENTS: dict[type, Any] = {
    events.Opened: events.Opened(LATER, DEADLINE),
    events.CohortChosen: events.CohortChosen(LATER, DEADLINE, 7, ("a", "b", "c"), (CLOSED,), b"start"),
    events.SurvivorsBound: events.SurvivorsBound(LATER, DEADLINE, ("a", "b")),
    events.SharesRevealed: events.SharesRevealed(LATER, DEADLINE),
    events.DeadlineExtended: events.DeadlineExtended(LATER, DEADLINE),
    events.Aggregated: events.Aggregated(LATER, "ff" * 32, (("loss", 1.0),)),
    events.RoundFailed: events.RoundFailed(LATER, "WHY", "because"),
    events.RoundCancelled: events.RoundCancelled(LATER, "because"),
    events.KeysAdvertised: events.KeysAdvertised(LATER, DEADLINE, ("a", "b", "c")),
    events.SharesDeposited: events.SharesDeposited(LATER, DEADLINE),
    events.SharesConfirmed: events.SharesConfirmed(LATER, ("a", "b")),
    events.EpochClosed: events.EpochClosed(LATER, "because"),
    events.EpochFailed: events.EpochFailed(LATER, "WHY", "because"),
    events.RunStarted: events.RunStarted(LATER),
    events.RunPaused: events.RunPaused(LATER),
    events.RunResumed: events.RunResumed(LATER),
    events.RunCancelled: events.RunCancelled(LATER, "because"),
    events.RunFinished: events.RunFinished(LATER),
    events.RunFailed: events.RunFailed(LATER, "WHY", "because"),
    events.RunRolledBack: events.RunRolledBack(LATER, "ee" * 32, 1.5),
}

MACHINES: tuple[tuple[Any, Any, Any, Any, Any], ...] = (
    (RoundState, events.RoundEvent, ROUND_TRANSITIONS, advance_round, made.round_),
    (EpochState, events.EpochEvent, EPOCH_TRANSITIONS, advance_epoch, made.epoch),
    (RunState, events.RunEvent, RUN_TRANSITIONS, advance_run, made.run),
)
CELLS = [
    pytest.param(advance, make, state, kind, table.get((state, kind)), id=f"{state.value} {kind.__name__}")
    for states, kinds, table, advance, make in MACHINES
    for state in states
    for kind in get_args(kinds)
]


@pytest.mark.parametrize(("advance", "make", "state", "kind", "expected"), CELLS)
def test_an_event_leads_where_the_table_says_or_is_not_allowed(advance, make, state, kind, expected):
    before = make(state)

    if expected is None:
        with pytest.raises(TransitionNotAllowed, match=f"is {state.value}: {kind.__name__} does not apply"):
            advance(before, EVENTS[kind])
    else:
        after = advance(before, EVENTS[kind])
        assert (after.state, after.version) == (expected, before.version + 1)
        assert before == make(state)


@pytest.mark.parametrize(("states", "kinds", "table", "advance", "make"), MACHINES)
def test_an_end_has_no_exit_and_every_other_state_has_a_way_to_one(states, kinds, table, advance, make):
    exits: dict[Any, set[Any]] = {state: set() for state in states}
    for (state, kind), target in table.items():
        assert kind in get_args(kinds)
        exits[state].add(target)
    for state in states:
        if state.is_over:
            assert not exits[state]
        else:
            assert any(target.is_over for target in exits[state])


def test_every_state_of_a_round_but_the_first_is_reached():
    assert set(ROUND_TRANSITIONS.values()) == set(RoundState) - {RoundState.FORMING}


def test_a_rounds_row_carries_what_its_events_bring():
    forming = made.round_(RoundState.FORMING)
    training = advance_round(forming, EVENTS[events.Opened])
    collecting = advance_round(training, EVENTS[events.CohortChosen])
    unmasking = advance_round(collecting, EVENTS[events.SurvivorsBound])
    aggregating = advance_round(unmasking, EVENTS[events.SharesRevealed])
    done = advance_round(aggregating, EVENTS[events.Aggregated])

    assert (training.phase_started_at, training.deadline) == (LATER, DEADLINE)
    assert (collecting.epoch, collecting.cohort, collecting.start) == (7, ("a", "b", "c"), b"start")
    assert collecting.closed_groups == (CLOSED,)
    assert unmasking.survivors == ("a", "b")
    assert (done.result_adapter, done.metrics, done.ended_at) == ("ff" * 32, (("loss", 1.0),), LATER)


def test_an_extension_moves_the_deadline_and_not_the_beginning_of_the_phase():
    collecting = made.round_(RoundState.COLLECTING)
    extended = advance_round(collecting, EVENTS[events.DeadlineExtended])

    assert (extended.deadline, extended.phase_started_at) == (DEADLINE, collecting.phase_started_at)


def test_a_rollback_forgets_the_candidate_and_keeps_the_state():
    paused = made.run(RunState.PAUSED, candidate_adapter="11" * 32, accepted_loss=9.0)
    after = advance_run(paused, EVENTS[events.RunRolledBack])

    assert (after.state, after.accepted_adapter, after.candidate_adapter) == (RunState.PAUSED, "ee" * 32, None)
    assert after.accepted_loss == 1.5
    assert after.newest_adapter == "ee" * 32


def test_every_event_of_the_three_machines_is_tried():
    assert set(EVENTS) == {kind for _, kinds, *_ in MACHINES for kind in get_args(kinds)}
