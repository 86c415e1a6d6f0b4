"""The three state machines: which event leads from which state to which, and what a row looks like afterwards.

The tables are the machines; nothing else changes a state. Knows nothing of gRPC, storage or time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from typing import Final, TypeVar

from common.errors import TransitionNotAllowed
from common.states import RoundState, RunState
from coordinator.rounds.events import (
    Aggregated,
    CohortChosen,
    DeadlineExtended,
    EpochClosed,
    EpochEvent,
    EpochFailed,
    KeysAdvertised,
    Opened,
    RoundCancelled,
    RoundEvent,
    RoundFailed,
    RunCancelled,
    RunEvent,
    RunFailed,
    RunFinished,
    RunPaused,
    RunResumed,
    RunRolledBack,
    RunStarted,
    SharesConfirmed,
    SharesDeposited,
    SharesRevealed,
    SurvivorsBound,
)
from coordinator.rounds.model import EpochState, KeyEpoch, Round, Run

State = TypeVar("State", bound=Enum)

_OPEN_ROUND: Final = tuple(state for state in RoundState if not state.is_over)
_OPEN_EPOCH: Final = tuple(state for state in EpochState if not state.is_over)
_OPEN_RUN: Final = tuple(state for state in RunState if not state.is_over)

ROUND_TRANSITIONS: Final[Mapping[tuple[RoundState, type[RoundEvent]], RoundState]] = {
    (RoundState.FORMING, Opened): RoundState.TRAINING,
    (RoundState.TRAINING, CohortChosen): RoundState.COLLECTING,
    (RoundState.TRAINING, DeadlineExtended): RoundState.TRAINING,
    (RoundState.COLLECTING, DeadlineExtended): RoundState.COLLECTING,
    (RoundState.COLLECTING, SurvivorsBound): RoundState.UNMASKING,
    (RoundState.UNMASKING, SharesRevealed): RoundState.AGGREGATING,
    (RoundState.AGGREGATING, Aggregated): RoundState.SUCCEEDED,
    **{(state, RoundFailed): RoundState.FAILED for state in _OPEN_ROUND},
    **{(state, RoundCancelled): RoundState.CANCELLED for state in _OPEN_ROUND},
}

EPOCH_TRANSITIONS: Final[Mapping[tuple[EpochState, type[EpochEvent]], EpochState]] = {
    (EpochState.ADVERTISING, KeysAdvertised): EpochState.SHARING,
    (EpochState.SHARING, SharesDeposited): EpochState.CONFIRMING,
    (EpochState.CONFIRMING, SharesConfirmed): EpochState.READY,
    **{(state, EpochClosed): EpochState.CLOSED for state in _OPEN_EPOCH},
    **{(state, EpochFailed): EpochState.FAILED for state in _OPEN_EPOCH},
}

RUN_TRANSITIONS: Final[Mapping[tuple[RunState, type[RunEvent]], RunState]] = {
    (RunState.CREATED, RunStarted): RunState.RUNNING,
    (RunState.RUNNING, RunPaused): RunState.PAUSED,
    (RunState.PAUSED, RunResumed): RunState.RUNNING,
    (RunState.RUNNING, RunFinished): RunState.SUCCEEDED,
    # A pause lets the open round end, and that may be the run's last.
    (RunState.PAUSED, RunFinished): RunState.SUCCEEDED,
    **{(state, RunRolledBack): state for state in (RunState.CREATED, RunState.PAUSED)},
    **{(state, RunFailed): RunState.FAILED for state in (RunState.RUNNING, RunState.PAUSED)},
    **{(state, RunCancelled): RunState.CANCELLED for state in _OPEN_RUN},
}


def advance_round(round_: Round, event: RoundEvent) -> Round:
    """The round after `event`. Raises TransitionNotAllowed."""
    state = _next(ROUND_TRANSITIONS, round_.state, event, round_.name)
    after = replace(round_, state=state, version=round_.version + 1)
    match event:
        case Opened(at, deadline) | SharesRevealed(at, deadline):
            return replace(after, phase_started_at=at, deadline=deadline)
        case CohortChosen(at, deadline, epoch, cohort, closed, start):
            chosen = replace(after, epoch=epoch, cohort=cohort, closed_groups=closed, start=start)
            return replace(chosen, phase_started_at=at, deadline=deadline)
        case SurvivorsBound(at, deadline, survivors, lost):
            closed = (*after.closed_groups, *lost)
            return replace(after, phase_started_at=at, deadline=deadline, survivors=survivors, closed_groups=closed)
        case DeadlineExtended(_, deadline):
            return replace(after, deadline=deadline)
        case Aggregated(at, adapter, metrics):
            return replace(after, phase_started_at=at, ended_at=at, result_adapter=adapter, metrics=metrics)
        case RoundFailed(at, reason, message):
            return replace(after, ended_at=at, reason=reason, message=message)
        case RoundCancelled(at, message):
            return replace(after, ended_at=at, reason="CANCELLED", message=message)


def advance_epoch(epoch: KeyEpoch, event: EpochEvent) -> KeyEpoch:
    """The key epoch after `event`. Raises TransitionNotAllowed."""
    state = _next(EPOCH_TRANSITIONS, epoch.state, event, f"runs/{epoch.run}/epochs/{epoch.number}")
    after = replace(epoch, state=state, version=epoch.version + 1)
    match event:
        case KeysAdvertised(at, deadline, members):
            return replace(after, phase_started_at=at, deadline=deadline, members=members)
        case SharesDeposited(at, deadline):
            return replace(after, phase_started_at=at, deadline=deadline)
        case SharesConfirmed(at, usable):
            return replace(after, phase_started_at=at, usable=usable)
        case EpochClosed(at, message):
            return replace(after, phase_started_at=at, message=message)
        case EpochFailed(at, reason, message):
            return replace(after, phase_started_at=at, reason=reason, message=message)


def advance_run(run: Run, event: RunEvent) -> Run:
    """The run after `event`. Raises TransitionNotAllowed."""
    state = _next(RUN_TRANSITIONS, run.state, event, f"runs/{run.name}")
    after = replace(run, state=state, version=run.version + 1)
    match event:
        case RunFinished(at):
            return replace(after, ended_at=at)
        case RunFailed(at, reason, message):
            return replace(after, ended_at=at, reason=reason, message=message)
        case RunCancelled(at, message):
            return replace(after, ended_at=at, reason="CANCELLED", message=message)
        case RunRolledBack(_, adapter, heldout_loss):
            return replace(after, accepted_adapter=adapter, candidate_adapter=None, accepted_loss=heldout_loss)
        case RunStarted() | RunPaused() | RunResumed():
            return after


def _next(table: Mapping[tuple[State, type], State], state: State, event: object, name: str) -> State:
    try:
        return table[state, type(event)]
    except KeyError:
        raise TransitionNotAllowed(f"{name} is {state.value}: {type(event).__name__} does not apply") from None
