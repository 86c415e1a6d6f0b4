"""The coordinator's database: transactions and leases over SQLAlchemy Core."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import bindparam, delete, or_

from common.clock import Clock, SystemClock
from common.errors import StorageFailed
from coordinator.store import tables
from coordinator.store.column_types import UtcTime
from coordinator.store.engine import DEFAULT_BUSY_TIMEOUT, open_database
from coordinator.store.interface import Reader, Writer
from coordinator.store.reader import SqlReader
from coordinator.store.rows import INSERT, Insert, counted
from coordinator.store.schema import check_database
from coordinator.store.writer import SqlWriter

SYSTEM_CLOCK: Final = SystemClock()
# Far more than NTP leaves, far less than any window of a round.
MOST_SKEW: Final = timedelta(seconds=10)
_LEASES: Final = tables.LEASES.c
_RELEASE: Final = delete(tables.LEASES).where(_LEASES.name == bindparam("name"), _LEASES.holder == bindparam("holder"))


class SqlStore:
    """A `Store` in a SQLite file or in PostgreSQL. Safe to call from several threads, and beside other processes.

    Writers take turns: one at a time in this process by a lock, and in the database by BEGIN IMMEDIATE or a lock that
    ends with the transaction. Readers see the state as it was at their first read, and nobody waits for them.
    """

    def __init__(
        self, url: str, *, busy_timeout: timedelta = DEFAULT_BUSY_TIMEOUT, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        """Open a database that exists and has this version's schema (`schema.migrate` makes both).

        busy_timeout: how long a writer waits for its turn before StorageFailed. clock: this host's, which `ping`
        compares with the database's.
        Raises ConfigInvalid for a URL that names no supported database, StorageFailed if it cannot be used.
        """
        self._database = open_database(url, busy_timeout=busy_timeout)
        try:
            check_database(self._database)
        except BaseException:
            self._database.close()
            raise
        self._clock = clock
        self._turn = threading.Lock()
        self._writing_thread: int | None = None
        self._acquire = _acquire_statement(self._database.reader.dialect.name)

    @contextmanager
    def read(self) -> Iterator[Reader]:
        with self._database.read() as connection:
            yield SqlReader(connection)

    @contextmanager
    def write(self) -> Iterator[Writer]:
        with self._write() as writer:
            yield writer

    def acquire_lease(self, name: str, *, holder: str, now: datetime, until: datetime) -> bool:
        with self._write() as writer:
            values = {"name": name, "holder": holder, "until": until, "now": now}
            return writer.connection.execute(self._acquire, values).rowcount == 1

    def release_lease(self, name: str, *, holder: str) -> None:
        with self._write() as writer:
            writer.connection.execute(_RELEASE, {"name": name, "holder": holder})

    def ping(self) -> None:
        with self._database.read() as connection:
            SqlReader(connection).audit_head()
            theirs = self._database.now(connection)
        if theirs is not None and abs(skew := self._clock.now() - theirs) > MOST_SKEW:
            # Windows and leases that one coordinator has opened are closed by another one's clock.
            raise StorageFailed(
                f"{self._database.place}: this host's clock is {abs(skew.total_seconds()):.0f} s "
                f"{'ahead of' if skew > timedelta(0) else 'behind'} the database's: synchronise both (NTP)"
            )

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def _write(self) -> Iterator[SqlWriter]:
        if self._writing_thread == threading.get_ident():
            raise RuntimeError("a write transaction was begun inside another one of the same thread")
        if not self._turn.acquire(timeout=self._database.busy_timeout.total_seconds()):
            raise StorageFailed(f"{self._database.place}: a write transaction of this process has not ended in time")
        try:
            self._writing_thread = threading.get_ident()
            with self._database.write() as connection:
                yield SqlWriter(connection)
        finally:
            self._writing_thread = None
            self._turn.release()


def _acquire_statement(dialect: str) -> Insert:
    """One statement takes a free lease, renews one's own and takes over one that has run out; else it does nothing."""
    statement = INSERT[dialect](tables.LEASES).values({name: bindparam(name) for name in ("name", "holder", "until")})
    return counted(
        statement.on_conflict_do_update(
            index_elements=["name"],
            set_={"holder": statement.excluded.holder, "until": statement.excluded.until},
            where=or_(_LEASES.holder == statement.excluded.holder, _LEASES.until <= bindparam("now", type_=UtcTime())),
        )
    )
