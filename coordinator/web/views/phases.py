"""A round's life: its phases as steps, and as lengths of time from the audit log's lines. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from coordinator.web import words
from coordinator.web.reads import Plain

PHASES: Final = ("forming", "training", "collecting", "unmasking", "aggregating")
# The audit line that begins each phase.
BEGUN_BY: Final = {
    "round_opened": "forming",
    "training_opened": "training",
    "cohort_chosen": "collecting",
    "survivors_bound": "unmasking",
    "shares_revealed": "aggregating",
}
MEANING: Final = {
    "forming": "Participants say that they are there.",
    "training": "Each evaluates the global adapter and trains.",
    "collecting": "The cohort uploads masked updates.",
    "unmasking": "Members reveal shares for the set that has uploaded.",
    "aggregating": "The coordinator opens the sum and makes the next adapter.",
}
WIDTH: Final = 1000.0
# A phase that is over in a moment is still to be seen.
LEAST_WIDTH: Final = 6.0


@dataclass(frozen=True, slots=True)
class Step:
    """standing: "done", "now" or "ahead"."""

    name: str
    standing: str


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase that has begun. end: None while it lasts. x, width: its place in a bar of WIDTH."""

    name: str
    start: datetime
    end: datetime | None
    x: float
    width: float
    ended_badly: bool

    def length(self, now: datetime) -> timedelta:
        return (self.end or now) - self.start


def steps(state: str) -> tuple[Step, ...]:
    """All phases, and where a round in `state` stands among them; none for a round that is over or not there."""
    if state not in PHASES:
        return ()
    now = PHASES.index(state)
    return tuple(
        Step(name, "done" if place < now else "now" if place == now else "ahead") for place, name in enumerate(PHASES)
    )


def timeline(round_: Plain, events: Sequence[Plain], now: datetime) -> tuple[Phase, ...]:
    """The phases that a round has gone through. events: its audit lines in any order."""
    begun: dict[str, datetime] = {}
    for event in events:
        name, at = BEGUN_BY.get(event["action"]), words.moment(event["time"])
        if name is not None and at is not None:
            begun[name] = at
    created = words.moment(round_["create_time"])
    if created is not None:
        begun.setdefault("forming", created)
    since = words.moment(round_["phase_start_time"])
    if since is not None and round_["state"] in PHASES:
        begun.setdefault(round_["state"], since)
    ended = words.moment(round_["end_time"])
    order = sorted(begun, key=PHASES.index)
    ends: list[datetime | None] = [*(begun[name] for name in order[1:]), ended]
    widths = _widths([((end or now) - begun[name]).total_seconds() for name, end in zip(order, ends, strict=True)])
    found, x = [], 0.0
    for place, (name, end, width) in enumerate(zip(order, ends, widths, strict=True)):
        badly = place == len(order) - 1 and round_["state"] in ("failed", "cancelled")
        found.append(Phase(name, begun[name], end, round(x, 1), round(width, 1), badly))
        x += width
    return tuple(found)


def _widths(seconds: Sequence[float]) -> list[float]:
    """Widths that fill the bar, in proportion where there is room, and none too narrow to be seen."""
    whole = sum(max(0.0, one) for one in seconds)
    wide = [max(LEAST_WIDTH, WIDTH * max(0.0, one) / whole) if whole else WIDTH / len(seconds) for one in seconds]
    return [one * WIDTH / sum(wide) for one in wide]
