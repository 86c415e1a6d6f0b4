"""PostgreSQL: a database that several coordinators share.

Writers take turns, as they do on SQLite: the first thing that a write transaction does is to wait for one lock that
the server drops with the transaction, however that ends. So a writer sees all that was committed before, nothing of it
changes under its hands, and neither serialization failures nor deadlocks can happen between coordinators: there is
nothing to be retried. Every writer appends to one audit chain, so they could not be side by side in any case. Readers
see a snapshot and wait for nobody.

Knows how it is opened, how its transactions begin, and what its refusals mean. Knows no table.
"""

from __future__ import annotations

import os
import re
import ssl
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, create_engine, event, func, select
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from common.errors import (
    AccordError,
    AlreadyExists,
    ConfigInvalid,
    NotFound,
    StorageDenied,
    StorageFailed,
    StorageFull,
    StorageMissing,
    StorageUnreachable,
)
from coordinator.store.database import Database

DRIVERS: Final = ("postgresql", "postgresql+psycopg")
# Where Debian and its like, Red Hat's, and Alpine have them.
_CA_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem",
)  # fmt: skip
OLDEST_SERVER: Final = 14

# Together the most connections of one coordinator, with one more that hears others (`coordinator.store.signals`).
_POOL_CONNECTIONS: Final = 8
_MORE_CONNECTIONS: Final = 16
CONNECT_SECONDS: Final = 5
# A host that is gone without a word is noticed after about so long, and what it held is free: here and at the server.
_SILENT_SECONDS: Final = 15
# A coordinator that stands still within a transaction must not hold up the others for ever.
_STANDSTILL_SECONDS: Final = 60
# Any number does, if nobody else who writes to the same database takes it: "accord" in ASCII.
_TURN: Final = int.from_bytes(b"accord", "big")
_TAKE_TURN: Final = select(func.pg_advisory_xact_lock(_TURN), func.current_setting("transaction_read_only"))
_CLOCK: Final = select(func.clock_timestamp())


def check_url(url: URL) -> None:
    """Raises ConfigInvalid unless a database is named, or where the driver is not installed."""
    if not url.database:
        raise ConfigInvalid("the URL names no database: use postgresql://user@host/database")
    try:
        import psycopg  # noqa: F401  an extra: most coordinators need none
    except ImportError:
        raise ConfigInvalid(
            "PostgreSQL needs a driver that is not installed: pip install 'accord[postgresql]'"
        ) from None


def place_of(url: URL) -> str:
    """The URL without password and settings, for people."""
    return URL.create(
        "postgresql", username=url.username, host=url.host, port=url.port, database=url.database
    ).render_as_string(hide_password=True)


