"""From what the admin calls answer to points of curves. Published figures alone: sums over a cohort, no site's own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

SUCCEEDED: Final = "succeeded"
OVER: Final = ("succeeded", "failed", "cancelled")
# What both trackers take in a name of a curve; of others "_" stands in its place.
_STRANGE: Final = re.compile(r"[^A-Za-z0-9_\-. /]")


@dataclass(frozen=True, slots=True)
class Point:
    """A round's figures. step: the round's number. at: when it was over."""

    step: int
    at: datetime
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Subject:
    """The run that is tracked. settings: its plan's, as text by dotted name."""

    federation: str
    run: str
    state: str
    plan_digest: str
    accepted_adapter: str
    settings: Mapping[str, str]


class Tracker(Protocol):
    """Where points go. `add` more than once for a step changes nothing."""

    def known_steps(self) -> frozenset[int]:
        """Rounds that are there already, of this command or an earlier one."""

    def add(self, points: Iterable[Point]) -> None: ...

    def describe(self, subject: Subject) -> None:
        """Write down, or write anew, what the run is and how it stands."""

    def close(self) -> None: ...


def points_of(rounds: Iterable[Mapping[str, Any]], *, known: frozenset[int]) -> list[Point]:
    """Points of the rounds that have succeeded and are not known yet, by number. rounds: rows of ListRounds."""
    found = []
    for row in rounds:
        if row["state"] != SUCCEEDED or int(row["number"]) in known:
            continue
        figures = {_STRANGE.sub("_", metric["name"]): float(metric["value"]) for metric in row["metrics"]}
        figures["cohort"] = float(row["cohort_size"])
        found.append(Point(int(row["number"]), _time(row), figures))
    return sorted(found, key=lambda point: point.step)


def subject_of(federation: str, run: Mapping[str, Any]) -> Subject:
    """run: a row of GetRun."""
    return Subject(
        federation=federation,
        run=str(run["name"]).removeprefix("runs/"),
        state=str(run["state"]),
        plan_digest=str(run["plan_digest"]),
        accepted_adapter=str(run["accepted_adapter_digest"]),
        settings=dict(_flat(run["plan"])),
    )


def _flat(value: object, name: str = "") -> Iterable[tuple[str, str]]:
    """Leaves by dotted name; of lists and long texts (layers of the base model, templates) their size alone."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        yield name, f"{len(value)} entries"
    else:
        text = str(value)
        yield name, text if len(text) <= 200 else f"{len(text)} characters"


def _time(row: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(row.get("end_time") or row["phase_start_time"])
