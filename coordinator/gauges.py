"""Reads from the store what Prometheus shows as levels: open runs, phases, participants, certificates."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Final

from common.states import RunState
from coordinator.metrics import Metrics
from coordinator.rounds.model import ParticipantState
from coordinator.store.interface import Reader

OPEN_RUNS: Final = tuple(state for state in RunState if not state.is_over)
_DAY_SECONDS: Final = 86_400


def observe(reader: Reader, metrics: Metrics, *, now: datetime) -> None:
    """Set every gauge that follows from the store."""
    open_runs = reader.runs(states=OPEN_RUNS).rows
    metrics.set_open_runs(Counter(run.state for run in open_runs))
    rounds = [reader.round(run.name, run.latest_round) for run in open_runs if run.latest_round]
    metrics.set_open_rounds(Counter(round_.state for round_ in rounds))
    participants = reader.participants().rows
    for state in ParticipantState:
        metrics.participants.labels(state.value).set(sum(row.state is state for row in participants))
    for row in participants:
        if row.last_seen_at is not None:
            metrics.participant_last_seen.labels(row.name).set(row.last_seen_at.timestamp())
        left = (row.certificate_expires_at - now).total_seconds() / _DAY_SECONDS
        metrics.participant_certificate_days_left.labels(row.name).set(left)
