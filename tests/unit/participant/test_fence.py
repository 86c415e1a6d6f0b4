"""The counter that tells a journal from its own past and from its copies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from participant.fence import Fence
from participant.journal import EpochEntry, EpochPhase, Journal

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


CHANGES: dict[str, Callable[[Path], object]] = {
    "the journal from a backup": lambda folder: restore(folder, "journal.sqlite"),
    "both from a backup": lambda folder: restore(folder, "journal.sqlite", "journal.counter"),
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
