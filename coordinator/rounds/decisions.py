"""When a phase is over, and with whom: the plan's quorums and windows applied to what participants have done.

Each function looks at values and answers with a decision or None ("wait"). Masks, storage and clocks stay outside: the
driver passes `now` in, and does what a decision asks for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from common.plan import PhaseLimits, Plan
from common.states import RoundKind, RoundState, RunState
from coordinator.rounds.model import (
    EpochState,
    KeyEpoch,
    Participation,
    ParticipationState,
    Round,
    Run,
)

# While bytes move, COLLECTING goes on, up to this many windows.
HARD_LIMIT_WINDOWS: Final = 4
QUORUM_MISSED: Final = "QUORUM_MISSED"


@dataclass(frozen=True, slots=True)
class Close:
    """The phase is over, with these participants."""

    participants: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fail:
    """The phase has missed its quorum."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class MakeKeys:
    """Enough are prepared, and too few of them have masking keys: waiting changes nothing, another key epoch does."""


@dataclass(frozen=True, slots=True)
class Extend:
    """The phase goes on until `deadline`, because work is visibly under way."""

    deadline: datetime


def deadline_of(limits: PhaseLimits, now: datetime) -> datetime:
    """When a phase that begins now closes at the latest."""
    return now + timedelta(seconds=limits.window_seconds)


def next_round_kind(run: Run, plan: Plan) -> RoundKind:
    """Training rounds first, as many as the plan says, and one evaluation round at the end."""
    return RoundKind.TRAIN if run.rounds_succeeded < plan.rounds else RoundKind.EVALUATE


def may_open_round(run: Run) -> bool:
    """Whether a run without an open round should begin one."""
    return run.state is RunState.RUNNING


def close_forming(
    round_: Round, plan: Plan, *, joined: Collection[str], participations: Sequence[Participation], now: datetime
) -> Close | Fail | None:
    """FORMING closes when all who joined the run are there, or at its deadline with the quorum."""
    present = tuple(p.participant for p in participations if not p.state.is_out)
    quorum = plan.phases.forming.quorum
    everybody = len(present) >= quorum and set(joined) <= {p.participant for p in participations}
    if everybody:
        return Close(present)
    if now < round_.deadline:
        return None
    if len(present) >= quorum:
        return Close(present)
    absent = sorted(set(joined) - set(present))
    return _missed("forming", len(present), quorum, absent, plan.phases.forming, hint="joined but not there")


def close_training(
    round_: Round,
    plan: Plan,
    *,
    epoch: KeyEpoch | None,
    floor: int,
    participations: Sequence[Participation],
    now: datetime,
) -> Close | Fail | MakeKeys | None:
    """TRAINING closes when all who were present are prepared or out and keys are ready, or at its deadline.

    The cohort is who has an update ready and can mask it. epoch: the one whose keys are ready, if any. floor: least
    number of members that the masking protocol sums, 0 while there are no keys.
    """
    usable = set(epoch.usable) if epoch is not None else set()
    prepared = tuple(p.participant for p in participations if p.state is ParticipationState.PREPARED)
    cohort = tuple(name for name in prepared if name in usable)
    quorum = max(plan.phases.training.quorum, floor)
    is_waiting = any(p.state is ParticipationState.PRESENT for p in participations)
    if not is_waiting and epoch is not None and len(cohort) >= quorum:
        return Close(cohort)
    if not is_waiting and len(prepared) < quorum:
        return _missed("training", len(prepared), quorum, _out(participations), plan.phases.training, hint="failed")
    if now < round_.deadline:
        may_help = not is_waiting and epoch is not None and not set(prepared) <= usable
        return MakeKeys() if may_help else None
    if len(cohort) >= quorum:
        return Close(cohort)
    if len(prepared) >= quorum:
        without_keys = sorted(set(prepared) - usable)
        return _missed("training", len(cohort), quorum, without_keys, plan.phases.training, hint="without masking keys")
    late = [p.participant for p in participations if p.state is ParticipationState.PRESENT]
    return _missed(
        "training", len(prepared), quorum, late + _out(participations), plan.phases.training, hint="not ready"
    )


def close_collecting(
    round_: Round, plan: Plan, *, floor: int, participations: Sequence[Participation], now: datetime
) -> Close | Fail | Extend | None:
    """COLLECTING closes when the whole cohort has uploaded, or at its deadline with the quorum and the floor.

    floor: least number of survivors over which a sum may be opened at all.
    """
    limits = plan.phases.collecting
    uploaded = tuple(p.participant for p in participations if p.state is ParticipationState.UPLOADED)
    quorum = max(limits.quorum, floor)
    if len(uploaded) == len(round_.cohort) and len(uploaded) >= quorum:
        return Close(uploaded)
    missing = [p for p in participations if p.participant in round_.cohort and p.participant not in uploaded]
    if len(round_.cohort) - sum(p.state.is_out for p in missing) < quorum:
        return _missed("collecting", len(uploaded), quorum, sorted(p.participant for p in missing), limits, hint="lost")
    if all(p.state.is_out for p in missing) and len(uploaded) >= quorum:
        return Close(uploaded)
    if now < round_.deadline:
        return None
    window = timedelta(seconds=limits.window_seconds)
    is_moving = any(not p.state.is_out and p.uploaded_bytes and p.updated_at > now - window / 2 for p in missing)
    if is_moving and now < round_.phase_started_at + HARD_LIMIT_WINDOWS * window:
        return Extend(now + window / 2)
    if len(uploaded) >= quorum:
        return Close(uploaded)
    return _missed("collecting", len(uploaded), quorum, sorted(p.participant for p in missing), limits, hint="missing")


def close_key_step(
    epoch: KeyEpoch, plan: Plan, *, step: str, expected: Collection[str], done: Collection[str], now: datetime
) -> Close | Fail | None:
    """A step of a key epoch closes when all who are expected have done it, or at its deadline with the quorum."""
    limits = plan.phases.key_setup
    if len(done) >= limits.quorum and set(expected) <= set(done):
        return Close(tuple(sorted(done)))
    if now < epoch.deadline:
        return None
    if len(done) >= limits.quorum:
        return Close(tuple(sorted(done)))
    return _missed(step, len(done), limits.quorum, sorted(set(expected) - set(done)), limits, hint="missing")


def key_step_expects(
    epoch: KeyEpoch, round_: Round | None, *, joined: Collection[str], participations: Sequence[Participation]
) -> set[str]:
    """Whom a step of a key epoch waits for: everybody who joined, until the round has shown who is there."""
    there = set(joined)
    if round_ is not None and round_.state is not RoundState.FORMING:
        there &= {p.participant for p in participations if not p.state.is_out}
    return there if epoch.state is EpochState.ADVERTISING else there & set(epoch.members)


def _out(participations: Sequence[Participation]) -> list[str]:
    return [p.participant for p in participations if p.state.is_out]


def _missed(phase: str, have: int, quorum: int, names: Sequence[str], limits: PhaseLimits, *, hint: str) -> Fail:
    who = f"; {hint}: {', '.join(names)}" if names else ""
    return Fail(QUORUM_MISSED, f"{phase} has {have} of at least {quorum} within {limits.window_seconds} s{who}")
