"""One round: its life as a timeline, who is in, who is out and why, whom it waits for, and what was summed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Final

from common.identifiers import round_name, run_name
from coordinator.web import words
from coordinator.web.page import ALL, Ask, Page, choices, part
from coordinator.web.reads import Plain
from coordinator.web.views.audit import Line, lines
from coordinator.web.views.curves import figures
from coordinator.web.views.phases import BEGUN_BY, MEANING, WIDTH, steps, timeline

STANDINGS: Final = ("out", "waiting", "in")
SHOWS: Final = (ALL, *STANDINGS)
EVENTS_OF_A_CALL: Final = 500
MOST_CALLS: Final = 4
MOST_EVENTS: Final = 12
# A participant's own lines stand in the table of participants.
_TOLD_ELSEWHERE: Final = (*BEGUN_BY, "participant_dropped", "update_received")
_OUT: Final = ("failed", "dropped")


async def round_(ask: Ask, run: str, number: int) -> Page:
    full = round_name(run, number)
    row, waits, events = await asyncio.gather(
        ask.reads.round(ask.caller, full), ask.reads.explain(ask.caller, run_name(run)), _events(ask, full)
    )
    is_open = waits["round"] == full
    everybody = _everybody(row, waits if is_open else None)
    show, wanted = ask.choice("show", SHOWS), ask.text("q").lower()
    chosen = [
        entry
        for entry in everybody
        if show in (ALL, entry["standing"]) and wanted in words.bare(entry["participant"]).lower()
    ]
    counts = Counter(entry["standing"] for entry in everybody)
    others: tuple[Line, ...] = lines(event for event in events if event["action"] not in _TOLD_ELSEWHERE)
    offered = [name for name in SHOWS if name in (ALL, show) or counts[name]]
    return Page(
        "round.html",
        f"Round {number} of {run}",
        "runs",
        {
            "run": run,
            "round": row,
            "waits": waits if is_open else None,
            "steps": steps(row["state"]),
            "phases": timeline(row, events, ask.now),
            "bar_width": WIDTH,
            "meaning": MEANING,
            "figures": figures(row),
            "events": others[:MOST_EVENTS],
            "people": part(ask, chosen),
            "people_filters": choices(ask, offered, counts, show),
            "counts": counts,
            "reasons": Counter(
                entry["reason"] or "no reason given" for entry in everybody if entry["standing"] == "out"
            ),
            "query": wanted,
            "show": show,
        },
    )


async def _events(ask: Ask, full: str) -> Sequence[Plain]:
    """A round's audit lines, newest first: back to its opening, within bounds."""
    found: list[Plain] = []
    token = ""
    for _ in range(MOST_CALLS):
        answer = await ask.reads.audit_events(ask.caller, subject=full, size=EVENTS_OF_A_CALL, token=token)
        found += answer["events"]
        token = answer["next_page_token"]
        if not token:
            break
    return found


def _everybody(row: Plain, waits: Plain | None) -> list[Plain]:
    """Participants with how each stands, those that are out first. waits: of the open round."""
    awaited = {entry["participant"]: entry for entry in waits["awaited"]} if waits is not None else {}
    found = []
    for entry in row["participations"]:
        waited = awaited.pop(entry["participant"], None)
        if entry["state"] in _OUT:
            found.append({**entry, "standing": "out", "advice": ""})
        elif waited is not None:
            found.append({**entry, **_as_awaited(waited)})
        else:
            found.append({**entry, "standing": "in", "advice": ""})
    for name, waited in awaited.items():
        found.append(
            {**_NOT_THERE, "participant": name, "update_time": waited["last_seen_time"], **_as_awaited(waited)}
        )
    return sorted(found, key=lambda entry: (STANDINGS.index(entry["standing"]), entry["participant"]))


_NOT_THERE: Final[Plain] = {
    "state": "absent",
    "activity": "",
    "progress_done": 0,
    "progress_total": 0,
    "uploaded_bytes": 0,
    "upload_bytes": 0,
}


def _as_awaited(waited: Plain) -> Plain:
    is_working = waited["reason"] == "WORKING"
    return {
        "standing": "waiting",
        "step": waited["step"],
        "reason": "" if is_working else waited["reason"],
        "message": waited["message"],
        "advice": waited["advice"],
    }
