"""What a participant is asked to do, for every state that a run, a round, a key epoch and it can be in."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from common.assignments import (
    AdvertiseKeys,
    CloseRound,
    ConfirmShares,
    DepositShares,
    FinishRound,
    FinishRun,
    PrepareUpdate,
    ReviewRun,
    UploadUpdate,
)
from common.errors import MemberAtFault
from common.states import RoundState, RunState
from coordinator.rounds.assignments import Standing, assignments, joins_by_asking
from coordinator.rounds.model import EpochState, MessageKind, ParticipationState
from tests.unit.rounds import made

COHORT = ("a", "b", "c")
PREVIOUS = made.round_(RoundState.SUCCEEDED, number=1, result_adapter="dd" * 32)


def standing(
    *,
    participant="a",
    run=RunState.RUNNING,
    member=True,
    round_=RoundState.TRAINING,
    epoch=EpochState.READY,
    state=ParticipationState.PRESENT,
    sent=(),
) -> Standing:
    return Standing(
        participant=participant,
        run=made.run(run),
        member=made.member(participant) if member else None,
        round=None if round_ is None else made.round_(round_, cohort=COHORT, start=b"start", epoch=1),
        previous_round=PREVIOUS,
        epoch=None if epoch is None else made.epoch(epoch, members=COHORT, usable=COHORT),
        participation=None if state is None else made.participation(participant, state),
        sent=frozenset(sent),
    )


def kinds(found: Standing) -> set[type]:
    return {type(task) for task in assignments(found)}


ROUNDS = (None, *(state for state in RoundState if not state.is_over))
EPOCHS = (None, *EpochState)
STATES = (None, *ParticipationState)
SENT = (
    (),
    (MessageKind.ADVERTISEMENT, MessageKind.DEPOSIT, MessageKind.CONFIRMATION, MessageKind.REVEAL),
)
EVERYTHING = list(product(ROUNDS, EPOCHS, STATES, SENT))


def test_in_a_running_run_a_member_is_asked_for_exactly_what_the_present_steps_wait_for():
    for round_, epoch, state, sent in EVERYTHING:
        found = kinds(standing(round_=round_, epoch=epoch, state=state, sent=sent))
        expected: set[type] = {FinishRound}
        if not sent:
            expected |= {
                EpochState.ADVERTISING: {AdvertiseKeys},
                EpochState.SHARING: {DepositShares},
                EpochState.CONFIRMING: {ConfirmShares},
            }.get(epoch, set())  # type: ignore[arg-type]
        if round_ is RoundState.TRAINING and state is ParticipationState.PRESENT:
            expected |= {PrepareUpdate}
        if round_ is RoundState.COLLECTING and state is ParticipationState.PREPARED and epoch is not None:
            expected |= {UploadUpdate}
        if round_ is RoundState.UNMASKING and not sent and epoch is not None:
            expected |= {CloseRound}
        assert found == expected, (round_, epoch, state, sent)


def test_what_one_is_asked_for_does_not_depend_on_having_been_asked():
    for round_, epoch, state, sent in EVERYTHING:
        found = standing(round_=round_, epoch=epoch, state=state, sent=sent)
        assert assignments(found) == assignments(replace(found))


def test_one_outside_the_cohort_and_the_roster_is_never_asked_for_their_messages():
    inside = {DepositShares, ConfirmShares, UploadUpdate, CloseRound}
    for round_, epoch, state, sent in EVERYTHING:
        found = standing(participant="outsider", round_=round_, epoch=epoch, state=state, sent=sent)
        assert not kinds(found) & inside


def test_one_who_has_not_joined_is_asked_to_review_and_for_nothing_else():
    for round_, epoch, state, sent in EVERYTHING:
        stranger = standing(member=False, round_=round_, epoch=epoch, state=state, sent=sent)
        assert assignments(stranger) == (ReviewRun("run", "aa" * 32),)
        declined = replace(stranger, member=made.member("a", joined=False, reason="POLICY_REFUSAL"))
        assert assignments(declined) == assignments(stranger)


def test_one_who_has_broken_the_protocol_is_asked_for_nothing():
    for round_, epoch, state, sent in EVERYTHING:
        expelled = replace(
            standing(round_=round_, epoch=epoch, state=state, sent=sent),
            member=made.member("a", joined=False, reason=MemberAtFault.reason),
        )
        assert assignments(expelled) == ()
        assert joins_by_asking(expelled) is None


@pytest.mark.parametrize("state", [state for state in RunState if state.is_over])
def test_the_end_of_a_run_is_told_to_its_members_alone_with_the_end_of_its_last_round(state):
    over = standing(run=state, round_=None, epoch=None, state=None)
    assert assignments(over) == (
        FinishRound("run", 1, RoundState.SUCCEEDED, "dd" * 32),
        FinishRun("run", state, "bb" * 32),
    )
    assert assignments(replace(over, member=None)) == ()
    assert assignments(replace(over, member=made.member("a", joined=False))) == ()


def test_asking_makes_a_member_present_while_a_round_forms_or_trains_and_never_twice():
    for round_, state in product(ROUNDS, STATES):
        found = joins_by_asking(standing(round_=round_, state=state))
        if state is None and round_ in (RoundState.FORMING, RoundState.TRAINING):
            assert found is not None
        else:
            assert found is None
    assert joins_by_asking(standing(member=False, state=None)) is None


def test_the_most_urgent_comes_first():
    found = standing(round_=RoundState.UNMASKING, epoch=EpochState.ADVERTISING)
    assert [type(task) for task in assignments(found)] == [CloseRound, AdvertiseKeys, FinishRound]
