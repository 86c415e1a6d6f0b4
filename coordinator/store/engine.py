"""Which database a URL names. Knows no table; `sqlite` and `postgresql` know how each of them is opened."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from common.errors import ConfigInvalid
from coordinator.store import postgresql, sqlite
from coordinator.store.database import Database

DEFAULT_BUSY_TIMEOUT: Final = timedelta(seconds=10)
URL_FORMS: Final = "sqlite:////absolute/path/coordinator.db or postgresql://user@host/database"


def parse_url(url: str) -> URL:
    """Raises ConfigInvalid if this names no supported database. Connects to nothing."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Not repeated: what is wrong with it may be the place of a password.
        raise ConfigInvalid(f"this is not a database URL: use {URL_FORMS}") from None
    if parsed.drivername in sqlite.DRIVERS:
        sqlite.path_of(parsed)
    elif parsed.drivername in postgresql.DRIVERS:
        postgresql.check_url(parsed)
    else:
        # The drivername alone: a URL may hold a password.
        raise ConfigInvalid(
            f"databases of kind {parsed.drivername!r} are not supported by this version: use {URL_FORMS}"
        )
    return parsed


def is_sqlite(url: str) -> bool:
    """Whether the database is a file of one host. Raises as `parse_url` does."""
    return parse_url(url).drivername in sqlite.DRIVERS


def create_missing(url: str) -> None:
    """Make what a database needs before it can be opened: a SQLite file. A server's database its operator makes."""
    parsed = parse_url(url)
    if parsed.drivername in sqlite.DRIVERS:
        sqlite.create_file(sqlite.path_of(parsed))


def open_database(url: str, *, busy_timeout: timedelta = DEFAULT_BUSY_TIMEOUT) -> Database:
    """Connect lazily to a database that exists. Raises ConfigInvalid, or StorageFailed if there is no such file."""
    parsed = parse_url(url)
    if parsed.drivername in sqlite.DRIVERS:
        return sqlite.open_file(sqlite.path_of(parsed), busy_timeout=busy_timeout)
    return postgresql.open_server(parsed, busy_timeout=busy_timeout)


def place_of(url: str) -> str:
    """Where the database is, for people: without password. Raises as `parse_url` does."""
    parsed = parse_url(url)
    return str(sqlite.path_of(parsed)) if parsed.drivername in sqlite.DRIVERS else postgresql.place_of(parsed)
