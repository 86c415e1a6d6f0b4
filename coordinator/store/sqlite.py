"""SQLite: a database in one file, for a coordinator on one host.

Knows how it is opened, how its transactions begin, and what its refusals mean. Knows no table.
"""

from __future__ import annotations

import os
import sqlite3
import time
from datetime import timedelta
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from common.errors import AccordError, AlreadyExists, ConfigInvalid, NotFound, StorageFailed
from coordinator.store.database import Database
from coordinator.store.folders import make_folders, sync_folders

DRIVERS: Final = ("sqlite", "sqlite+pysqlite")

# Idle connections that are kept; more are opened when more threads ask at once, and closed afterwards.
_POOL_CONNECTIONS: Final = 8
_WAL_LIMIT_BYTES: Final = 64 << 20


def path_of(url: URL) -> Path:
    """The file that a database URL names. Raises ConfigInvalid if it is no URL of a SQLite file."""
    name = url.database or ""
    if name in ("", ":memory:") or name.startswith("file:") or url.query:
        raise ConfigInvalid("the database needs a file of its own: use sqlite:////absolute/path/coordinator.db")
    return Path(name).absolute()


def open_file(path: Path, *, busy_timeout: timedelta) -> Database:
    """Connect lazily to a file that exists. Raises StorageFailed if it does not."""
    if not path.is_file():
        raise StorageFailed(f"there is no database at {path}: run accord-coordinator migrate")
    engine = create_engine(
        URL.create("sqlite+pysqlite", database=str(path)),
        poolclass=QueuePool,
        pool_size=_POOL_CONNECTIONS,
        max_overflow=-1,
        # Transactions begin where we say (below), not where the driver guesses from the first word of a statement.
        connect_args={"isolation_level": None, "check_same_thread": False, "cached_statements": 256},
        # What is written includes protocol messages; none of it belongs into an exception or a log.
        hide_parameters=True,
    )
    busy_milliseconds = max(1, busy_timeout // timedelta(milliseconds=1))

    @event.listens_for(engine, "connect")
    def _configure(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {busy_milliseconds}")
        _keep_wal(cursor, busy_timeout)  # Readers go on while a writer commits.
        for pragma in (
            "synchronous = FULL",  # A commit that returned survives a power failure: it is what we acknowledge by.
            "foreign_keys = ON",
            f"journal_size_limit = {_WAL_LIMIT_BYTES}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    writer = engine.execution_options(accord_writes=True)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A writer that began as a reader would fail, not wait, if another one committed in between.
        writes = connection.get_execution_options().get("accord_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return Database(
        reader=engine,
        writer=writer,
        place=str(path),
        busy_timeout=busy_timeout,
        translate=_translate,
        server=lambda _: f"SQLite {sqlite3.sqlite_version}",
    )


def _keep_wal(cursor: DBAPICursor, timeout: timedelta) -> None:
    """Switch a new file to WAL; one that is there already stays so.

    SQLite does not wait its busy timeout for the switch, so several processes that open a new file would fail.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.005)


def create_file(path: Path) -> None:
    """An empty file that only its owner can read; SQLite gives its side files the same mode. Harmless if it exists."""
    try:
        top = make_folders(path.parent)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        sync_folders(path.parent, top=top)
    except OSError as error:
        raise StorageFailed(f"{error.filename or path}: {error.strerror}: the database cannot be made here") from error


_ADVICE: Final = {
    sqlite3.SQLITE_FULL: "the disk is full: free space there and try again",
    sqlite3.SQLITE_BUSY: "another process holds the database for too long: see whether a second coordinator, a backup "
    "or a database shell has it open",
    sqlite3.SQLITE_LOCKED: "another process holds the database for too long: see whether a second coordinator, a "
    "backup or a database shell has it open",
    sqlite3.SQLITE_READONLY: "the database cannot be written to: give the service's user the file and its folder, and "
    "see whether the file system is mounted read-only",
    sqlite3.SQLITE_PERM: "permission denied: give the service's user the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "the database cannot be opened: see whether its folder exists, whether the service's user "
    "may write to it, and whether the process has file handles left",
    sqlite3.SQLITE_IOERR: "the disk reports an error: check it, then restore the database from a backup if it is "
    "damaged",
    sqlite3.SQLITE_CORRUPT: "the database is damaged: stop the coordinator, keep the file aside and restore a backup",
    sqlite3.SQLITE_NOTADB: "this is not an Accord database, or it is damaged: see whether the path is right, else "
    "restore a backup",
    sqlite3.SQLITE_ERROR: "the database's schema is not the one that this version expects: run accord-coordinator "
    "migrate",
}


def _translate(error: DBAPIError, place: str) -> AccordError:
    translated = _meaning(error, place)
    translated.__cause__ = error.orig  # says what SQLite says, and nothing of statement and values
    return translated


def _meaning(error: DBAPIError, place: str) -> AccordError:
    cause = error.orig
    extended = getattr(cause, "sqlite_errorcode", None)
    code = extended & 0xFF if isinstance(extended, int) else None
    if isinstance(error, IntegrityError):
        if extended in (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY):
            return AlreadyExists("another row has the same unique value; nothing was written")
        if extended == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
            return NotFound("a row refers to a run, a round or a participant that does not exist; nothing was written")
    advice = _ADVICE.get(code) if code is not None else None
    return StorageFailed(f"{place}: {advice or f'the database refused ({cause})'}")
