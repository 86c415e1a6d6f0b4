"""Looks at a run while it goes: through the admin API as any operator may, and into each site's own journal.

The two are kept apart on purpose: what a `Snapshot` holds is all that the coordinator ever knows; a site's own figures
are read from its own folder, as its own people would. Knows nothing of terminals.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from common.secagg import ClosedGroup
from coordinator.services.admin_client import AdminClient
from demo.figures import Figure, RoundReport
from demo.sources.records import Task
from participant.journal import Journal
from participant.training.result import JobResult, total_scores

# Of a training round's time at a site, about this part goes into judging the global adapter, which comes first.
EVALUATION_SHARE: Final = 0.4
# Audit lines that end a phase, in the order of phases.
_PHASE_ENDS: Final = (
    ("forming", "training_opened"),
    ("training", "cohort_chosen"),
    ("collecting", "survivors_bound"),
    ("unmasking", "shares_revealed"),
)
_OUT: Final = ("failed", "dropped")
_READY: Final = ("prepared", "uploaded", "committed", "revealed")


@dataclass(frozen=True, slots=True)
class SiteView:
    """One site in one round, as the coordinator knows it. done of total: steps or batches of `activity`."""

    name: str
    state: str = "waiting"
    activity: str = ""
    done: int = 0
    total: int = 0
    uploaded_bytes: int = 0
    upload_bytes: int = 0
    reason: str = ""
    message: str = ""

    @property
    def is_out(self) -> bool:
        return self.state in _OUT

    def fraction(self, *, is_evaluation: bool) -> float:
        """How much of its work in the round is done, 0 to 1; an estimate."""
        if self.state in (*_READY, *_OUT):
            return 1.0
        within = self.done / self.total if self.total else 0.0
        share = 1.0 if is_evaluation else EVALUATION_SHARE
        match self.activity:
            case "evaluate":
                return share * within
            case "train":
                return share + (1.0 - share) * within
            case "save":
                return 1.0
            case _:
                return 0.0


@dataclass(frozen=True, slots=True)
class RoundView:
    """One round, as the coordinator knows it. metrics: means over the survivors, once the sum is opened."""

    number: int
    kind: str
    state: str
    epoch_state: str
    sites: tuple[SiteView, ...]
    survivors: tuple[str, ...]
    metrics: Mapping[str, float]
    message: str

    @property
    def is_over(self) -> bool:
        return self.state in ("succeeded", "failed", "cancelled")

    @property
    def fraction(self) -> float:
        """0 to 1: where the slowest site is; an estimate."""
        if self.is_over:
            return 1.0
        if not self.sites:
            return 0.0
        return min(site.fraction(is_evaluation=self.kind == "evaluate") for site in self.sites)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The run at one moment. rounds: all so far, oldest first. elapsed_seconds: since the run was started."""

    state: str
    reason: str
    message: str
    rounds_planned: int
    rounds_succeeded: int
    rounds: tuple[RoundView, ...]
    elapsed_seconds: float

    @property
    def is_over(self) -> bool:
        return self.state in ("succeeded", "failed", "cancelled")

    @property
    def current(self) -> RoundView | None:
        return self.rounds[-1] if self.rounds else None

    @property
    def fraction(self) -> float:
        """0 to 1: how much of the run's work is done. A failed round is done again, so it counts nothing."""
        if self.is_over:
            return 1.0
        total = self.rounds_planned + EVALUATION_SHARE
        done = float(self.rounds_succeeded)
        current = self.current
        if current is not None and not current.is_over:
            done += current.fraction * (EVALUATION_SHARE if current.kind == "evaluate" else 1.0)
        return min(done / total, 1.0)

    @property
    def seconds_left(self) -> float | None:
        """An estimate; None while there is too little to go by."""
        return self.elapsed_seconds / self.fraction * (1.0 - self.fraction) if self.fraction > 0.02 else None


