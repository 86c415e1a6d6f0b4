"""`status`: the federation at a glance; for each open run where it is, who is awaited, who is out and why."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from common.cli.output import print_json, print_table, print_text
from common.cli.watching import watched
from coordinator.cli.connection import open_client
from coordinator.cli.exits import Exit
from coordinator.cli.facts import bare, moment, print_facts, short
from coordinator.services.admin_client import AdminClient, Plain

OPEN_STATES: Final = ("created", "running", "paused")
# Of a run's newest rounds: enough for a trend.
SHOWN_LOSSES: Final = 8
SILENT_AFTER: Final = timedelta(minutes=3)
# Certificates with less than this are named above the table.
SOON: Final = timedelta(days=7)


def execute(options: argparse.Namespace) -> Exit:
    with open_client(options) as client:
        return Exit(watched(options.watch, lambda: _show(client, as_json=options.json)))


def _show(client: AdminClient, *, as_json: bool) -> int:
    federation = client.federation()
    participants = list(client.participants())
    runs = [_look(client, run) for run in client.runs(states=OPEN_STATES)]
    now = datetime.now(UTC)
    if as_json:
        print_json({"federation": federation, "participants": participants, "open_runs": runs})
        return Exit.OK
    _print_federation(federation, participants, now)
    for run in runs:
        _print_run(run, now)
    return Exit.OK


def _look(client: AdminClient, run: Plain) -> dict[str, Any]:
    """A run with whom it waits for, and the published losses of its newest rounds, oldest first."""
    losses = [
        {"round": row["number"], "heldout_loss": metric["value"]}
        for row in client.rounds(run["name"])
        for metric in row["metrics"]
        if metric["name"] == "heldout_loss"
    ]
    return {**run, "waits": client.explain_run(run["name"]), "losses": losses[:SHOWN_LOSSES][::-1]}


def _print_federation(federation: Plain, participants: list[Plain], now: datetime) -> None:
    active = [row for row in participants if row["state"] == "active"]
    ends = [(_time(row["certificate_expire_time"]), bare(row["name"])) for row in active]
    print_facts(
        [
            ("federation", federation["federation"]),
            ("coordinator", federation["software_version"]),
            ("charter", short(federation["charter_digest"]) or "none published"),
            ("CA ends", moment(federation["ca_expire_time"])),
            ("active participants", federation["active_participants"]),
            ("open runs", federation["open_runs"]),
            ("certificates end soon", [f"{name} in {_span(at - now)}" for at, name in sorted(ends) if at - now < SOON]),
        ]
    )
    print_text("")
    print_table(
        ("participant", "state", "seen", "certificate", "version"),
        [
            (
                bare(row["name"]),
                row["state"],
                _seen(row["last_seen_time"], now),
                _left(row["certificate_expire_time"], now),
                row["software_version"],
            )
            for row in participants
        ],
    )


def _print_run(run: dict[str, Any], now: datetime) -> None:
    waits = run["waits"]
    print_text("")
    print_facts(
        [
            ("run", bare(run["name"])),
            ("state", run["state"]),
            ("rounds", f"{run['rounds_succeeded']} of {run['rounds_planned']} succeeded"),
            ("now", waits["summary"]),
            ("phase", _phase(waits, now)),
            ("held-out loss", _trend(run["losses"])),
        ]
    )
    rows = [
        *(("awaited", who) for who in waits["awaited"]),
        *(("out", who) for who in waits["out"]),
    ]
    if rows:
        print_text("")
        print_table(
            ("", "participant", "why", "what to do"),
            [
                (
                    kind,
                    bare(who["participant"]),
                    ": ".join(text for text in (who["reason"], who["message"]) if text),
                    who.get("advice", ""),
                )
                for kind, who in rows
            ],
        )


def _phase(waits: Plain, now: datetime) -> str:
    if not waits["round"]:
        return ""
    parts = [f"round {bare(waits['round'])}, {waits['round_state']}"]
    if waits["quorum"]:
        parts.append(f"{waits['done']} done, {waits['quorum']} needed")
    if waits["deadline_time"]:
        left = _time(waits["deadline_time"]) - now
        parts.append(f"{_span(left)} left" if left > timedelta(0) else f"over its time by {_span(-left)}")
    return "; ".join(parts)


def _trend(losses: list[dict[str, Any]]) -> str:
    """The newest losses and where they go."""
    values = [float(row["heldout_loss"]) for row in losses]
    if not values:
        return ""
    shown = " → ".join(f"{value:.3f}" for value in values)
    if len(values) < 2:
        return shown
    return f"{shown}  ({'falls' if values[-1] < values[-2] else 'rises' if values[-1] > values[-2] else 'stands'})"


def _seen(time: str | None, now: datetime) -> str:
    if not time:
        return "never"
    ago = now - _time(time)
    return f"{_span(ago)} ago" if ago > SILENT_AFTER else "now"


def _left(time: str | None, now: datetime) -> str:
    if not time:
        return "-"
    left = _time(time) - now
    return f"{_span(left)} left" if left > timedelta(0) else "EXPIRED"


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _span(length: timedelta) -> str:
    """A length of time as people say it: "3 d 4 h", "12 min", "40 s"."""
    seconds = int(length.total_seconds())
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min"
    if seconds < 86_400:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 86_400} d {seconds % 86_400 // 3600} h"
