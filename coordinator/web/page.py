"""What a page is made from, and what it comes to before a template shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Generic, TypeVar
from urllib.parse import urlencode

from common.errors import InvalidArgument
from common.rpc.identity import Caller
from coordinator.web.history import RoundHistory
from coordinator.web.reads import Reads

Row = TypeVar("Row")

ROWS_OF_A_PAGE: Final = 50
MOST_QUERY: Final = 200


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for a page. health: reasons why the coordinator is not ready, by what failed."""

    reads: Reads
    caller: Caller
    now: datetime
    path: str
    query: Mapping[str, str]
    history: RoundHistory
    health: Callable[[], Mapping[str, str]]

    def text(self, name: str) -> str:
        """A value of the query, "" if it is not there. Raises InvalidArgument if it is too long."""
        value = self.query.get(name, "").strip()
        if len(value) > MOST_QUERY:
            raise InvalidArgument(f"{name}: at most {MOST_QUERY} characters")
        return value

    def token(self) -> str:
        """The page token of a listing, whose length the listing itself bounds."""
        return self.query.get("from", "")

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """A value of the query out of `choices`; the first if it is not there. Raises InvalidArgument."""
        value = self.query.get(name, "") or choices[0]
        if value not in choices:
            raise InvalidArgument(f"{name}: one of {', '.join(choices)}")
        return value

    def link(self, **changes: str) -> str:
        """This page with other values in its query; an empty one is left out."""
        values = {name: value for name, value in {**self.query, **changes}.items() if value}
        return f"{self.path}?{urlencode(values)}" if values else self.path


@dataclass(frozen=True, slots=True)
class Page:
    """values: what the template shows. section: the part of the navigation it belongs to.

    is_followed: whether it is made anew by itself; not one that is dear to make.
    """

    template: str
    title: str
    section: str
    values: Mapping[str, object] = field(default_factory=dict)
    is_followed: bool = True


Choice = tuple[str, int, str, bool]
ALL: Final = "all"


def choices(
    ask: Ask, names: Iterable[str], counts: Counter[str], chosen: str, *, name: str = "show"
) -> tuple[Choice, ...]:
    """Ways to narrow a list down: what each is called, its rows, its link, and whether it is the chosen one.

    counts: rows by standing; "all" has all of them. name: of the query's value.
    """
    return tuple(
        (
            one,
            counts.total() if one == ALL else counts[one],
            ask.link(**{name: "" if one == ALL else one, "page": ""}),
            one == chosen,
        )
        for one in names
    )


@dataclass(frozen=True, slots=True)
class Part(Generic[Row]):
    """Some rows of a list that is there as a whole. first: number of the first row, from 1; 0 for an empty list."""

    rows: tuple[Row, ...]
    total: int
    first: int
    newer: str
    older: str

    @property
    def last(self) -> int:
        return self.first + len(self.rows) - 1 if self.rows else 0


def part(ask: Ask, rows: Sequence[Row], *, name: str = "page", size: int = ROWS_OF_A_PAGE) -> Part[Row]:
    """The rows that the query's page number asks for; a page beyond the end is the last one."""
    text = ask.text(name) or "1"
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise InvalidArgument(f"{name}: a page number")
    pages = max(1, -(-len(rows) // size))
    number = min(max(1, int(text)), pages)
    start = (number - 1) * size
    return Part(
        rows=tuple(rows[start : start + size]),
        total=len(rows),
        first=start + 1 if rows else 0,
        newer=ask.link(**{name: str(number - 1) if number > 2 else ""}) if number > 1 else "",
        older=ask.link(**{name: str(number + 1)}) if number < pages else "",
    )
