"""The journal: what it was told is there after a kill, together or not at all, and for its owner alone."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.errors import StorageFailed
from participant.journal import (
    EpochEntry,
    EpochPhase,
    Journal,
    RoundEntry,
    RoundPhase,
    RunEntry,
    RunStanding,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
SECRET = b"a secret that nobody else may read" * 8


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.sqlite"


def round_entry(number: int = 1, *, run: str = "run", **changes) -> RoundEntry:
    made = RoundEntry(
        run=run,
        round=number,
        kind="train",
        phase=RoundPhase.PREPARING,
        adapter="ab" * 32,
        model_hash=b"\x01" * 32,
        started_at=NOW,
        updated_at=NOW,
    )
    return replace(made, **changes)


def reopened(path: Path) -> Journal:
    return Journal(path)


def test_every_field_of_every_row_survives_a_restart(path: Path):
    run = RunEntry("run", b"plan", "cd" * 32, b"charter", RunStanding.DECLINED, NOW, "WHY", "because")
    epoch = EpochEntry("run", 3, EpochPhase.DEALT, SECRET)
    entry = round_entry(
        7,
        kind="evaluate",
        phase=RoundPhase.BOUND,
        has_opened=True,
        state=SECRET,
        chunk_digests=b"\x02" * 64,
        uploaded_bytes=12345,
        contribution='{"records":1}',
        clipping='{"scale":1.0}',
        scores='{"x":1}',
        outcome="failed",
        reason="WHY",
        message="because",
    )
    journal = Journal(path)
    journal.put_run(run)
    journal.put_epoch(epoch)
    journal.put_round(entry)
    journal.close()

    again = reopened(path)
    assert (again.run("run"), again.epoch("run", 3), again.round("run", 7)) == (run, epoch, entry)
    assert (again.run("other"), again.epoch("run", 4), again.round("run", 8)) == (None, None, None)
    again.close()


@pytest.mark.parametrize("phase", RoundPhase)
def test_a_round_in_any_phase_reads_back(path: Path, phase: RoundPhase):
    journal = Journal(path)
    journal.put_round(round_entry(phase=phase))
    assert journal.round("run", 1) == round_entry(phase=phase)
    journal.close()


def test_a_round_and_the_keys_that_it_was_started_from_are_written_together_or_not_at_all(path: Path):
    journal = Journal(path)
    before = EpochEntry("run", 1, EpochPhase.KEYS, b"all keys")
    after = EpochEntry("run", 1, EpochPhase.KEYS, b"without the round's")
    journal.put_epoch(before)
    journal.put_round(round_entry())
    impossible = replace(round_entry(phase=RoundPhase.MASKING), uploaded_bytes="not a number")  # type: ignore[arg-type]

    with pytest.raises(StorageFailed):
        journal.put_round(impossible, keys=after)

    assert journal.epoch("run", 1) == before
    assert journal.round("run", 1) == round_entry()
    journal.put_round(round_entry(phase=RoundPhase.MASKING), keys=after)
    assert journal.epoch("run", 1) == after
    journal.close()


def test_a_transaction_that_a_kill_cuts_short_leaves_nothing(path: Path):
    journal = Journal(path)
    journal.put_round(round_entry())
    killed = sqlite3.connect(path, isolation_level=None)
    killed.execute("BEGIN IMMEDIATE")
    killed.execute("UPDATE rounds SET phase = 'masked'")
    killed.close()

    assert reopened(path).round("run", 1) == round_entry()
    journal.close()


def test_only_the_owner_reads_the_journal(path: Path):
    journal = Journal(path)
    journal.put_epoch(EpochEntry("run", 1, EpochPhase.KEYS, SECRET))
    for file in path.parent.glob("journal.sqlite*"):
        assert file.stat().st_mode & 0o077 == 0, file.name
    journal.close()


def test_a_new_epoch_erases_the_keys_of_those_before_it_from_the_file(path: Path):
    journal = Journal(path)
    journal.put_epoch(EpochEntry("run", 1, EpochPhase.KEYS, SECRET))
    journal.put_epoch(EpochEntry("other", 1, EpochPhase.KEYS, b"stays"))
    journal.put_epoch(EpochEntry("run", 2, EpochPhase.ADVERTISING, b"new"))

    assert journal.epoch("run", 1) is None
    assert journal.epoch("other", 1) is not None
    journal.close()
    assert all(SECRET[:32] not in file.read_bytes() for file in path.parent.glob("journal.sqlite*"))


def test_a_forgotten_run_leaves_no_secret_in_the_file(path: Path):
    journal = Journal(path)
    journal.put_epoch(EpochEntry("run", 1, EpochPhase.KEYS, SECRET))
    journal.put_round(round_entry(state=SECRET))
    journal.forget_keys("run")

    kept = journal.round("run", 1)
    assert kept is not None
    assert kept.state == b""
    assert journal.epoch("run", 1) is None
    journal.close()
    assert all(SECRET[:32] not in file.read_bytes() for file in path.parent.glob("journal.sqlite*"))


def test_sums_on_a_model_are_counted_by_run_and_model(path: Path):
    journal = Journal(path)
    journal.put_round(round_entry(1, has_opened=True))
    journal.put_round(round_entry(2, has_opened=True))
    journal.put_round(round_entry(3, has_opened=False))
    journal.put_round(round_entry(4, has_opened=True, model_hash=b"\x02" * 32))
    journal.put_round(round_entry(1, run="other", has_opened=True))

    assert journal.times_opened("run", b"\x01" * 32) == 2
    assert journal.times_opened("run", b"\x02" * 32) == 1
    assert journal.times_opened("run", b"\x03" * 32) == 0
    journal.close()


def test_rounds_that_are_not_over_and_their_adapters_are_found(path: Path):
    journal = Journal(path)
    journal.put_round(round_entry(1, phase=RoundPhase.OVER, adapter="01" * 32))
    journal.put_round(round_entry(2, phase=RoundPhase.MASKED, adapter="02" * 32))
    journal.put_round(round_entry(3, phase=RoundPhase.FAILED, adapter="03" * 32))
    journal.put_round(round_entry(4, phase=RoundPhase.PREPARING, adapter="04" * 32))
    journal.put_round(round_entry(1, run="other", adapter="05" * 32))

    assert [entry.round for entry in journal.open_rounds("run", up_to=3)] == [2, 3]
    assert journal.adapters_in_use() == {digest * 32 for digest in ("02", "03", "04", "05")}
    assert [entry.round for entry in journal.rounds("run")] == [4, 3, 2, 1]
    journal.close()


def test_rounds_are_counted_from_a_moment_on(path: Path):
    journal = Journal(path)
    for day in range(4):
        journal.put_round(round_entry(day + 1, started_at=NOW - timedelta(days=day)))

    assert [entry.round for entry in journal.rounds_since(NOW - timedelta(days=1))] == [2, 1]
    journal.close()


def test_a_file_that_is_no_journal_is_refused_with_its_name(path: Path):
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database, and long enough to look like one" * 100)
    with pytest.raises(StorageFailed, match=r"cannot open the journal .*journal\.sqlite"):
        Journal(path)


def test_secrets_are_not_in_what_is_printed():
    shown = repr((EpochEntry("run", 1, EpochPhase.KEYS, SECRET), round_entry(state=SECRET)))
    assert "nobody else" not in shown


def test_a_key_that_was_replaced_or_forgotten_is_in_none_of_the_journals_files(path: Path):
    """Forward secrecy ends where a write-ahead log still holds the keys of a round that is over."""
    journal = Journal(path)
    old, newer, mask = (bytes([at]) * 7 + SECRET for at in range(3))
    journal.put_epoch(EpochEntry("run", 1, EpochPhase.KEYS, old))
    journal.put_round(
        round_entry(phase=RoundPhase.MASKING, state=mask), keys=EpochEntry("run", 1, EpochPhase.KEYS, newer)
    )
    assert not _is_on_disk(path, old)
    journal.put_round(round_entry(phase=RoundPhase.OVER))
    assert not _is_on_disk(path, mask)
    assert _is_on_disk(path, newer)
    journal.forget_keys("run")
    assert not _is_on_disk(path, newer)
    journal.close()


def test_a_key_that_a_reader_kept_from_being_erased_goes_with_the_next_write_of_any_kind(path: Path):
    journal, reader = Journal(path), sqlite3.connect(path)
    journal._database.execute("PRAGMA busy_timeout = 0")  # it would wait for the reader to end
    journal.put_round(round_entry(state=SECRET))
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM rounds").fetchone()
    journal.put_round(round_entry())
    assert _is_on_disk(path, SECRET)
    reader.execute("COMMIT")
    journal.put_run(RunEntry("run", b"plan", "cd" * 32, b"charter", RunStanding.JOINED, NOW, "", ""))
    assert not _is_on_disk(path, SECRET)
    reader.close()
    journal.close()


def _is_on_disk(path: Path, secret: bytes) -> bool:
    return any(secret in file.read_bytes() for file in path.parent.iterdir())


def test_a_journal_of_an_earlier_version_gets_the_columns_that_it_has_not(path: Path):
    journal = Journal(path)
    journal.put_round(round_entry(7, clipping="{}"))
    journal.close()
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE rounds DROP COLUMN clipping")

    assert reopened(path).round("run", 7) == round_entry(7)
    reopened(path).put_round(round_entry(7, clipping="{}"))
    assert reopened(path).round("run", 7) == round_entry(7, clipping="{}")
