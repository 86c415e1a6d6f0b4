"""Times, lengths, sizes and figures as a person reads them. Pure."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Final

MINUTE: Final = 60
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
YEAR: Final = 365 * DAY
SHORT_DIGEST: Final = 12
DIGEST_LENGTH: Final = 64
# How a state looks: its sign and its tone. A sign beside the colour, so that the colour alone says nothing.
_TONES: Final = {
    "good": ("succeeded", "accepted", "active", "ready", "in", "used"),
    "busy": (
        *("running", "forming", "training", "collecting", "unmasking", "aggregating"),
        *("advertising", "sharing", "confirming", "waiting", "candidate", "open"),
    ),
    "warn": ("paused", "dropped", "declined", "set_aside", "expired", "silent"),
    "bad": ("failed", "revoked", "out"),
}
_TONE_OF: Final = {state: tone for tone, states in _TONES.items() for state in states}
SIGNS: Final = {"good": "✓", "busy": "◐", "warn": "▲", "bad": "✕", "idle": "○"}


def tone(state: str) -> str:
    """ "good", "busy", "warn", "bad" or "idle"."""
    return _TONE_OF.get(state, "idle")


def sign(state_or_tone: str) -> str:
    return SIGNS.get(state_or_tone) or SIGNS[tone(state_or_tone)]


def spoken(word: str) -> str:
    """ "set_aside" as "set aside"."""
    return word.replace("_", " ")


def moment(text: str | None) -> datetime | None:
    """An RFC 3339 time as the API writes it."""
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def stamp(time: datetime) -> str:
    """ "2026-03-01 12:30:15 UTC"."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def ago(time: datetime, now: datetime) -> str:
    """ "40 s ago", "12 min ago", "in 3 h": in steps, so that a page that nothing happens on stays as it is."""
    seconds = (now - time).total_seconds()
    if abs(seconds) < 10:
        return "just now" if seconds >= 0 else "in a moment"
    text = _rough(abs(seconds))
    return f"{text} ago" if seconds > 0 else f"in {text}"


def _rough(seconds: float) -> str:
    if seconds < MINUTE:
        return f"{int(seconds) // 10 * 10} s"
    if seconds < HOUR:
        return f"{int(seconds // MINUTE)} min"
    if seconds < 2 * DAY:
        return f"{int(seconds // HOUR)} h"
    return f"{int(seconds // DAY)} days" if seconds < 2 * YEAR else f"{int(seconds // YEAR)} years"


def length(span: timedelta) -> str:
    """ "0.4 s", "12 s", "3 min 20 s", "2 h 5 min", "4 days 3 h"."""
    seconds = max(0.0, span.total_seconds())
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return _two(whole // MINUTE, "min", whole % MINUTE, "s")
    if whole < DAY:
        return _two(whole // HOUR, "h", whole % HOUR // MINUTE, "min")
    return _two(whole // DAY, "days" if whole >= 2 * DAY else "day", whole % DAY // HOUR, "h")


def _two(large: int, unit: str, small: int, small_unit: str) -> str:
    return f"{large} {unit} {small} {small_unit}" if small else f"{large} {unit}"


def size(count: float) -> str:
    """Bytes: "912 B", "1.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("the last unit ends the loop")


def figure(value: float) -> str:
    """Four digits that matter; counts whole, with thin spaces between thousands."""
    if not math.isfinite(value):
        return "not a number"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\N{THIN SPACE}")
    if abs(value) >= 10_000:
        return f"{value:,.0f}".replace(",", "\N{THIN SPACE}")
    return f"{value:.4g}"


def bare(name: str) -> str:
    """ "participants/bank" as "bank"."""
    return name.rsplit("/", 1)[-1]


def short(digest: str) -> str:
    """Enough of a digest to tell one from another."""
    return digest[:SHORT_DIGEST]


def subject(name: str) -> str:
    """A resource's name, a digest in it cut short."""
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{short(last)}…" if len(last) == DIGEST_LENGTH else name


def why(reason: str, message: str) -> str:
    """What a person is told first, and the constant after it."""
    return f"{message} ({reason})" if message and reason else message or reason


def pretty(text: str) -> str:
    """JSON on several lines; whatever is none stays as it is."""
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False, sort_keys=True)
    except ValueError:
        return text


def names(found: list[str], *, most: int = 4) -> str:
    """ "bank, clinic and 3 more"."""
    if len(found) <= most:
        return ", ".join(found)
    return f"{', '.join(found[: most - 1])} and {len(found) - most + 1} more"
