"""Participants: certificate, version and last call of each; and one of them, with what it did and what it underwent."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

from common.identifiers import participant_name
from coordinator.web import words
from coordinator.web.page import ALL, Ask, Page, choices, part
from coordinator.web.reads import Plain
from coordinator.web.views.attention import standing_of
from coordinator.web.views.audit import lines

SHOWS: Final = (ALL, "active", "silent", "never seen", "expiring", "expired", "revoked")
EVENTS_SHOWN: Final = 25
OPEN_STATES: Final = ("created", "running", "paused")
MOST_RUNS: Final = 20
INVITATIONS_SHOWN: Final = 50
# How much a standing wants somebody's eye.
_ORDER: Final = ("expired", "expiring", "silent", "never seen", "active", "revoked")


async def participants(ask: Ask) -> Page:
    rows, federation, tokens = await asyncio.gather(
        ask.reads.participants(ask.caller),
        ask.reads.federation(ask.caller),
        ask.reads.join_tokens(ask.caller, size=INVITATIONS_SHOWN),
    )
    everybody = sorted(
        ({**row, "standing": standing_of(row, ask.now)} for row in rows),
        key=lambda row: (_ORDER.index(row["standing"]), row["name"]),
    )
    show, wanted = ask.choice("show", SHOWS), ask.text("q").lower()
    chosen = [row for row in everybody if show in (ALL, row["standing"]) and wanted in words.bare(row["name"]).lower()]
    counts = Counter(row["standing"] for row in everybody)
    offered = [name for name in SHOWS if name in (ALL, show) or counts[name]]
    return Page(
        "participants.html",
        "Participants",
        "participants",
        {
            "people": part(ask, chosen),
            "filters": choices(ask, offered, counts, show),
            "versions": Counter(row["software_version"] or "not said" for row in everybody if row["state"] == "active"),
            "own_version": federation["software_version"],
            "invitations": [token for token in tokens["join_tokens"] if token["state"] == "open"],
            "query": wanted,
            "show": show,
        },
    )


async def participant(ask: Ask, name: str) -> Page:
    full = participant_name(name)
    row, events, acts, runs = await asyncio.gather(
        ask.reads.participant(ask.caller, full),
        ask.reads.audit_events(ask.caller, subject=full, size=EVENTS_SHOWN),
        ask.reads.audit_events(ask.caller, actor=full, size=EVENTS_SHOWN),
        ask.reads.runs(ask.caller, states=OPEN_STATES, size=MOST_RUNS),
    )
    both: dict[int, Plain] = {event["sequence"]: event for event in (*events["events"], *acts["events"])}
    newest = [both[sequence] for sequence in sorted(both, reverse=True)[:EVENTS_SHOWN]]
    return Page(
        "participant.html",
        f"Participant {name}",
        "participants",
        {
            "row": row,
            "standing": standing_of(row, ask.now),
            "events": lines(newest),
            "memberships": [await _membership(ask, run, full) for run in runs["runs"]],
        },
    )


async def _membership(ask: Ask, run: Plain, participant: str) -> Plain:
    """Where the participant stands in an open run."""
    whole, waits = await asyncio.gather(
        ask.reads.run(ask.caller, run["name"]), ask.reads.explain(ask.caller, run["name"])
    )
    member = next((entry for entry in whole["members"] if entry["participant"] == participant), None)
    awaited = next((entry for entry in waits["awaited"] if entry["participant"] == participant), None)
    out = next((entry for entry in waits["out"] if entry["participant"] == participant), None)
    return {"run": run, "member": member, "awaited": awaited, "out": out, "round": waits["round"]}
