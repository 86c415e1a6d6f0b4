"""What an operator is told when PostgreSQL refuses, that no password or value is in it, and that the store recovers."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy.engine import make_url

from common.clock import SystemClock
from common.errors import (
    AccordError,
    AlreadyExists,
    ConfigInvalid,
    StorageDenied,
    StorageFailed,
    StorageMissing,
    StorageUnreachable,
)
from coordinator.store import postgresql
from coordinator.store.schema import check_schema, describe, migrate, newest_revision
from coordinator.store.sql import SqlStore
from tests.conformance import samples
from tests.conformance.samples import NOW
from tests.fakes import FakeClock
from tests.pages import DOCS, typed
from tests.postgresql import PASSWORD, PostgresServer, postgres_server

SECRET = "text that belongs into no log"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as started:
        migrate(started.create("template"))
        yield started


@pytest.fixture
def url(server: PostgresServer) -> str:
    return server.create(template="template")


@pytest.fixture
def store(url: str) -> Iterator[SqlStore]:
    store = SqlStore(url, busy_timeout=timedelta(milliseconds=200))
    yield store
    store.close()


def test_the_role_and_the_database_of_the_guide_are_all_that_a_coordinator_needs(server: PostgresServer) -> None:
    for statement in typed(DOCS / "operations-state.md", "role").strip().replace("'...'", f"'{SECRET}'").split("\n"):
        server.execute(statement.replace("accord", "guide"))
    url = server.url("guide", user="guide", password=quote(SECRET))
    migrate(url)
    check_schema(url)


def name_of(url: str) -> str:
    return url.rsplit("/", 1)[-1]


def write(store: SqlStore) -> None:
    with store.write() as writer:
        writer.put_answer("caller", SECRET, SECRET.encode(), at=NOW)


def failure(action: Callable[[], object], kind: type[AccordError] = StorageFailed) -> str:
    with pytest.raises(kind) as failed:
        action()
    told = "".join(traceback.format_exception(failed.value))
    for secret in (SECRET, PASSWORD, "hunter2", "INSERT", "SELECT", "[SQL"):
        assert secret not in told
    return str(failed.value)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (lambda url: url.replace(PASSWORD, "hunter2"), StorageDenied, "user name or password is wrong"),
        (lambda url: url.replace("accord:", "hunter:"), StorageDenied, "user name or password is wrong"),
        (lambda url: f"{url}-missing", StorageMissing, "there is no such database: CREATE DATABASE"),
        (lambda url: f"{url}?sslmode=require", StorageUnreachable, "TLS with the server does not come about"),
        (lambda url: f"{url}?port=1", StorageUnreachable, "the server cannot be reached"),
        (lambda url: url.replace("127.0.0.1", "db.invalid"), StorageUnreachable, "the host name is not known"),
        (lambda url: f"{url}?bogus=hunter2", ConfigInvalid, "a setting in the URL is not one"),
    ],
)
def test_a_door_that_stays_shut_is_said_with_what_to_do(
    url: str, change: Callable[[str], str], kind: type[AccordError], said: str
) -> None:
    for use in (check_schema, SqlStore, migrate, describe):
        assert said in failure(lambda use=use: use(change(url)), kind)  # type: ignore[misc]


def test_what_answers_is_said_with_its_schema_whatever_that_is(server: PostgresServer, url: str) -> None:
    version = server.execute("SHOW server_version")[0][0]
    assert describe(url) == (f"PostgreSQL {str(version).split()[0]}", newest_revision())
    assert describe(server.create())[1] == ""


def test_an_empty_database_wants_to_be_migrated(server: PostgresServer) -> None:
    assert "empty database: run accord-coordinator migrate" in failure(lambda: SqlStore(server.create()))


def test_an_old_server_is_refused_before_anything_is_written(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "OLDEST_SERVER", 99)
    assert "99 is the oldest that is supported: upgrade the server" in failure(lambda: migrate(url))


def test_a_database_of_another_encoding_is_refused(server: PostgresServer) -> None:
    server.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    assert "is encoded in LATIN1, and needs UTF8" in failure(lambda: migrate(server.url("latin")))


def test_a_read_only_database_is_said_and_can_still_be_read(server: PostgresServer, store: SqlStore, url: str) -> None:
    server.execute(f"ALTER DATABASE {name_of(url)} SET default_transaction_read_only = on")
    server.cut(name_of(url))
    assert "read-only: this is a standby server" in failure(lambda: write(store))
    store.ping()


def test_a_lost_connection_costs_one_transaction_and_no_restart(
    server: PostgresServer, store: SqlStore, url: str
) -> None:
    write(store)
    server.cut(name_of(url))
    write(store)  # A connection that was lost while nobody used it costs nothing at all.

    def cut_in_the_midst() -> None:
        with store.write() as writer:
            writer.put_answer("caller", "half", SECRET.encode(), at=NOW)
            server.cut(name_of(url))
            writer.put_answer("caller", "whole", SECRET.encode(), at=NOW)

    assert "the connection to the server was lost" in failure(cut_in_the_midst)
    write(store)
    with store.read() as reader:
        assert reader.answer("caller", "half") is None


def test_a_server_that_was_away_is_said_and_serves_again_when_it_is_back(url: str, tmp_path: object) -> None:
    with postgres_server() as own:
        own_url = own.create("own")
        migrate(own_url)
        store = SqlStore(own_url)
        own.stop()
        assert "the server cannot be reached" in failure(store.ping)
        assert "the server cannot be reached" in failure(lambda: write(store))
        own.start()
        write(store)
        store.close()


def test_a_writer_that_does_not_end_is_said_to_the_next_one_of_another_process(store: SqlStore, url: str) -> None:
    other = SqlStore(url)
    with other.write() as writer:
        writer.put_answer("caller", "id", b"", at=NOW)
        assert "another process holds the database for too long" in failure(lambda: write(store))
        store.ping()  # Readers do not wait for it.
    write(store)
    other.close()


def test_threads_beyond_the_pool_wait_their_turn_and_none_fails(url: str) -> None:
    """More readers at once than connections: a burst of calls must not use up the server's connections."""
    store = SqlStore(url)
    failed: list[BaseException] = []
    most = postgresql._POOL_CONNECTIONS + postgresql._MORE_CONNECTIONS
    gate = threading.Barrier(most + 8)

    def read() -> None:
        gate.wait()
        try:
            store.ping()
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=read) for _ in range(most + 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    assert failed == []


def test_a_missing_table_is_a_question_of_the_schema(server: PostgresServer, store: SqlStore, url: str) -> None:
    server.execute("DROP TABLE answers", database=name_of(url))
    assert "run accord-coordinator migrate" in failure(lambda: write(store))


def test_a_role_without_rights_is_told_which_it_needs(server: PostgresServer, url: str) -> None:
    server.execute(f"CREATE ROLE guest LOGIN PASSWORD '{PASSWORD}'")
    assert "permission denied" in failure(lambda: SqlStore(url.replace("accord:", "guest:")))


def test_a_unique_value_that_is_taken_is_no_failure_of_the_storage(store: SqlStore) -> None:
    with store.write() as writer:
        writer.add_run(samples.run())
        writer.add_share_envelopes([samples.ENVELOPE])

    def again() -> None:
        with store.write() as writer:
            writer.add_share_envelopes([samples.ENVELOPE])

    assert "same unique value" in failure(again, AlreadyExists)


def test_a_clock_that_is_far_from_the_databases_is_said(url: str) -> None:
    store = SqlStore(url, clock=SystemClock())
    store.ping()
    store.close()
    store = SqlStore(url, clock=FakeClock())
    assert "synchronise both (NTP)" in failure(store.ping)
    store.close()


def test_commits_are_durable_even_where_the_server_would_not_wait_for_its_disk(
    server: PostgresServer, url: str
) -> None:
    server.execute(f"ALTER DATABASE {name_of(url)} SET synchronous_commit = off")
    with psycopg.connect(url) as plain:
        assert plain.execute("SHOW synchronous_commit").fetchone() == ("off",)
    store = SqlStore(url)
    with store._database.read() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
    store.close()


@pytest.mark.parametrize("said", ["sslmode=verify-full", "sslmode=verify-full&sslrootcert=system", "sslmode=verify-ca"])
def test_a_server_that_is_to_be_verified_is_so_by_this_machines_cas(said, tmp_path, monkeypatch):
    """libpq would look into a service's home, where there is nothing, or into a folder that no machine has."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PGSSLROOTCERT", raising=False)
    bundle = postgresql.driver_url(make_url(f"postgresql://accord@db.example.org/accord?{said}")).query["sslrootcert"]
    assert "BEGIN CERTIFICATE" in Path(str(bundle)).read_text()


@pytest.mark.parametrize("said", ["sslmode=verify-full&sslrootcert=/etc/own.pem", "sslmode=require", ""])
def test_what_somebody_says_of_certificates_or_leaves_unsaid_stays(said):
    url = make_url(f"postgresql://accord@db.example.org/accord?{said}")
    assert postgresql.driver_url(url).query.get("sslrootcert") == url.query.get("sslrootcert")
