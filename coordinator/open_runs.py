"""What Prometheus shows of the runs that are open now, one series a run, gone with the run.

Read from the store by every replica alike, so that a query takes the `max` over them. A snapshot is replaced as a
whole: no scrape sees half of it. Figures are the published ones, sums over a cohort.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric


class Standing(StrEnum):
    """Where a participant is in an open round: its work is awaited, is in, or is not coming."""

    AWAITED = "awaited"
    IN = "in"
    OUT = "out"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRun:
    """One open run as it was read last. phase_began, deadline: of its open round, None between rounds.

    quorum: how many the open phase needs. heldout_loss, train_loss: newest published ones, in nats per answer token.
    """

    run: str
    rounds_planned: int
    rounds_succeeded: int
    failed_in_a_row: int
    members_joined: int
    members_declined: int
    round: int
    phase_began: datetime | None
    deadline: datetime | None
    quorum: int | None
    participants: tuple[tuple[Standing, int], ...]
    heldout_loss: float | None
    accepted_loss: float | None
    train_loss: float | None

    def figures(self) -> Iterator[tuple[str, float | None]]:
        """(name of the metric, value or None)."""
        yield "accord_run_rounds_planned", self.rounds_planned
        yield "accord_run_rounds_succeeded", self.rounds_succeeded
        yield "accord_run_failed_rounds_in_a_row", self.failed_in_a_row
        yield "accord_run_members_joined", self.members_joined
        yield "accord_run_members_declined", self.members_declined
        yield "accord_run_round", self.round
        yield "accord_run_phase_start_timestamp_seconds", _seconds(self.phase_began)
        yield "accord_run_phase_deadline_timestamp_seconds", _seconds(self.deadline)
        yield "accord_run_phase_quorum", self.quorum
        yield "accord_run_heldout_loss_nats", self.heldout_loss
        yield "accord_run_accepted_loss_nats", self.accepted_loss
        yield "accord_run_train_loss_nats", self.train_loss


FIGURES: Final = {
    "accord_run_rounds_planned": "Training rounds that an open run's plan asks for.",
    "accord_run_rounds_succeeded": "Training rounds of an open run that have succeeded.",
    "accord_run_failed_rounds_in_a_row": "Rounds of an open run that have failed since one succeeded.",
    "accord_run_members_joined": "Participants that have joined an open run.",
    "accord_run_members_declined": "Participants that have declined or left an open run.",
    "accord_run_round": "Number of an open run's newest round.",
    "accord_run_phase_start_timestamp_seconds": "When the open round's phase began, Unix time.",
    "accord_run_phase_deadline_timestamp_seconds": "When the open round's phase ends at the latest, Unix time.",
    "accord_run_phase_quorum": "How many participants the open round's phase needs.",
    "accord_run_heldout_loss_nats": "Newest published mean held-out loss of an open run, per answer token.",
    "accord_run_accepted_loss_nats": "Held-out loss of an open run's accepted adapter, per answer token.",
    "accord_run_train_loss_nats": "Newest published mean training loss of an open run, per answer token.",
}
PARTICIPANTS: Final = "accord_run_participants"
_PARTICIPANTS_HELP: Final = "Participants of an open run's open round, by whether their part is in."


class OpenRuns:
    """Collects for one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._runs: tuple[OpenRun, ...] = ()
        registry.register(self)

    def show(self, runs: Iterable[OpenRun]) -> None:
        """Show these from now on, and no others."""
        self._runs = tuple(runs)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        runs = self._runs
        families = {name: GaugeMetricFamily(name, text, labels=("run",)) for name, text in FIGURES.items()}
        for run in runs:
            for name, value in run.figures():
                if value is not None:
                    families[name].add_metric((run.run,), value)
        yield from families.values()
        family = GaugeMetricFamily(PARTICIPANTS, _PARTICIPANTS_HELP, labels=("run", "standing"))
        for run in runs:
            for standing, count in run.participants:
                family.add_metric((run.run, standing.value), count)
        yield family


def _seconds(time: datetime | None) -> float | None:
    return time.timestamp() if time is not None else None
