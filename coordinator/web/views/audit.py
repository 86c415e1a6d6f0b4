"""The audit log, newest first, page by page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from coordinator.web import words
from coordinator.web.page import ROWS_OF_A_PAGE, Ask, Page
from coordinator.web.reads import Plain

# Details of one line may name a thousand members; the whole of it is in the export.
MOST_VALUE: Final = 160
_HEX: Final = re.compile(r"[0-9a-f]{40,}")
_RESOURCES: Final = ("runs/", "participants/")


@dataclass(frozen=True, slots=True)
class Line:
    """One event. facts: its details by name, each cut short; link: a page about its subject, "" if there is none."""

    event: Plain
    facts: tuple[tuple[str, str], ...]
    link: str


async def audit_log(ask: Ask) -> Page:
    subject, actor, action = ask.text("subject"), ask.text("actor"), ask.text("action")
    answer = await ask.reads.audit_events(
        ask.caller, subject=subject, actor=actor, action=action, size=ROWS_OF_A_PAGE, token=ask.token()
    )
    verdict = await ask.reads.verify_audit_log(ask.caller) if ask.text("verify") else None
    token = answer["next_page_token"]
    return Page(
        "audit.html",
        "Audit log",
        "audit",
        {
            "lines": lines(answer["events"]),
            "filters": {"subject": subject, "actor": actor, "action": action},
            "is_filtered": bool(subject or actor or action),
            "older": ask.link(**{"from": token, "verify": ""}) if token else "",
            "newest": ask.link(**{"from": "", "verify": ""}) if ask.token() else "",
            "verify": ask.link(verify="1"),
            "unverified": ask.link(verify=""),
            "verdict": verdict,
        },
        is_followed=verdict is None,
    )


def lines(events: Iterable[Plain]) -> tuple[Line, ...]:
    return tuple(Line(event, _facts(event["details_json"]), link_of(event["subject"])) for event in events)


def link_of(subject: str) -> str:
    """The page about a resource, "" if it has none: a key epoch, a token."""
    is_known = subject.startswith(_RESOURCES) and "/epochs/" not in subject
    return f"/{subject}" if is_known else ""


def _facts(details: str) -> tuple[tuple[str, str], ...]:
    try:
        values = json.loads(details)
    except ValueError:
        return (("", _cut(details)),)
    if not isinstance(values, dict):
        return (("", _cut(details)),)
    return tuple((words.spoken(str(name)), _cut(_text(value))) for name, value in values.items())


def _text(value: object) -> str:
    if isinstance(value, str):
        return f"{words.short(value)}…" if _HEX.fullmatch(value) else value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return words.names(value, most=6)
    return json.dumps(value, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_VALUE else f"{text[: MOST_VALUE - 1]}…"
