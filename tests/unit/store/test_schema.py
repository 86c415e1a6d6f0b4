"""Migrations: they make the tables that the code expects, on every database, as a whole or not at all."""

from __future__ import annotations

import io
import re
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, create_mock_engine
from sqlalchemy.dialects import postgresql, sqlite

from common.errors import ConfigInvalid, StorageFailed
from coordinator.store.schema import check_schema, migrate
from coordinator.store.sql import SqlStore
from coordinator.store.tables import METADATA


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "coordinator.db"


@pytest.fixture
def url(path):
    return f"sqlite:///{path}"


def execute(path, statement):
    with sqlite3.connect(path) as connection:
        rows = connection.execute(statement).fetchall()
    connection.close()
    return rows


def test_the_migrations_make_exactly_the_tables_of_the_code(url):
    migrate(url)
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        differences = compare_metadata(context, METADATA)
    engine.dispose()
    assert differences == []


def steps():
    config = Config()
    config.set_main_option("script_location", "coordinator.store:migrations")
    config.set_main_option("path_separator", "os")
    return list(reversed(list(ScriptDirectory.from_config(config).walk_revisions())))


def statements(text):
    """SQL statements, each on one line, sorted; and the parts of a table sorted, for constraints have no order."""
    found = [re.sub(r"\s+", " ", statement).strip() for statement in text.split(";\n")]
    return sorted(parts_sorted(statement) for statement in found if statement)


def parts_sorted(statement):
    if not statement.startswith("CREATE TABLE"):
        return statement
    return ", ".join(sorted(statement.removesuffix(" )").split(", ")))


@pytest.mark.parametrize("dialect", [sqlite.dialect(), postgresql.dialect()], ids=lambda dialect: dialect.name)
def test_step_by_step_and_at_once_the_same_statements_run_on_every_database(dialect):
    """Compares the SQL itself, comments and collations too, so it needs no server of each kind."""
    migrated, at_once = io.StringIO(), io.StringIO()
    context = MigrationContext.configure(dialect=dialect, opts={"as_sql": True, "output_buffer": migrated})
    with Operations.context(context):
        for step in steps():
            step.module.upgrade()

    def collect(statement, *_, **__):
        at_once.write(f"{statement.compile(dialect=dialect)};\n")

    METADATA.create_all(create_mock_engine(f"{dialect.name}://", collect), checkfirst=False)
    assert statements(migrated.getvalue()) == statements(at_once.getvalue())
    assert len(statements(at_once.getvalue())) >= len(METADATA.tables)


def test_every_column_says_what_it_holds():
    assert [str(column) for table in METADATA.sorted_tables for column in table.columns if not column.comment] == []


def test_migrating_makes_a_database_that_its_owner_alone_can_read(url, path):
    assert migrate(url) == steps()[-1].revision
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    check_schema(url)


def test_migrating_again_changes_nothing(url, path):
    migrate(url)
    execute(path, "INSERT INTO answers VALUES ('a', 'b', x'00', '2026-01-01T00:00:00.000000+00:00')")
    schema = execute(path, "SELECT sql FROM sqlite_master")
    migrate(url)
    assert execute(path, "SELECT sql FROM sqlite_master") == schema
    assert execute(path, "SELECT caller FROM answers") == [("a",)]


def test_two_who_migrate_at_once_both_succeed(url):
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(migrate, [url] * 4)) == {steps()[-1].revision}
    check_schema(url)


def test_a_step_that_fails_leaves_no_table_behind(url, path):
    path.parent.mkdir()
    execute(path, "CREATE TABLE uploads (mine TEXT)")  # In the way of one of the last statements.
    with pytest.raises(StorageFailed):
        migrate(url)
    assert execute(path, "SELECT name FROM sqlite_master WHERE type = 'table'") == [("uploads",)]


def test_every_step_can_be_taken_back(url, path):
    migrate(url)
    engine = create_engine(url)
    with engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
        for step in reversed(steps()):
            step.module.downgrade()
    engine.dispose()
    assert execute(path, "SELECT name FROM sqlite_master WHERE type = 'table'") == [("alembic_version",)]


# --- what a coordinator says to a database that is not its own -------------------------------------------------------


def refusal(url):
    with pytest.raises(StorageFailed) as by_check:
        check_schema(url)
    with pytest.raises(StorageFailed) as by_store:
        SqlStore(url)
    assert str(by_check.value) == str(by_store.value)
    return str(by_check.value)


def test_a_database_that_is_not_there_is_not_made_by_opening_it(url, path):
    assert refusal(url) == f"there is no database at {path}: run accord-coordinator migrate"
    assert not path.exists()


def test_an_empty_database_wants_to_be_migrated(url, path):
    path.parent.mkdir()
    path.touch()
    assert "empty database: run accord-coordinator migrate" in refusal(url)


def test_an_older_database_wants_to_be_migrated(url, path, monkeypatch):
    revision = migrate(url)
    monkeypatch.setattr("coordinator.store.schema._history", lambda: ("9999", revision))
    assert f"older version ({revision}): back it up, then run accord-coordinator migrate" in refusal(url)


def test_a_newer_database_wants_a_newer_coordinator_and_is_not_migrated_back(url, path):
    migrate(url)
    execute(path, "UPDATE alembic_version SET version_num = '9999'")
    assert "newer version (9999): install that version" in refusal(url)
    with pytest.raises(StorageFailed, match="newer version"):
        migrate(url)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("mysql://user:secret@host/db", "'mysql' are not supported"),
        ("postgresql+psycopg2://user:secret@host/db", "'postgresql.psycopg2' are not supported"),
        ("postgresql://user:secret@host", "names no database"),
        ("postgresql://user:secret@host:port/db", "not a database URL"),
        ("sqlite://", "a file of its own"),
        ("sqlite:///:memory:", "a file of its own"),
        ("sqlite:///file:x?mode=memory&uri=true", "a file of its own"),
        ("postgresql//user:secret@host/db", "not a database URL"),
        ("coordinator.db", "not a database URL"),
        ("", "not a database URL"),
    ],
)
def test_a_url_of_no_database_is_a_mistake_in_the_configuration(bad, said):
    for use in (migrate, check_schema, SqlStore):
        with pytest.raises(ConfigInvalid, match=said) as refused:
            use(bad)
        assert "secret" not in str(refused.value)


def test_a_folder_that_cannot_be_made_is_said_by_name(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(StorageFailed, match="taken"):
        migrate(f"sqlite:///{tmp_path}/taken/coordinator.db")
