"""What one participant should do now, as a function of where its run, round and key epoch stand.

An assignment stays until the state that asks for it has changed, so a lost answer costs nothing, and doing an
assignment twice is harmless.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
from common.errors import MemberAtFault
from common.states import RoundState
from coordinator.rounds.model import (
    EpochState,
    KeyEpoch,
    MessageKind,
    Participation,
    ParticipationState,
    Round,
    Run,
    RunMember,
)


@dataclass(frozen=True, slots=True)
class Standing:
    """All that decides about one participant in one run. `sent` is which protocol messages are already there."""

    participant: str
    run: Run
    member: RunMember | None
    round: Round | None
    previous_round: Round | None
    epoch: KeyEpoch | None
    participation: Participation | None
    sent: frozenset[MessageKind]


def assignments(standing: Standing) -> tuple[Assignment, ...]:
    """All that the participant should do now, most urgent first; none means: wait."""
    run, member = standing.run, standing.member
    has_joined = member is not None and member.joined
    if run.state.is_over:
        return (*_finishing(standing), FinishRun(run.name, run.state, run.accepted_adapter)) if has_joined else ()
    if member is not None and member.reason == MemberAtFault.reason:
        return ()
    if not has_joined:
        # One that has declined is asked again, and looks again when its daemon starts anew with another policy.
        return (ReviewRun(run.name, run.plan_digest),)
    return (*_closing(standing), *_key_setup(standing), *_preparing(standing), *_finishing(standing))


def joins_by_asking(standing: Standing) -> Round | None:
    """The round in which the participant becomes present by this very call, if there is one."""
    round_, member = standing.round, standing.member
    if round_ is None or member is None or not member.joined or standing.participation is not None:
        return None
    return round_ if round_.state in (RoundState.FORMING, RoundState.TRAINING) else None


def _closing(standing: Standing) -> Sequence[Assignment]:
    round_ = standing.round
    if round_ is None or standing.epoch is None:
        return ()
    if standing.participant not in round_.cohort:
        return ()
    if round_.state is RoundState.UNMASKING and MessageKind.REVEAL not in standing.sent:
        return (CloseRound(round_.run, round_.number, round_.epoch, round_.start),)
    is_prepared = standing.participation is not None and standing.participation.state is ParticipationState.PREPARED
    if round_.state is RoundState.COLLECTING and is_prepared:
        return (UploadUpdate(round_.run, round_.number, round_.epoch, round_.start, round_.deadline),)
    return ()


def _key_setup(standing: Standing) -> Sequence[Assignment]:
    epoch = standing.epoch
    if epoch is None:
        return ()
    is_member = standing.participant in epoch.members
    match epoch.state:
        case EpochState.ADVERTISING if MessageKind.ADVERTISEMENT not in standing.sent:
            return (AdvertiseKeys(epoch.run, epoch.number, epoch.first_round),)
        case EpochState.SHARING if is_member and MessageKind.DEPOSIT not in standing.sent:
            return (DepositShares(epoch.run, epoch.number),)
        case EpochState.CONFIRMING if is_member and MessageKind.CONFIRMATION not in standing.sent:
            return (ConfirmShares(epoch.run, epoch.number),)
        case _:
            return ()


def _preparing(standing: Standing) -> Sequence[Assignment]:
    round_, participation = standing.round, standing.participation
    if round_ is None or round_.state is not RoundState.TRAINING:
        return ()
    if participation is None or participation.state is not ParticipationState.PRESENT:
        return ()
    return (
        PrepareUpdate(
            round_.run,
            round_.number,
            round_.kind,
            round_.base_adapter,
            round_.instruction_set,
            round_.deadline,
        ),
    )


def _finishing(standing: Standing) -> Sequence[Assignment]:
    previous = standing.previous_round
    if previous is None:
        return ()
    return (FinishRound(previous.run, previous.number, previous.state, previous.result_adapter),)
