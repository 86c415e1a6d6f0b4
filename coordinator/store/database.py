"""A database that is open: two kinds of transactions, and what its refusals mean.

All that differs between one database and another is in `sqlite`, `postgresql` and `column_types`. Knows no table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from common.errors import AccordError, StorageFailed

Translate = Callable[[DBAPIError, str], AccordError]


@dataclass(frozen=True, slots=True)
class Database:
    """Two ways into one pool: `reader` begins snapshots, `writer` begins transactions that exclude other writers.

    place: where it is, for people, without a password. take_turn: the first thing that a write transaction does.
    translate: what a refusal means, free of SQL and of values. now: the database's own clock, if it has one. server:
    what it is, with its version, for people.
    """

    reader: Engine
    writer: Engine
    place: str
    busy_timeout: timedelta
    translate: Translate
    take_turn: Callable[[Connection], None] = lambda _: None
    now: Callable[[Connection], datetime | None] = lambda _: None
    server: Callable[[Connection], str] = lambda _: ""

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with storage_errors(self.place, self.translate), self.reader.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        with storage_errors(self.place, self.translate), self.writer.begin() as connection:
            self.take_turn(connection)
            yield connection

    def close(self) -> None:
        self.reader.dispose()


@contextmanager
def storage_errors(place: str, translate: Translate) -> Iterator[None]:
    """Turns what the database refuses into errors of our own. Their text and their cause are free of SQL."""
    try:
        yield
    except DBAPIError as error:
        translated = translate(error, place)
        raise translated from translated.__cause__
    except StatementError as error:
        # A value was refused on its way to the database, by `column_types`.
        if isinstance(error.orig, AccordError):
            raise error.orig from None
        raise
    except PoolTimeout:
        raise StorageFailed(
            f"{place}: all connections of this process are in use, and none came free in time; try again"
        ) from None