class RunWatch:
    """Asks the admin API for one run, again and again; rounds that are over are asked for once."""

    def __init__(self, admin: AdminClient, run: str) -> None:
        self._admin = admin
        self._run = f"runs/{run}"
        self._over: dict[int, RoundView] = {}
        self._began = time.monotonic()

    def look(self) -> Snapshot:
        run = self._admin.run(self._run)
        rounds: list[RoundView] = []
        for number in range(1, int(run["round"]) + 1):
            view = self._over.get(number) or round_view(self._admin.round(f"{self._run}/rounds/{number}"))
            if view.is_over:
                self._over[number] = view
            rounds.append(view)
        return Snapshot(
            state=str(run["state"]),
            reason=str(run["reason"]),
            message=str(run["message"]),
            rounds_planned=int(run["rounds_planned"]),
            rounds_succeeded=int(run["rounds_succeeded"]),
            rounds=tuple(rounds),
            elapsed_seconds=time.monotonic() - self._began,
        )


def round_view(row: Mapping[str, Any]) -> RoundView:
    """A round as the admin API tells it."""
    return RoundView(
        number=int(row["number"]),
        kind=str(row["kind"]),
        state=str(row["state"]),
        epoch_state=str(row["epoch_state"]),
        sites=tuple(
            SiteView(
                name=_bare(entry["participant"]),
                state=str(entry["state"]),
                activity=str(entry["activity"]),
                done=int(entry["progress_done"]),
                total=int(entry["progress_total"]),
                uploaded_bytes=int(entry["uploaded_bytes"]),
                upload_bytes=int(entry["upload_bytes"]),
                reason=str(entry["reason"]),
                message=str(entry["message"]),
            )
            for entry in row["participations"]
        ),
        survivors=tuple(_bare(name) for name in row["survivors"]),
        metrics={str(metric["name"]): float(metric["value"]) for metric in row["metrics"]},
        message=": ".join(text for text in (str(row["reason"]), str(row["message"])) if text),
    )


def site_figures(journal_file: Path, run: str, task: Task) -> dict[str, Figure]:
    """One site's own figures by adapter digest, from its own journal. Empty before it has judged anything."""
    if not journal_file.exists():
        return {}
    journal = Journal(journal_file)
    try:
        entries = journal.rounds(run)
    finally:
        journal.close()
    return {
        entry.adapter: Figure.of(total_scores(JobResult.from_json(entry.scores).scores), task)
        for entry in reversed(entries)
        if entry.scores
    }


def round_reports(admin: AdminClient, run: str) -> tuple[RoundReport, ...]:
    """All rounds of a run with the seconds of their phases, which the audit log tells to the microsecond."""
    ends = {(str(event["subject"]), str(event["action"])): str(event["time"]) for event in admin.audit_events()}
    rounds = sorted(admin.rounds(f"runs/{run}"), key=lambda row: int(row["number"]))
    return tuple(_round_report(admin.round(str(row["name"])), ends) for row in rounds)


def _round_report(row: Mapping[str, Any], ends: Mapping[tuple[str, str], str]) -> RoundReport:
    view = round_view(row)
    return RoundReport(
        number=view.number,
        kind=view.kind,
        state=view.state,
        base_adapter_digest=str(row["base_adapter_digest"]),
        adapter_digest=str(row["adapter_digest"]),
        cohort=tuple(_bare(name) for name in row["cohort"]),
        survivors=view.survivors,
        seconds=phase_seconds(row, ends),
        metrics=dict(view.metrics),
        closed_metric_groups=tuple(
            ClosedGroup(str(group["name"]), int(group["contributors"]), int(group["needed"]))
            for group in row["closed_metric_groups"]
        ),
        uploaded_bytes={site.name: site.uploaded_bytes for site in view.sites},
        reason=str(row["reason"]),
        message=str(row["message"]),
    )


def phase_seconds(row: Mapping[str, Any], ends: Mapping[tuple[str, str], str]) -> dict[str, float]:
    """Seconds of each phase that a round has been through. ends: RFC 3339 times by (subject, action) of audit lines."""
    begin = _time(row["create_time"])
    seconds: dict[str, float] = {}
    for phase, action in _PHASE_ENDS:
        end = ends.get((str(row["name"]), action))
        if end is None:
            return seconds
        seconds[phase] = round((_time(end) - begin).total_seconds(), 3)
        begin = _time(end)
    if row["end_time"]:
        seconds["aggregating"] = round((_time(row["end_time"]) - begin).total_seconds(), 3)
    return seconds


def _time(text: object) -> datetime:
    return datetime.fromisoformat(str(text))


def _bare(name: object) -> str:
    """ "participants/bank" as "bank"."""
    return str(name).rsplit("/", 1)[-1]
