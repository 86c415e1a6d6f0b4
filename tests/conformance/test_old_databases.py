"""A database of an earlier version opens with this one once it is migrated, and has lost nothing.

`old/` holds dumps of a database of each revision, filled with one row of every type, as `python -m
tests.conformance.test_old_databases` writes them. A dump is written when its revision is the newest, and not again.
"""

from __future__ import annotations

import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from common.errors import StorageFailed
from coordinator.rounds.model import MessageKind
from coordinator.store import audit
from coordinator.store.interface import Reader, Store
from coordinator.store.opening import open_store
from coordinator.store.schema import check_schema, migrate, newest_revision
from tests.conformance import samples
from tests.conformance.samples import NOW
from tests.postgresql import PASSWORD, PostgresServer, postgres_server
from tests.programs import debian_program

OLD = Path(__file__).parent / "old"
LINES = 3


def fill(store: Store) -> None:
    """One row of each type, every field of it set, and a log."""
    with store.write() as writer:
        writer.add_certificate(samples.CERTIFICATE)
        writer.put_upload(samples.UPLOAD)
        writer.put_participation(samples.PARTICIPATION)
        writer.add_round(samples.ROUND)
        writer.add_epoch(samples.EPOCH)
        writer.put_run_member(samples.MEMBER)
        writer.add_message(samples.MESSAGE)
        writer.add_share_envelopes([samples.ENVELOPE])
        writer.add_adapter(samples.ADAPTER)
        writer.put_participant(samples.PARTICIPANT)
        writer.add_join_token(samples.TOKEN)
        writer.add_web_token(samples.WEB_TOKEN)
        writer.add_run(samples.RUN)
        writer.publish_charter(b"the charter", "c" * 64, at=NOW)
        writer.put_answer("operators/alice", "request-1", b"\x00\x01answer", at=NOW)
        for number in range(LINES):
            writer.append_audit(
                time=NOW, actor="operators/alice", action="did", subject=f"thing {number}", details="{}"
            )


def require_filled(reader: Reader, *, of: str) -> None:
    assert reader.run("run-1") == samples.RUN
    assert reader.run_members("run-1") == (samples.MEMBER,)
    assert reader.rounds("run-1").rows == (samples.ROUND,)
    assert reader.participations("run-1", 7) == (samples.PARTICIPATION,)
    assert reader.uploads("run-1", 7) == (samples.UPLOAD,)
    assert reader.epoch("run-1", 2) == samples.EPOCH
    assert list(reader.messages("run-1", MessageKind.DEPOSIT, 2)) == [samples.MESSAGE]
    assert list(reader.share_envelopes("run-1", 2, "clinic")) == [samples.ENVELOPE]
    assert reader.adapters("run-1").rows == (samples.ADAPTER,)
    assert reader.participants().rows == (samples.PARTICIPANT,)
    assert reader.certificate("77") == samples.CERTIFICATE
    assert reader.join_tokens().rows == (samples.TOKEN,)
    assert reader.web_tokens().rows == ((samples.WEB_TOKEN,) if of >= "0002" else ())
    assert reader.charter() == b"the charter"
    assert reader.answer("operators/alice", "request-1") == b"\x00\x01answer"
    assert reader.audit_head().sequence == LINES
    assert audit.verify(reader.audit_chain(), head=reader.audit_head()).intact


REVISIONS = sorted({path.name.split(".")[0] for path in OLD.glob("*.sql")})


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as started:
        yield started


def test_there_is_a_dump_of_the_newest_revision_for_each_database() -> None:
    assert {path.name for path in OLD.glob(f"{newest_revision()}.*")} == {
        f"{newest_revision()}.sqlite.sql",
        f"{newest_revision()}.postgresql.sql",
    }


@pytest.mark.parametrize("revision", REVISIONS)
def test_an_old_sqlite_database_opens_with_all_that_was_in_it(revision: str, tmp_path: Path) -> None:
    path = tmp_path / "coordinator.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((OLD / f"{revision}.sqlite.sql").read_text())
    opens_migrated(f"sqlite:///{path}", revision)


@pytest.mark.parametrize("revision", REVISIONS)
def test_an_old_postgresql_database_opens_with_all_that_was_in_it(revision: str, server: PostgresServer) -> None:
    url = server.create()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute((OLD / f"{revision}.postgresql.sql").read_bytes())
    opens_migrated(url, revision)


def opens_migrated(url: str, revision: str) -> None:
    if revision != newest_revision():
        with pytest.raises(StorageFailed, match=f"older version \\({revision}\\)"):
            check_schema(url)
    assert migrate(url) == newest_revision()
    with closing(open_store(url)) as store:
        with store.read() as reader:
            require_filled(reader, of=revision)
        with store.write() as writer:
            assert writer.append_audit(time=NOW, actor="a", action="b", subject="c", details="{}").sequence == LINES + 1


def main() -> None:
    """Write the dumps of the present revision."""
    OLD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, postgres_server() as server:
        path = Path(folder) / "coordinator.sqlite"
        sqlite_url, postgres_url = f"sqlite:///{path}", server.create("old")
        for url in (sqlite_url, postgres_url):
            migrate(url)
            with closing(open_store(url)) as store:
                fill(store)
        with closing(sqlite3.connect(path)) as connection:
            text = "\n".join(connection.iterdump())
        (OLD / f"{newest_revision()}.sqlite.sql").write_text(f"{text}\n")
        dump = debian_program("pg_dump", package="postgresql")
        words = [str(dump), "--inserts", "--no-owner", "--no-privileges", postgres_url.replace(f":{PASSWORD}", "")]
        done = subprocess.run(words, env={"PGPASSWORD": PASSWORD}, check=True, capture_output=True, text=True)
        # For psql alone, with a word of their own in every dump.
        kept = [line for line in done.stdout.splitlines() if not line.startswith("\\")]
        (OLD / f"{newest_revision()}.postgresql.sql").write_text("\n".join(kept) + "\n")


if __name__ == "__main__":
    main()