def open_server(url: URL, *, busy_timeout: timedelta) -> Database:
    """Connect lazily. What is wrong with server, name or password is said by the first transaction.

    Raises ConfigInvalid for settings in the URL that are none.
    """
    place = place_of(url)
    try:
        engine = create_engine(
            driver_url(url),
            poolclass=QueuePool,
            pool_size=_POOL_CONNECTIONS,
            max_overflow=_MORE_CONNECTIONS,
            pool_timeout=busy_timeout.total_seconds(),
            # A server that was restarted or has failed over costs no call its answer: dead connections are replaced.
            pool_pre_ping=True,
            # What is written includes protocol messages; none of it belongs into an exception or a log.
            hide_parameters=True,
        )
    except (ValueError, TypeError):
        raise ConfigInvalid(f"{place}: the settings after the ? of the URL cannot be read") from None
    lock_milliseconds = max(1, busy_timeout // timedelta(milliseconds=1))

    @event.listens_for(engine, "connect")
    def _configure(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        _check_server(connection, place)
        cursor = connection.cursor()
        for name, value in (
            ("lock_timeout", str(lock_milliseconds)),
            ("idle_in_transaction_session_timeout", str(_STANDSTILL_SECONDS * 1000)),
            ("tcp_keepalives_idle", str(_SILENT_SECONDS // 3)),
            ("tcp_keepalives_interval", str(_SILENT_SECONDS // 3)),
            ("tcp_keepalives_count", "2"),
            ("timezone", "UTC"),
        ):
            cursor.execute(f"SET {name} = '{value}'")
        cursor.execute("SHOW synchronous_commit")
        row = cursor.fetchone()
        if row is not None and row[0] == "off":
            # A commit that returned survives a power failure: it is what we acknowledge by.
            cursor.execute("SET synchronous_commit = on")
        cursor.close()
        connection.commit()

    return Database(
        reader=engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True),
        # With the turn as its first statement, each later one sees all that was committed before.
        writer=engine.execution_options(isolation_level="READ COMMITTED"),
        place=place,
        busy_timeout=busy_timeout,
        translate=_translate,
        take_turn=lambda connection: _take_turn(connection, place),
        now=_clock,
        server=lambda connection: "PostgreSQL " + ".".join(map(str, connection.dialect.server_version_info or ())),
    )


def driver_url(url: URL) -> URL:
    """The URL as the driver takes it, with settings that notice a silent server; its own settings come first."""
    return url.set(drivername="postgresql+psycopg").update_query_dict(
        {
            "connect_timeout": str(CONNECT_SECONDS),
            "keepalives_idle": str(_SILENT_SECONDS // 3),
            "keepalives_interval": str(_SILENT_SECONDS // 3),
            "keepalives_count": "2",
            "tcp_user_timeout": str(_SILENT_SECONDS * 1000),
            "application_name": "accord-coordinator",
            **{name: value for name, value in url.query.items() if isinstance(value, str)},
            **_root_certificates(url),
        }
    )


def _root_certificates(url: URL) -> dict[str, str]:
    """This machine's CAs where the server's certificate is to be verified and nobody says by what.

    libpq's own default is a file in the user's home, which a service has not; and its word for the machine's CAs,
    `sslrootcert=system`, means to the libpq in the driver's wheel a folder that no machine has.
    """
    mode, named = url.query.get("sslmode"), url.query.get("sslrootcert") or os.environ.get("PGSSLROOTCERT")
    if named not in (None, "system") or (named is None and mode not in ("verify-ca", "verify-full")):
        return {}
    if named is None and (Path.home() / ".postgresql" / "root.crt").exists():
        return {}
    usual = (ssl.get_default_verify_paths().cafile, *_CA_BUNDLES)
    found = next((path for path in usual if path and Path(path).exists()), None)
    return {"sslrootcert": found} if found is not None else {}


def _check_server(connection: DBAPIConnection, place: str) -> None:
    """Raises StorageFailed for a server or a database that could not hold what is written to it."""
    cursor = connection.cursor()
    cursor.execute("SELECT current_setting('server_version_num')::int, current_setting('server_encoding')")
    row = cursor.fetchone()
    cursor.close()
    version, encoding = (int(row[0]), str(row[1])) if row is not None else (0, "")
    if version // 10_000 < OLDEST_SERVER:
        raise StorageFailed(
            f"{place}: this is PostgreSQL {version // 10_000}, and {OLDEST_SERVER} is the oldest that is supported: "
            "upgrade the server"
        )
    if encoding != "UTF8":
        raise StorageFailed(
            f"{place}: the database is encoded in {encoding}, and needs UTF8: CREATE DATABASE ... TEMPLATE template0 "
            "ENCODING 'UTF8'"
        )


def _take_turn(connection: Connection, place: str) -> None:
    _, is_read_only = connection.execute(_TAKE_TURN).one()
    if is_read_only == "on":  # a standby lets everybody take turns
        raise StorageFailed(f"{place}: {_READ_ONLY}")


def _clock(connection: Connection) -> datetime | None:
    now: datetime | None = connection.execute(_CLOCK).scalar()
    return now


# --- what a refusal means -------------------------------------------------------------------------------------------

_READ_ONLY: Final = (
    "the database is read-only: this is a standby server, or default_transaction_read_only is on; name the primary, "
    "or all servers with target_session_attrs=read-write"
)
_GONE: Final = "the connection to the server was lost; it is made anew with the next call. See the server's log"
_HELD: Final = (
    "another process holds the database for too long: see in pg_stat_activity whether a second coordinator, a backup "
    "or a database shell has a transaction open"
)
_SCHEMA: Final = "the database's schema is not the one that this version expects: run accord-coordinator migrate"
_DISK: Final = "the server's disk is full: free space there and try again"
_DAMAGED: Final = "the database is damaged: stop all coordinators and restore a backup"

# By SQLSTATE, or its first characters.
_ADVICE: Final = {
    "08": _GONE,
    "22021": "the database cannot hold a character of the text",
    "25006": _READ_ONLY,
    "25P03": _GONE,
    "40001": "another transaction was in the way: try again",
    "40P01": "another transaction was in the way: try again",
    "42501": "permission denied: the coordinator's role must own the tables, or have all rights to them and the schema",
    "42703": _SCHEMA,
    "42P01": _SCHEMA,
    "53100": _DISK,
    "53200": "the server is out of memory: try again, and see the server's log",
    "53300": "the server has no connection left: raise max_connections, or let fewer clients in",
    "55P03": _HELD,
    "57014": "a statement was cancelled: see whether statement_timeout is set for this role or database",
    "57P": _GONE,
    "58030": "the server's disk reports an error: see the server's log",
    "XX001": _DAMAGED,
    "XX002": _DAMAGED,
}
_KINDS: Final[dict[str, type[AccordError]]] = {
    "08": StorageUnreachable,
    "25P03": StorageUnreachable,
    "42501": StorageDenied,
    "53100": StorageFull,
    "53300": StorageUnreachable,
    "57P": StorageUnreachable,
}
_TLS: Final = "TLS with the server does not come about: see sslmode, sslrootcert and the server's certificate"
_NO_DATABASE: Final = "there is no such database: CREATE DATABASE, then run accord-coordinator migrate"
_NOT_LET_IN: Final = "the server lets nobody in from here: see its pg_hba.conf, and whether it asks for TLS"
# A server that does not let anybody in says so in words alone; in the language of its own messages.
_AT_THE_DOOR: Final[tuple[tuple[str, type[AccordError], str], ...]] = (
    (r"password authentication failed|no password supplied", StorageDenied, "user name or password is wrong"),
    (r'database ".*" does not exist', StorageMissing, _NO_DATABASE),
    (r'role ".*" does not exist', StorageDenied, "there is no such user: CREATE ROLE ... LOGIN"),
    (r"no pg_hba.conf entry", StorageDenied, _NOT_LET_IN),
    (r"certificate|SSL", StorageUnreachable, _TLS),
    (r"too many (clients|connections)|remaining connection slots", StorageUnreachable, _ADVICE["53300"]),
    (r"starting up|shutting down|recovery mode", StorageUnreachable, "the server is starting or stopping; try again"),
    (r"could not translate host|Name or service not known|resolve", StorageUnreachable, "the host name is not known"),
    (
        r"refused|timeout|timed out|unreachable|No such file",
        StorageUnreachable,
        "the server cannot be reached: see whether it runs there",
    ),
    (r"invalid (connection option|integer|sslmode|port)", ConfigInvalid, "a setting in the URL is not one"),
)


def _translate(error: DBAPIError, place: str) -> AccordError:
    # Without the cause: the server's message may quote values, and a failed connection's error holds the password.
    cause = error.orig
    state = getattr(cause, "sqlstate", None) or ""
    if isinstance(error, IntegrityError):
        if state == "23505":
            return AlreadyExists("another row has the same unique value; nothing was written")
        if state == "23503":
            return NotFound("a row refers to a run, a round or a participant that does not exist; nothing was written")
    if not state:
        return _without_state(error, place)
    for key in (state, state[:3], state[:2]):
        if key in _ADVICE:
            return _KINDS.get(key, StorageFailed)(f"{place}: {_ADVICE[key]} ({state})")
    return StorageFailed(f"{place}: the database refused (SQLSTATE {state}); the server's log has the reason")


def _without_state(error: DBAPIError, place: str) -> AccordError:
    """What libpq says of a connection that did not come about, or has gone."""
    if error.connection_invalidated:
        return StorageUnreachable(f"{place}: {_GONE}")
    said = " ".join(str(error.orig).split()).removeprefix("connection failed: ")[:300]
    for pattern, kind, advice in _AT_THE_DOOR:
        if re.search(pattern, said):
            return kind(f"{place}: {advice} ({said})")
    return StorageUnreachable(f"{place}: {said}")
