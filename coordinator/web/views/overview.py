"""The first page: what state the federation is in, whether anything is wrong, who holds it up, what to do."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Final

from coordinator.web.charts import Chart, chart
from coordinator.web.page import Ask, Page
from coordinator.web.reads import Plain
from coordinator.web.views.attention import findings, standing_of
from coordinator.web.views.audit import Line, lines
from coordinator.web.views.curves import loss_series
from coordinator.web.views.phases import Step, steps

OPEN_STATES: Final = ("created", "running", "paused")
RUNS_SHOWN: Final = 10
EVENTS_SHOWN: Final = 8


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that is not over. waits: what it waits for now. declined: names of those who will not join."""

    run: Plain
    waits: Plain
    declined: frozenset[str]
    steps: tuple[Step, ...]
    curve: Chart | None


async def overview(ask: Ask) -> Page:
    federation, participants, newest, open_runs, events = await asyncio.gather(
        ask.reads.federation(ask.caller),
        ask.reads.participants(ask.caller),
        ask.reads.runs(ask.caller, size=RUNS_SHOWN),
        ask.reads.runs(ask.caller, states=OPEN_STATES, size=RUNS_SHOWN),
        ask.reads.audit_events(ask.caller, size=EVENTS_SHOWN),
    )
    shown = [await _open_run(ask, run) for run in open_runs["runs"]]
    explained = {one.run["name"]: one.waits for one in shown}
    declined = {one.run["name"]: one.declined for one in shown}
    runs = {run["name"]: run for run in (*newest["runs"], *open_runs["runs"])}
    found = findings(
        health=ask.health(),
        federation=federation,
        participants=participants,
        runs=tuple(runs.values()),
        explained=explained,
        declined=declined,
        now=ask.now,
    )
    recent: tuple[Line, ...] = lines(events["events"])
    return Page(
        "overview.html",
        "Overview",
        "overview",
        {
            "federation": federation,
            "findings": found,
            "worst": found[0].tone if found else "good",
            "open_runs": shown,
            "ended_runs": [run for run in newest["runs"] if run["name"] not in explained],
            "standings": Counter(standing_of(row, ask.now) for row in participants),
            "events": recent,
        },
    )


async def _open_run(ask: Ask, run: Plain) -> OpenRun:
    whole, waits, rounds = await asyncio.gather(
        ask.reads.run(ask.caller, run["name"]),
        ask.reads.explain(ask.caller, run["name"]),
        ask.history.of(ask.reads, ask.caller, run["name"]),
    )
    declined = frozenset(row["participant"] for row in whole["members"] if not row["joined"])
    return OpenRun(run, waits, declined, steps(waits["round_state"]), chart(loss_series(rounds)))
