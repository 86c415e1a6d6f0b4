"""Which schema a database has, and bringing it to this version's: Alembic, run from code.

The steps are in `migrations/versions`. A migration happens as a whole or not at all, even if the process is killed.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from common.errors import StorageFailed
from coordinator.store.database import Database
from coordinator.store.engine import create_missing, open_database

_LOCATION: Final = "coordinator.store:migrations"


def migrate(url: str) -> str:
    """Bring the database at `url` to this version's schema, making it if it is not there. Returns the revision.

    Harmless if it is there already. Raises ConfigInvalid for a URL of no supported database, StorageFailed if it cannot
    be written or is newer than this version.
    """
    create_missing(url)
    database = open_database(url)
    try:
        with database.write() as connection:
            return upgrade(connection, database)
    finally:
        database.close()


def upgrade(connection: Connection, database: Database) -> str:
    """The same within a write transaction of an open database."""
    _refuse_newer(current_revision(connection), database.place)
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return current_revision(connection)


def check_schema(url: str) -> None:
    """Raises StorageFailed unless the database at `url` has exactly this version's schema."""
    database = open_database(url)
    try:
        check_database(database)
    finally:
        database.close()


def check_database(database: Database) -> None:
    """The same for a database that is open already."""
    with database.read() as connection:
        revision = current_revision(connection)
    _refuse_newer(revision, database.place)
    if not revision:
        raise StorageFailed(f"{database.place} is an empty database: run accord-coordinator migrate")
    if revision != _history()[0]:
        raise StorageFailed(
            f"{database.place} has the schema of an older version ({revision}): back it up, then run "
            "accord-coordinator migrate"
        )


def describe(url: str) -> tuple[str, str]:
    """What answers at `url`, such as "PostgreSQL 17.2", and its revision, "" for an empty database.

    Changes nothing, and does not mind another revision. Raises ConfigInvalid or StorageFailed as `check_schema` does.
    """
    database = open_database(url)
    try:
        with database.read() as connection:
            return database.server(connection), current_revision(connection)
    finally:
        database.close()


def newest_revision() -> str:
    """This version's."""
    return _history()[0]


def current_revision(connection: Connection) -> str:
    """The revision that a database is at, "" for one without tables."""
    return MigrationContext.configure(connection).get_current_revision() or ""


def _refuse_newer(revision: str, place: str) -> None:
    if revision and revision not in _history():
        raise StorageFailed(
            f"{place} has the schema of a newer version ({revision}): install that version of accord, or restore the "
            "backup from before its migration"
        )


@cache
def _history() -> tuple[str, ...]:
    """The revisions that this version knows, newest first."""
    return tuple(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", _LOCATION)
    config.set_main_option("path_separator", "os")
    return config
