"""When a site takes part: weekly opening hours in a time zone of its own.

Hours are wall-clock hours, so 19:00 stays 19:00 when the clocks change. Pure: the present moment is passed in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES_A_DAY: Final = 24 * 60
MINUTES_A_WEEK: Final = 7 * MINUTES_A_DAY

_OPENING: Final = re.compile(r"(?P<days>[a-z,-]+) +(?P<start>[0-9]{2}:[0-9]{2}) *- *(?P<end>[0-9]{2}:[0-9]{2})")
_FORM: Final = 'write days and hours like "mon-fri 19:00-07:00" or "sat,sun 00:00-24:00"'


@dataclass(frozen=True, slots=True)
class Opening:
    """One stretch of the week. start: minutes since Monday 00:00; minutes: its length, past midnight if need be."""

    start: int
    minutes: int


@dataclass(frozen=True, slots=True)
class Hours:
    """The site's weekly hours. Without an opening it never takes part."""

    time_zone: tzinfo
    openings: tuple[Opening, ...]

    def is_open(self, now: datetime) -> bool:
        """Whether `now`, an aware datetime, lies in one of the openings."""
        minute = _minute_of_week(now.astimezone(self.time_zone))
        return any((minute - opening.start) % MINUTES_A_WEEK < opening.minutes for opening in self.openings)

    def next_opening(self, now: datetime) -> datetime | None:
        """The first moment from `now` on that is open, to the minute, in UTC; None if there is none."""
        if self.is_open(now):
            return now.astimezone(UTC)
        local = now.astimezone(self.time_zone).replace(second=0, microsecond=0)
        minute = _minute_of_week(local)
        waits = [(opening.start - minute) % MINUTES_A_WEEK for opening in self.openings]
        # Wall-clock arithmetic: adding to a local time keeps its zone, and the zone finds the right offset.
        return (local + timedelta(minutes=min(waits))).astimezone(UTC) if waits else None

    def day(self, now: datetime) -> date:
        """The site's own calendar day, on which daily limits are counted."""
        return now.astimezone(self.time_zone).date()


def parse_opening(text: str) -> tuple[Opening, ...]:
    """Read "mon-fri 19:00-07:00": one opening a day; an end before the start is on the next day.

    Raises ValueError that shows the form.
    """
    match = _OPENING.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} are no hours; {_FORM}")
    start, end = _minute(match["start"], text), _minute(match["end"], text)
    if start in (end, MINUTES_A_DAY):
        raise ValueError(f"{text!r} is empty; {_FORM}")
    return tuple(
        Opening(start=day * MINUTES_A_DAY + start, minutes=(end - start) % MINUTES_A_DAY or MINUTES_A_DAY)
        for day in _days(match["days"], text)
    )


def _days(names: str, text: str) -> list[int]:
    days: list[int] = []
    for part in names.split(","):
        first, _, last = part.partition("-")
        if first not in DAYS or (last or first) not in DAYS or part.endswith("-"):
            raise ValueError(f"{text!r}: {part!r} is no day; days are {', '.join(DAYS)}")
        begin, count = DAYS.index(first), (DAYS.index(last or first) - DAYS.index(first)) % 7 + 1
        days.extend((begin + step) % 7 for step in range(count))
    return sorted(set(days))


def _minute(clock: str, text: str) -> int:
    hours, minutes = int(clock[:2]), int(clock[3:])
    if minutes > 59 or hours * 60 + minutes > MINUTES_A_DAY:
        raise ValueError(f"{text!r}: {clock} is no time of day; {_FORM}")
    return hours * 60 + minutes


def _minute_of_week(local: datetime) -> int:
    return local.weekday() * MINUTES_A_DAY + local.hour * 60 + local.minute
