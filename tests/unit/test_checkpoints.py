"""Files that grow in step: what a restarted process goes on with, and what makes it begin anew."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from coordinator.checkpoints import RECORD_FILE, GrowingFiles

NAMES = ("adapter", "momentum")
CHUNKS = 6


def piece(name: str, chunk: int) -> bytes:
    return f"{name} {chunk};".encode() * (chunk + 1)


def whole(name: str) -> bytes:
    return b"".join(piece(name, chunk) for chunk in range(CHUNKS))


def open_files(folder: Path, *, work: str = "a" * 64) -> GrowingFiles:
    return GrowingFiles(folder, work=work, names=NAMES)


def grow(files: GrowingFiles, *, until: int, checkpoint_at: int = 0) -> list[int]:
    """Do the chunks that are missing; the numbers of those that were done here."""
    done = []
    while files.chunks < until:
        done.append(files.chunks)
        for name in NAMES:
            files.append(name, piece(name, files.chunks))
        files.chunk_done(0.1)
        if files.chunks == checkpoint_at:
            files.checkpoint()
    return done


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A folder of files that were durable after four chunks, when work went on to the fifth and ended there."""
    with open_files(tmp_path) as files:
        grow(files, until=5, checkpoint_at=4)
    return tmp_path


def require_whole(files: GrowingFiles, folder: Path) -> None:
    digests = files.finish()
    assert digests == {name: hashlib.sha256(whole(name)).hexdigest() for name in NAMES}
    assert {name: (folder / name).read_bytes() for name in NAMES} == {name: whole(name) for name in NAMES}


def test_work_goes_on_at_the_last_durable_chunk_with_the_same_bytes_digests_and_total(killed: Path) -> None:
    with open_files(killed) as files:
        assert grow(files, until=CHUNKS) == [4, 5]
        require_whole(files, killed)
        assert files.total == sum([0.1] * CHUNKS)  # in the same order, to the last bit


def test_work_that_ended_after_its_last_chunk_is_found_whole(tmp_path: Path) -> None:
    with open_files(tmp_path) as files:
        grow(files, until=CHUNKS, checkpoint_at=2)
        files.finish()
    with open_files(tmp_path) as files:
        assert grow(files, until=CHUNKS) == []
        require_whole(files, tmp_path)


def cut_short(folder: Path) -> None:
    os.truncate(folder / "momentum", len(piece("momentum", 0)))


def one_byte_differs(folder: Path) -> None:
    with (folder / "adapter").open("r+b") as file:
        file.write(b"A")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a file that is shorter than the record says": cut_short,
    "a byte that differs": one_byte_differs,
    "a file that is gone": lambda folder: (folder / "momentum").unlink(),
    "a record that is torn": lambda folder: os.truncate(folder / RECORD_FILE, 20),
    "an empty record": lambda folder: os.truncate(folder / RECORD_FILE, 0),
    "a record that is no JSON of this form": lambda folder: (folder / RECORD_FILE).write_text('{"chunks": 4}'),
    "no record": lambda folder: (folder / RECORD_FILE).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_does_not_fit_its_record_is_thrown_away_and_made_from_nothing(killed: Path, damage: str) -> None:
    DAMAGE[damage](killed)
    with open_files(killed) as files:
        assert grow(files, until=CHUNKS) == list(range(CHUNKS))
        require_whole(files, killed)


def test_a_record_of_other_work_counts_for_nothing(killed: Path) -> None:
    with open_files(killed, work="b" * 64) as files:
        assert (files.chunks, files.total) == (0, 0.0)
        assert not (killed / RECORD_FILE).exists()
        assert grow(files, until=CHUNKS) == list(range(CHUNKS))
        require_whole(files, killed)


def test_a_record_of_other_files_counts_for_nothing(killed: Path) -> None:
    with GrowingFiles(killed, work="a" * 64, names=NAMES[:1]) as files:
        assert files.chunks == 0


def test_no_record_speaks_of_bytes_that_are_not_flushed(tmp_path: Path) -> None:
    """A flush that fails leaves the record before it, and the next call says so."""
    with open_files(tmp_path) as files:
        grow(files, until=2, checkpoint_at=2)
        grow(files, until=4)
        files.finish()
        before = (tmp_path / RECORD_FILE).read_bytes()
        with patch("coordinator.checkpoints.os.fsync", side_effect=OSError(28, "No space left on device")):
            files.checkpoint()
            with pytest.raises(OSError, match="No space"):
                files.finish()
        assert (tmp_path / RECORD_FILE).read_bytes() == before


def test_short_work_writes_no_record_and_flushes_each_file_once(tmp_path: Path) -> None:
    with open_files(tmp_path) as files, patch("coordinator.checkpoints.os.fsync", wraps=os.fsync) as flushed:
        grow(files, until=CHUNKS)
        files.finish()
        assert flushed.call_count == len(NAMES)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)
