"""A federation's rows on their way from SQLite to PostgreSQL: all of them, or none."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from common.errors import AlreadyExists, ConfigInvalid, StorageFailed
from coordinator.store import moving
from coordinator.store.moving import MovedTable, move
from coordinator.store.opening import open_store
from coordinator.store.schema import describe, migrate, newest_revision
from coordinator.store.tables import METADATA
from tests.conformance.test_old_databases import LINES, fill, require_filled
from tests.postgresql import PostgresServer, postgres_server


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as started:
        yield started


@pytest.fixture
def target(server: PostgresServer) -> str:
    return server.create()


@pytest.fixture
def source(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/coordinator.sqlite"
    migrate(url)
    with closing(open_store(url)) as store:
        fill(store)
    return url


def dump(url: str) -> list[str]:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        return list(connection.iterdump())


def tables(server: PostgresServer, url: str) -> int:
    found = server.execute(
        "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", database=url.rsplit("/", 1)[-1]
    )
    return int(str(found[0][0]))


def test_every_row_arrives_and_the_source_stays_as_it_is(source: str, target: str) -> None:
    before, told = dump(source), list[MovedTable]()
    moved = move(source, target, progress=told.append)
    assert dump(source) == before
    assert moved.tables == tuple(told)
    assert {table.name for table in told} == set(METADATA.tables)
    assert [table.name for table in told if not table.rows] == ["leases"]
    assert moved.audit_head.sequence == LINES
    assert "correct-horse" not in moved.place
    with closing(open_store(target)) as store, store.read() as reader:
        require_filled(reader, of=newest_revision())


def test_a_target_with_this_versions_tables_and_no_row_is_as_good_as_an_empty_one(source: str, target: str) -> None:
    migrate(target)
    assert move(source, target).audit_head.sequence == LINES


def test_a_target_with_rows_is_refused_and_keeps_what_it_has(source: str, target: str) -> None:
    move(source, target)
    with pytest.raises(AlreadyExists, match="has rows already"):
        move(source, target)
    with closing(open_store(target)) as store, store.read() as reader:
        require_filled(reader, of=newest_revision())


def test_a_move_that_breaks_off_leaves_nothing_behind(
    source: str, target: str, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(table: MovedTable) -> None:
        if table.name == "uploads":
            server.cut(target.rsplit("/", 1)[-1])

    with pytest.raises(StorageFailed, match="connection to the server was lost"):
        move(source, target, progress=break_off)
    assert tables(server, target) == 0
    assert move(source, target).audit_head.sequence == LINES


def test_what_arrives_changed_is_noticed(
    source: str, target: str, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = target.rsplit("/", 1)[-1]
    migrate(target)
    server.execute(
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN NEW.message := NEW.message || ' '; RETURN NEW; END $$",
        database=name,
    )
    server.execute("CREATE TRIGGER spoils BEFORE INSERT ON rounds FOR EACH ROW EXECUTE FUNCTION spoil()", database=name)
    with pytest.raises(StorageFailed, match="what arrived of rounds is not what was sent"):
        move(source, target)
    assert server.execute("SELECT count(*) FROM runs", database=name) == [(0,)]


def test_a_log_that_is_broken_is_not_moved(source: str, target: str, server: PostgresServer) -> None:
    with closing(sqlite3.connect(source.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute("UPDATE audit_events SET actor = 'nobody' WHERE sequence = 2")
    with pytest.raises(StorageFailed, match="audit log is broken at event 2, and was so before"):
        move(source, target)
    assert tables(server, target) == 0


def test_nobody_can_write_to_the_source_meanwhile(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[str] = []

    def write(table: MovedTable) -> None:
        with closing(sqlite3.connect(source.removeprefix("sqlite:///"), timeout=0)) as other:
            try:
                other.execute("DELETE FROM answers")
            except sqlite3.OperationalError as error:
                refused.append(str(error))

    move(source, target, progress=write)
    assert refused == ["database is locked"] * len(METADATA.tables)


@pytest.mark.parametrize("end", ["source", "target"])
def test_other_kinds_of_databases_are_refused(source: str, target: str, end: str) -> None:
    with pytest.raises(ConfigInvalid):
        move(*((target, target) if end == "source" else (source, source)))


def test_an_old_source_wants_to_be_migrated_first(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(source.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(StorageFailed, match="older version"):
        move(source, target)
    assert describe(target)[1] == ""


def test_rows_come_in_batches(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "_ROWS_AT_ONCE", 1)
    assert move(source, target).audit_head.sequence == LINES
