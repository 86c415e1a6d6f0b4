"""The counter that tells a journal from its own past and from its copies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from participant.fence import Fence
from participant.journal import EpochEntry, EpochPhase, Journal, RoundEntry, RoundPhase

NOW = datetime(2030, 1, 1, tzinfo=UTC)
KEYS = EpochEntry("run", 1, EpochPhase.KEYS, b"keys")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A site's journal with keys in it, its counter, and a backup of both from before the last write."""
    with closing(opened(tmp_path)) as journal:
        journal.put_epoch(KEYS)
    (tmp_path / "backup").mkdir()
    for name in ("journal.sqlite", "journal.counter"):
        shutil.copy(tmp_path / name, tmp_path / "backup")
    with closing(opened(tmp_path)) as journal:
        journal.put_epoch(KEYS)
    return tmp_path


def opened(folder: Path) -> Journal:
    return Journal(folder / "journal.sqlite", fence=Fence(folder / "journal.counter"))


def keys_in(folder: Path) -> bytes | None:
    with closing(opened(folder)) as journal:
        entry = journal.epoch("run", 1)
    return entry.state if entry is not None else None


def restore(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).rename(folder / f"old-{name}")
        shutil.copy(folder / "backup" / name, folder)


def replace_deleted(folder: Path, *names: str) -> None:
    """As `restore`, where nothing is left of what was there: the copies may get the inodes that have become free."""
    for name in names:
        (folder / name).unlink()
        shutil.copy2(folder / "backup" / name, folder)


CHANGES: dict[str, Callable[[Path], object]] = {
    "the journal from a backup": lambda folder: restore(folder, "journal.sqlite"),
    "both from a backup": lambda folder: restore(folder, "journal.sqlite", "journal.counter"),
    "both in the place of what was deleted": lambda folder: replace_deleted(
        folder, "journal.sqlite", "journal.counter"
    ),
    "no counter": lambda folder: (folder / "journal.counter").unlink(),
    "a counter that is none": lambda folder: (folder / "journal.counter").write_text("junk"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_journal_that_its_counter_does_not_know_has_no_keys(folder: Path, change: str) -> None:
    CHANGES[change](folder)
    assert keys_in(folder) is None
    with closing(opened(folder)) as journal:
        journal.put_epoch(KEYS)
    assert keys_in(folder) == KEYS.state


def test_a_journal_goes_on_after_any_number_of_restarts(folder: Path) -> None:
    for _ in range(3):
        assert keys_in(folder) == KEYS.state


def test_a_death_between_journal_and_counter_costs_nothing(folder: Path) -> None:
    before = (folder / "journal.counter").read_bytes()
    with closing(opened(folder)) as journal:
        journal.put_epoch(KEYS)
    with (folder / "journal.counter").open("r+b") as counter:
        counter.write(before)
    assert keys_in(folder) == KEYS.state


def test_a_journal_without_a_row_of_the_counter_is_taken_over_with_its_keys(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "journal.sqlite")) as journal:
        journal.put_epoch(KEYS)
    assert keys_in(tmp_path) == KEYS.state


def test_who_only_looks_changes_nothing(folder: Path) -> None:
    restore(folder, "journal.sqlite")
    with closing(Journal(folder / "journal.sqlite")) as journal:
        assert journal.epoch("run", 1) == KEYS
    assert keys_in(folder) is None


ROUND = RoundEntry("run", 1, "train", RoundPhase.PREPARING, "00" * 32, bytes(32), NOW, NOW)


@pytest.mark.parametrize(
    ("change", "is_counted"),
    [
        ({"state": b"masks"}, True),
        ({"has_opened": True}, True),
        ({"phase": RoundPhase.MASKED, "uploaded_bytes": 5, "contribution": "{}"}, False),
    ],
)
def test_what_changes_keys_masks_or_opened_sums_is_counted_and_nothing_else(
    folder: Path, change: dict[str, Any], is_counted: bool
) -> None:
    with closing(opened(folder)) as journal:
        journal.put_round(ROUND)
        before = (folder / "journal.counter").read_bytes()
        journal.put_round(replace(ROUND, **change))
        assert ((folder / "journal.counter").read_bytes() != before) is is_counted


def test_what_is_not_counted_is_durable_and_costs_no_keys(folder: Path) -> None:
    with closing(opened(folder)) as journal:
        journal.put_round(ROUND)
        (folder / "later").mkdir()
        for file in folder.glob("journal.sqlite*"):  # as a kill at this moment leaves them
            shutil.copy(file, folder / "later")
    with closing(Journal(folder / "later" / "journal.sqlite")) as journal:
        assert journal.round("run", 1) == ROUND
        assert journal.epoch("run", 1) == KEYS
    assert keys_in(folder) == KEYS.state
