"""What an operator is told when SQLite refuses, and that nothing of the SQL or the values is in it."""

from __future__ import annotations

import sqlite3
import threading
import traceback
from datetime import timedelta

import pytest
from sqlalchemy import event

from common.errors import StorageFailed
from coordinator.store.schema import migrate
from coordinator.store.sql import SqlStore
from tests.conformance import samples
from tests.conformance.samples import NOW

SECRET = "text that belongs into no log"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "coordinator.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(path):
    store = SqlStore(f"sqlite:///{path}", busy_timeout=timedelta(milliseconds=20))
    yield store
    store.close()


def pragma(store, setting):
    """Every connection of the store gets this setting, as if the machine had it."""
    engine = store._database.reader
    event.listen(engine, "checkout", lambda connection, *_: connection.execute(f"PRAGMA {setting}"))


def write(store):
    with store.write() as writer:
        writer.put_answer("caller", SECRET, SECRET.encode() * 10_000, at=NOW)


def failure(action):
    with pytest.raises(StorageFailed) as failed:
        action()
    told = "".join(traceback.format_exception(failed.value))
    assert SECRET not in told
    assert "INSERT" not in told
    assert "SELECT" not in told
    assert "[SQL" not in told
    return str(failed.value)


def test_a_full_disk_is_said_and_the_store_works_again_when_there_is_room(store, path):
    pragma(store, "max_page_count = 60")
    assert failure(lambda: write(store)) == f"{path}: the disk is full: free space there and try again"
    pragma(store, "max_page_count = 1000000")
    write(store)
    with store.read() as reader:
        assert reader.answer("caller", SECRET) is not None


def test_a_database_that_cannot_be_written_to_is_said_and_can_still_be_read(store):
    pragma(store, "query_only = ON")
    assert "cannot be written to: give the service's user" in failure(lambda: write(store))
    with store.read() as reader:
        assert reader.runs().rows == ()


def test_a_database_that_another_process_holds_is_said_after_the_timeout(store, path):
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert "another process holds the database for too long" in failure(lambda: write(store))
    with pytest.raises(StorageFailed):
        store.acquire_lease("x", holder="a", now=NOW, until=NOW)
    store.ping()  # Readers do not wait for it.
    other.execute("ROLLBACK")
    other.close()
    write(store)


def test_a_writer_that_does_not_end_is_said_to_the_next_one_of_the_same_process(store):
    begun, end = threading.Event(), threading.Event()

    def hold():
        with store.write():
            begun.set()
            end.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    begun.wait(60)
    try:
        assert "has not ended in time" in failure(lambda: write(store))
    finally:
        end.set()
        holder.join()
    write(store)


def test_a_damaged_database_is_said(store, path):
    with store.write() as writer:
        for index in range(50):
            writer.add_run(samples.run(f"run-{index}"))
    store.close()
    content = bytearray(path.read_bytes())
    for page in range(1, len(content) // 4096):
        content[page * 4096 : page * 4096 + 200] = b"\xa5" * 200
    path.write_bytes(content)
    assert "damaged: stop the coordinator" in failure(store.ping)


def test_a_file_that_is_no_database_is_said(path):
    path.write_bytes(b"# notes\n" * 1000)
    assert "not an Accord database" in failure(lambda: SqlStore(f"sqlite:///{path}"))
    assert "not an Accord database" in failure(lambda: migrate(f"sqlite:///{path}"))


def test_a_database_that_went_away_is_said(store, path):
    store.close()
    for file in path.parent.glob("coordinator.db*"):
        file.unlink()
    path.mkdir()
    assert "cannot be opened: see whether" in failure(store.ping)


def test_a_missing_table_is_a_question_of_the_schema(store, path):
    with sqlite3.connect(path) as other:
        other.execute("DROP TABLE answers")
    other.close()
    assert "run accord-coordinator migrate" in failure(lambda: write(store))


@pytest.mark.parametrize(
    ("column", "value", "read"),
    [
        ("created_at", "yesterday", lambda reader: reader.round("run-1", 1)),
        ("state", "dreaming", lambda reader: reader.round("run-1", 1)),
        ("cohort", "not json", lambda reader: reader.rounds("run-1")),
        ("cohort", "7", lambda reader: reader.rounds("run-1")),
        ("metrics", "[1]", lambda reader: reader.rounds("run-1")),
    ],
)
def test_a_value_that_no_version_has_written_is_said(store, path, column, value, read):
    with store.write() as writer:
        writer.add_run(samples.run())
        writer.add_round(samples.round_())
    with sqlite3.connect(path) as other:
        other.execute(f"UPDATE rounds SET {column} = ?", (value,))
    other.close()
    with store.read() as reader, pytest.raises(StorageFailed, match="changed by hand or is damaged"):
        read(reader)
