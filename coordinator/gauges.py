"""Reads from the store what Prometheus shows as levels: open runs and their rounds, participants, certificates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from common.plan import Plan
from common.states import RoundState, RunState
from coordinator.metrics import Metrics
from coordinator.open_runs import OpenRun, Standing
from coordinator.rounds.model import ParticipantState, Participation, ParticipationState, Round, Run
from coordinator.standing import parse_plan
from coordinator.store.interface import Reader

OPEN_RUNS: Final = tuple(state for state in RunState if not state.is_over)
_DAY_SECONDS: Final = 86_400
# How many of the newest rounds are looked through for published figures: failed ones have none.
_LOOKED_THROUGH: Final = 20
_ORDER: Final = (
    ParticipationState.PRESENT,
    ParticipationState.PREPARED,
    ParticipationState.UPLOADED,
    ParticipationState.COMMITTED,
    ParticipationState.REVEALED,
)
# From which state on a participant's part in a phase is in.
_PART: Final = {
    RoundState.FORMING: ParticipationState.PRESENT,
    RoundState.TRAINING: ParticipationState.PREPARED,
    RoundState.COLLECTING: ParticipationState.UPLOADED,
    RoundState.UNMASKING: ParticipationState.REVEALED,
}


def observe(reader: Reader, metrics: Metrics, *, now: datetime, leases: Mapping[str, datetime] | None = None) -> None:
    """Set every gauge that follows from the store. leases: since when this process drives which runs."""
    open_runs = reader.runs(states=OPEN_RUNS).rows
    metrics.set_open_runs(Counter(run.state for run in open_runs))
    rounds = {run.name: reader.round(run.name, run.latest_round) for run in open_runs if run.latest_round}
    metrics.set_open_rounds(Counter(round_.state for round_ in rounds.values()))
    metrics.open.show(open_run(reader, run, rounds.get(run.name)) for run in open_runs)
    held = {run.name: (leases or {})[run.name] for run in open_runs if run.name in (leases or {})}
    metrics.set_leases(held.values(), now=now)
    participants = reader.participants().rows
    for state in ParticipantState:
        metrics.participants.labels(state.value).set(sum(row.state is state for row in participants))
    for row in participants:
        if row.state is ParticipantState.REVOKED:
            metrics.forget_participant(row.name)
            continue
        if row.last_seen_at is not None:
            metrics.participant_last_seen.labels(row.name).set(row.last_seen_at.timestamp())
        left = (row.certificate_expires_at - now).total_seconds() / _DAY_SECONDS
        metrics.participant_certificate_days_left.labels(row.name).set(left)
    metrics.audit_entries.set(reader.audit_head().sequence)


def open_run(reader: Reader, run: Run, newest: Round | None) -> OpenRun:
    """An open run as it is now. newest: its newest round."""
    plan = parse_plan(run.plan)
    round_ = newest if newest is not None and not newest.state.is_over else None
    members = reader.run_members(run.name)
    joined = sum(member.joined for member in members)
    figures = _newest_figures(reader, run)
    return OpenRun(
        run=run.name,
        rounds_planned=plan.rounds,
        rounds_succeeded=run.rounds_succeeded,
        failed_in_a_row=run.failed_in_a_row,
        members_joined=joined,
        members_declined=sum(not member.joined for member in members),
        round=run.latest_round,
        phase_began=round_.phase_started_at if round_ is not None else None,
        deadline=round_.deadline if round_ is not None else None,
        quorum=_quorum(plan, round_),
        participants=_standings(round_, reader.participations(run.name, round_.number), joined) if round_ else (),
        heldout_loss=figures.get("heldout_loss"),
        accepted_loss=run.accepted_loss,
        train_loss=figures.get("train_loss"),
    )


def _newest_figures(reader: Reader, run: Run) -> dict[str, float]:
    """The newest published value of each figure."""
    rounds = reader.rounds(run.name, page_size=_LOOKED_THROUGH).rows
    found: dict[str, float] = {}
    for round_ in reversed(rounds):
        found |= dict(round_.metrics)
    return found


def _quorum(plan: Plan, round_: Round | None) -> int | None:
    if round_ is None:
        return None
    limits = {
        RoundState.FORMING: plan.phases.forming,
        RoundState.TRAINING: plan.phases.training,
        RoundState.COLLECTING: plan.phases.collecting,
        RoundState.UNMASKING: plan.phases.unmasking,
    }.get(round_.state)
    return limits.quorum if limits is not None else None


def _standings(
    round_: Round, participations: tuple[Participation, ...], joined: int
) -> tuple[tuple[Standing, int], ...]:
    part = _PART.get(round_.state, ParticipationState.UPLOADED)
    done = _ORDER[_ORDER.index(part) :]
    counts = Counter(
        Standing.OUT if p.state.is_out else Standing.IN if p.state in done else Standing.AWAITED
        for p in participations
        if not round_.cohort or p.participant in round_.cohort or p.state.is_out
    )
    if round_.state is RoundState.FORMING:
        # Who has joined the run may still come.
        counts[Standing.AWAITED] = max(0, joined - counts[Standing.IN] - counts[Standing.OUT])
    return tuple((standing, counts[standing]) for standing in Standing)
