"""A round's life from its audit lines."""

from __future__ import annotations

from datetime import timedelta

import pytest

from coordinator.web.views.phases import BEGUN_BY, PHASES, WIDTH, steps, timeline
from tests.fakes import START_OF_TIME as NOW

LINES = tuple(BEGUN_BY)


def at(seconds: float) -> str:
    return (NOW + timedelta(seconds=seconds)).isoformat()


def round_(state, *, ended=None, phase=0):
    return {
        "state": state,
        "create_time": at(0),
        "phase_start_time": at(phase),
        "end_time": at(ended) if ended is not None else None,
    }


def events(*seconds):
    found = [{"action": action, "time": at(second)} for action, second in zip(LINES, seconds, strict=False)]
    return [{"action": "update_received", "time": at(1)}, *reversed(found)]


def test_a_round_that_succeeded_has_all_phases_one_after_the_other():
    found = timeline(round_("succeeded", ended=100), events(0, 10, 70, 90, 95), NOW + timedelta(hours=1))
    assert [phase.name for phase in found] == list(PHASES)
    assert [phase.length(NOW).total_seconds() for phase in found] == [10, 60, 20, 5, 5]
    assert not any(phase.ended_badly for phase in found)
    assert sum(phase.width for phase in found) == pytest.approx(WIDTH, abs=1)
    assert [phase.x for phase in found] == sorted(phase.x for phase in found)


def test_an_open_round_ends_now_and_a_failed_one_where_it_failed():
    now = NOW + timedelta(seconds=40)
    found = timeline(round_("training", phase=10), events(0, 10), now)
    assert (found[-1].name, found[-1].end, found[-1].length(now).total_seconds()) == ("training", None, 30)
    failed = timeline(round_("failed", ended=30), events(0, 10), now)
    assert [(phase.name, phase.ended_badly) for phase in failed] == [("forming", False), ("training", True)]


def test_without_audit_lines_the_round_itself_says_what_it_knows():
    found = timeline(round_("training", phase=10), [], NOW + timedelta(seconds=40))
    assert [phase.name for phase in found] == ["forming", "training"]


def test_a_phase_of_no_time_is_still_to_be_seen():
    found = timeline(round_("succeeded", ended=7200), events(0, 0, 7200, 7200, 7200), NOW)
    assert all(phase.width > 5 for phase in found)
    assert all(phase.width > 0 for phase in timeline(round_("succeeded", ended=0), events(0, 0, 0, 0, 0), NOW))


@pytest.mark.parametrize("state", PHASES)
def test_steps_name_what_is_done_what_goes_on_and_what_is_ahead(state):
    found = [step.standing for step in steps(state)]
    assert found.count("now") == 1
    assert found == sorted(found, key=("done", "now", "ahead").index)


def test_a_round_that_is_over_has_no_steps():
    assert steps("succeeded") == steps("unspecified") == ()
