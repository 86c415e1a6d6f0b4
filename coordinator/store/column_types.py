"""How values become columns: the same value comes back from every database, or is refused before it is written.

Knows nothing of tables.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Final, TypeVar

from sqlalchemy import BigInteger, Double
from sqlalchemy import DateTime as SqlDateTime
from sqlalchemy import Text as SqlText
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from common.errors import InvalidArgument, StorageFailed
from common.secagg import ClosedGroup

Member = TypeVar("Member", bound=Enum)

MAX_WHOLE: Final = 2**63 - 1

# Byte order on every database: PostgreSQL would sort by the cluster's language, and pages would differ with it.
TEXT: Final = SqlText().with_variant(postgresql.TEXT(collation="C"), "postgresql")
# SQLite has no time type; ISO 8601 of one width in UTC sorts as time does, and a person can read it.
TIME: Final = SqlDateTime(timezone=True).with_variant(SqlText(), "sqlite")


class Text(TypeDecorator[str]):
    """Unicode text. NUL and lone surrogates are refused: PostgreSQL or UTF-8 cannot hold them."""

    impl = TEXT
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        if "\0" in value:
            raise InvalidArgument("text with a NUL character cannot be stored")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidArgument("text that is not valid Unicode cannot be stored") from None
        return value


class Whole(TypeDecorator[int]):
    """An integer from 0 to 2**63 - 1."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        if value is not None and not 0 <= value <= MAX_WHOLE:
            raise InvalidArgument(f"{value} cannot be stored: integers go from 0 to 2**63 - 1")
        return value


class Finite(TypeDecorator[float]):
    """A float64; SQLite forgets the sign of zero. NaN is refused (SQLite would make it NULL), and so is infinity."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        if value is not None and not math.isfinite(value):
            raise InvalidArgument(f"{value} cannot be stored: not a finite number")
        return value


class UtcTime(TypeDecorator[datetime]):
    """An aware datetime, to the microsecond; it comes back in UTC."""

    impl = TIME
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | str | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise InvalidArgument("a time without a zone cannot be stored")
        value = value.astimezone(UTC)
        return value.isoformat(timespec="microseconds") if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | str | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        try:
            time = datetime.fromisoformat(value) if isinstance(value, str) else value
            return time.astimezone(UTC)
        except ValueError as error:
            raise _unreadable("time", str(value)) from error


class OneOf(TypeDecorator[Member]):
    """A member of an Enum with text values, stored as that value."""

    impl = TEXT
    cache_ok = True

    def __init__(self, of: type[Member]) -> None:
        super().__init__()
        self.of = of

    def process_bind_param(self, value: Member | None, dialect: Dialect) -> str | None:
        return None if value is None else str(self.of(value).value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Member | None:
        try:
            return None if value is None else self.of(value)
        except ValueError as error:
            raise _unreadable(self.of.__name__, value or "") from error


class Names(TypeDecorator[tuple[str, ...]]):
    """A tuple of names, as a JSON array."""

    impl = TEXT
    cache_ok = True

    def process_bind_param(self, value: Sequence[str] | None, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(list(value), separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[str, ...] | None:
        try:
            return None if value is None else tuple(str(name) for name in json.loads(value))
        except (ValueError, TypeError) as error:
            raise _unreadable("list of names", value or "") from error


class Figures(TypeDecorator[tuple[tuple[str, float], ...]]):
    """Named float64 figures in their order, as a JSON array of pairs. Only finite ones."""

    impl = TEXT
    cache_ok = True

    def process_bind_param(self, value: Sequence[tuple[str, float]] | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        for name, figure in value:
            if not math.isfinite(figure):
                raise InvalidArgument(f"figure {name!r} cannot be stored: {figure} is not a finite number")
        return json.dumps([[name, float(figure)] for name, figure in value], separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[tuple[str, float], ...] | None:
        try:
            return None if value is None else tuple((str(name), float(figure)) for name, figure in json.loads(value))
        except (ValueError, TypeError) as error:
            raise _unreadable("list of figures", value or "") from error


class ClosedGroups(TypeDecorator[tuple[ClosedGroup, ...]]):
    """Metric groups that a round does not sum, as a JSON array of [name, contributors, needed]."""

    impl = TEXT
    cache_ok = True

    def process_bind_param(self, value: Sequence[ClosedGroup] | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return json.dumps([[one.name, one.contributors, one.needed] for one in value], separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[ClosedGroup, ...] | None:
        try:
            if value is None:
                return None
            return tuple(ClosedGroup(str(name), int(count), int(needed)) for name, count, needed in json.loads(value))
        except (ValueError, TypeError) as error:
            raise _unreadable("list of metric groups", value or "") from error


def _unreadable(what: str, value: str) -> StorageFailed:
    return StorageFailed(
        f"the database holds {value[:40]!r} where a {what} belongs: it was changed by hand or is damaged; "
        "restore it from a backup"
    )
