"""Runs, and one run: its rounds, its loss by domain, who has joined it and who has not and why."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from common.identifiers import run_name
from coordinator.web import words
from coordinator.web.charts import Series, chart
from coordinator.web.page import ALL, ROWS_OF_A_PAGE, Ask, Page, choices, part
from coordinator.web.reads import Plain
from coordinator.web.views.curves import HELD_OUT, closed_groups, loss_series
from coordinator.web.views.phases import steps

FILTERS: Final[Mapping[str, tuple[str, ...]]] = {
    ALL: (),
    "open": ("created", "running", "paused"),
    "succeeded": ("succeeded",),
    "failed": ("failed", "cancelled"),
}
ROUNDS_OF_A_PAGE: Final = 15
MEMBERS_OF_A_PAGE: Final = 25
ADAPTERS_SHOWN: Final = 6
MOST_COLUMNS: Final = 12
MEMBER_FILTERS: Final = (ALL, "joined", "declined", "silent")


@dataclass(frozen=True, slots=True)
class CurveTable:
    """The chart's figures once more, for who cannot see it. rows: a round's number and its values by column."""

    columns: tuple[str, ...]
    rows: tuple[tuple[int, tuple[float | None, ...]], ...]
    left_out: int


async def runs(ask: Ask) -> Page:
    show = ask.choice("show", tuple(FILTERS))
    answer = await ask.reads.runs(ask.caller, states=FILTERS[show], size=ROWS_OF_A_PAGE, token=ask.token())
    token = answer["next_page_token"]
    return Page(
        "runs.html",
        "Runs",
        "runs",
        {
            "runs": answer["runs"],
            "show": show,
            "filters": [(name, ask.link(**{"show": "" if name == ALL else name, "from": ""})) for name in FILTERS],
            "older": ask.link(**{"from": token}) if token else "",
            "newest": ask.link(**{"from": ""}) if ask.token() else "",
        },
    )


async def run(ask: Ask, name: str) -> Page:
    full = run_name(name)
    row, waits, rounds, adapters = await asyncio.gather(
        ask.reads.run(ask.caller, full),
        ask.reads.explain(ask.caller, full),
        ask.history.of(ask.reads, ask.caller, full),
        ask.reads.adapters(ask.caller, full, size=ADAPTERS_SHOWN),
    )
    series = loss_series(rounds)
    show = ask.choice("members", MEMBER_FILTERS)
    members = _members(row, waits)
    chosen = [member for member in members if show in (ALL, member["standing"])]
    return Page(
        "run.html",
        f"Run {name}",
        "runs",
        {
            "run": row,
            "plan": row["plan"],
            "waits": waits,
            "steps": steps(waits["round_state"]),
            "curve": chart(series),
            "curve_table": _table(series),
            "closed_groups": closed_groups(rounds),
            "rounds": part(ask, rounds[::-1], name="rounds", size=ROUNDS_OF_A_PAGE),
            "adapters": adapters["adapters"],
            "has_more_adapters": bool(adapters["next_page_token"]),
            "members": part(ask, chosen, name="page", size=MEMBERS_OF_A_PAGE),
            "member_filters": choices(
                ask, MEMBER_FILTERS, Counter(member["standing"] for member in members), show, name="members"
            ),
        },
    )


def loss_of(round_: Plain) -> float | None:
    """The held-out loss that a round has measured."""
    return next((metric["value"] for metric in round_["metrics"] if metric["name"] == HELD_OUT), None)


def took(round_: Plain, now: datetime) -> str:
    """How long a round has taken so far, or took."""
    began, ended = words.moment(round_["create_time"]), words.moment(round_["end_time"])
    return words.length((ended or now) - began) if began is not None else ""


def _members(row: Plain, waits: Plain) -> list[Plain]:
    """Members with how each stands, those that need somebody first."""
    silent = {entry["participant"]: entry for entry in waits["awaited"] if entry["reason"] not in ("", "WORKING")}
    found = []
    for member in row["members"]:
        standing = "joined" if member["joined"] else "declined"
        extra = silent.get(member["participant"])
        if extra is not None and member["joined"]:
            found.append({**member, "standing": "silent", "reason": extra["reason"], "message": extra["message"]})
        else:
            found.append({**member, "standing": standing})
    order = ("declined", "silent", "joined")
    return sorted(found, key=lambda member: (order.index(member["standing"]), member["participant"]))


def _table(series: Sequence[Series]) -> CurveTable | None:
    if not series:
        return None
    kept = series[:MOST_COLUMNS]
    rounds = sorted({round_ for one in kept for round_ in one.values}, reverse=True)[:ROWS_OF_A_PAGE]
    return CurveTable(
        columns=tuple(one.name for one in kept),
        rows=tuple((round_, tuple(one.values.get(round_) for one in kept)) for round_ in rounds),
        left_out=len(series) - len(kept),
    )
