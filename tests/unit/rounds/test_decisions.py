"""When phases close: never below quorum or floor, always by a hard limit, early when nothing is left to wait for."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from common.states import RoundKind, RoundState, RunState
from coordinator.rounds.decisions import (
    HARD_LIMIT_WINDOWS,
    Close,
    Extend,
    Fail,
    MakeKeys,
    close_collecting,
    close_forming,
    close_key_step,
    close_training,
    may_open_round,
    next_round_kind,
)
from coordinator.rounds.model import EpochState, ParticipationState
from tests.unit.rounds import made

NAMES = tuple("abcdefgh")
AFTER = made.NOW + timedelta(seconds=made.WINDOW)
S = ParticipationState

some_names = st.sets(st.sampled_from(NAMES)).map(lambda names: tuple(sorted(names)))
moments = st.integers(0, 2 * made.WINDOW).map(lambda seconds: made.NOW + timedelta(seconds=seconds))
quorums = st.integers(3, 8)


def participations(*states):
    return st.dictionaries(st.sampled_from(NAMES), st.sampled_from(states)).map(
        lambda found: tuple(made.participation(name, state) for name, state in sorted(found.items()))
    )


@given(some_names, participations(S.PRESENT, S.FAILED, S.DROPPED), quorums, moments)
def test_forming_closes_with_its_quorum_or_fails_and_is_over_at_its_deadline(joined, rows, quorum, now):
    decision = close_forming(
        made.round_(RoundState.FORMING), made.with_quorum(quorum), joined=joined, participations=rows, now=now
    )

    present = {row.participant for row in rows if row.state is S.PRESENT}
    match decision:
        case Close(participants):
            assert set(participants) == present
            assert len(present) >= quorum
        case Fail(_, message):
            assert len(present) < quorum
            assert all(name in message for name in set(joined) - present)
            assert now >= AFTER
        case None:
            assert now < AFTER


def test_forming_closes_at_once_when_all_who_joined_are_there():
    rows = tuple(made.participation(name) for name in "abc")
    assert close_forming(
        made.round_(RoundState.FORMING), made.plan(), joined=tuple("abc"), participations=rows, now=made.NOW
    ) == Close(("a", "b", "c"))


@given(
    participations(S.PRESENT, S.PREPARED, S.FAILED, S.DROPPED),
    st.none() | some_names,
    quorums,
    st.integers(0, 8),
    moments,
)
def test_training_never_closes_below_quorum_or_floor_and_is_over_at_its_deadline(rows, usable, quorum, floor, now):
    epoch = None if usable is None else made.epoch(usable=usable)
    decision = close_training(
        made.round_(), made.with_quorum(quorum), epoch=epoch, floor=floor, participations=rows, now=now
    )

    prepared = {row.participant for row in rows if row.state is S.PREPARED}
    waiting = any(row.state is S.PRESENT for row in rows)
    match decision:
        case Close(cohort):
            assert set(cohort) == prepared & set(usable or ())
            assert len(cohort) >= max(quorum, floor)
            assert not waiting or now >= AFTER
        case Fail(_, message):
            assert len(prepared & set(usable or ())) < max(quorum, floor)
            assert f"of at least {max(quorum, floor)}" in message
        case MakeKeys():
            assert usable is not None
            assert prepared - set(usable)
            assert not waiting
            assert now < AFTER
        case None:
            assert now < AFTER


def test_training_waits_for_keys_that_are_still_made():
    rows = tuple(made.participation(name, S.PREPARED) for name in "abc")
    assert close_training(made.round_(), made.plan(), epoch=None, floor=0, participations=rows, now=made.NOW) is None


def test_training_fails_at_once_when_too_few_can_still_be_prepared():
    rows = (made.participation("a", S.PREPARED), made.participation("b", S.PREPARED), made.participation("c", S.FAILED))
    decision = close_training(
        made.round_(), made.plan(), epoch=made.epoch(usable=tuple("abc")), floor=3, participations=rows, now=made.NOW
    )
    assert isinstance(decision, Fail)
    assert "failed: c" in decision.message


cohorts = st.integers(3, 8).map(lambda size: NAMES[:size])


@st.composite
def collecting(draw):
    cohort = draw(cohorts)
    rows = []
    for name in cohort:
        state = draw(st.sampled_from((S.PREPARED, S.UPLOADED, S.FAILED)))
        sent = draw(st.integers(0, 5))
        at = draw(st.integers(0, 6 * made.WINDOW))
        rows.append(made.participation(name, state, uploaded_bytes=sent, updated_at=made.NOW + timedelta(seconds=at)))
    outside = draw(st.booleans())
    if outside:
        rows.append(made.participation("zz", S.DROPPED))
    deadline = made.NOW + timedelta(seconds=draw(st.integers(made.WINDOW, 5 * made.WINDOW)))
    round_ = replace(made.round_(RoundState.COLLECTING), cohort=cohort, deadline=deadline)
    return round_, tuple(rows)


@given(collecting(), quorums, st.integers(2, 8), st.integers(0, 8 * made.WINDOW))
def test_collecting_never_closes_below_quorum_or_floor_and_always_by_the_hard_limit(found, quorum, floor, seconds):
    round_, rows = found
    now = made.NOW + timedelta(seconds=seconds)
    decision = close_collecting(round_, made.with_quorum(quorum), floor=floor, participations=rows, now=now)

    uploaded = {row.participant for row in rows if row.state is S.UPLOADED}
    hard_limit = made.NOW + timedelta(seconds=HARD_LIMIT_WINDOWS * made.WINDOW)
    match decision:
        case Close(survivors):
            assert set(survivors) == uploaded
            assert len(survivors) >= max(quorum, floor)
        case Fail():
            assert len(uploaded) < max(quorum, floor)
        case Extend(deadline):
            assert now < hard_limit
            assert deadline > now
            assert deadline <= hard_limit + timedelta(seconds=made.WINDOW / 2)
        case None:
            assert now < round_.deadline
    if now >= hard_limit and now >= round_.deadline:
        assert isinstance(decision, Close | Fail)


def test_collecting_goes_on_while_bytes_move_and_not_because_of_one_who_sends_nothing():
    cohort = tuple("abcd")
    rows = [made.participation(name, S.UPLOADED) for name in "abc"]
    round_ = made.round_(RoundState.COLLECTING, cohort=cohort)
    moving = made.participation("d", S.PREPARED, uploaded_bytes=1, updated_at=AFTER - timedelta(seconds=1))
    silent = made.participation("d", S.PREPARED, updated_at=AFTER - timedelta(seconds=1))

    go_on = close_collecting(round_, made.plan(), floor=3, participations=(*rows, moving), now=AFTER)
    assert go_on == Extend(AFTER + timedelta(seconds=made.WINDOW / 2))
    assert close_collecting(round_, made.plan(), floor=3, participations=(*rows, silent), now=AFTER) == Close(
        ("a", "b", "c")
    )


@given(some_names, some_names, quorums, moments)
def test_a_key_step_closes_with_its_quorum_or_fails_and_is_over_at_its_deadline(expected, done, quorum, now):
    decision = close_key_step(
        made.epoch(EpochState.SHARING),
        made.with_quorum(quorum),
        step="sharing keys",
        expected=expected,
        done=done,
        now=now,
    )

    match decision:
        case Close(participants):
            assert participants == done
            assert len(done) >= quorum
            assert now >= AFTER or set(expected) <= set(done)
        case Fail(_, message):
            assert len(done) < quorum
            assert now >= AFTER
            assert all(name in message for name in set(expected) - set(done))
        case _:
            assert now < AFTER


def test_training_rounds_come_first_and_one_evaluation_round_ends_a_run():
    plan = made.plan(rounds=2)
    kinds = [next_round_kind(made.run(rounds_succeeded=count), plan) for count in range(4)]
    assert kinds == [RoundKind.TRAIN, RoundKind.TRAIN, RoundKind.EVALUATE, RoundKind.EVALUATE]


def test_only_a_running_run_opens_rounds():
    assert [state for state in RunState if may_open_round(made.run(state))] == [RunState.RUNNING]
