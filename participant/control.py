"""SCAFFOLD's control variates at a site: c, the mean direction of all sites, and c_i, this site's own.

Karimireddy et al. 2020 (SCAFFOLD, arXiv 1910.06378), algorithm 1 with option II, on AdamW's direction instead of a
gradient's: every local step adds c - c_i to the direction, and a round of K steps at the rate eta from theta_t to
theta_i ends with c_i+ = c_i - c + (theta_t - theta_i) / (K eta).

The paper sends c_i+ - c_i as well. Here nothing more is sent: that is -c + (theta_t - theta_i) / (K eta), of the public
c and the delta that is summed anyway. With c as the mean of the new c_i over the round's survivors, c is
(theta_t - theta_{t+1}) / (K eta) of two global adapters: who goes back to an earlier adapter goes back to its c, and
the signed manifests that name an adapter and its parent name c, too. (Where all sites take part this is the paper's c;
where some are missing, theirs moves by their share only, and ours is the mean of those who were there.)

A site's own c_i never leaves it. It is kept by the round that made it, in files that are whole or not there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from common.adapters import FLOAT32_BYTES, FlatFile, FlatVector
from common.durable import move_durably
from common.errors import StorageFailed, UpdateLost
from common.manifest import Manifest
from common.plan import Plan
from common.sent import SentVector, sent_vector

CORRECTION_FILE: Final = "correction.f32"
# As many as adapters on the shelf: a run goes back to none that is older.
KEPT_CONTROLS: Final = 4
_BLOCK: Final = 1 << 20


class ControlVariates:
    """This site's own control variates, a folder for each run. Vectors are float32, in the order of what is sent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write_correction(
        self, path: Path, plan: Plan, *, round_: int, base: Path, manifest: Manifest, parent: Path | None
    ) -> None:
        """Write c - c_i for a training round, which is what a step's direction is corrected by.

        base: model file of the adapter that the round trains from, manifest: its manifest. parent: model file of the
        one before it, None for a run's first. Raises StorageFailed, or UpdateLost for files that are not the plan's.
        """
        sent, layout = sent_vector(plan, round_), plan.layout()
        after = FlatFile.open(base, layout)
        before = FlatFile.open(parent, layout) if parent is not None else None
        scale = 1.0 / (_reach(plan, manifest.round) * plan.method.server_learning_rate) if before is not None else 0.0
        own = self._own(plan.run, up_to=manifest.round, size=sent.stretches.size)
        with _written(path) as file:
            for start, stop in _blocks(sent.stretches.size):
                values = np.zeros(stop - start, dtype=np.float32)
                if before is not None:
                    values += np.float32(scale) * (_read(before, sent, start, stop) - _read(after, sent, start, stop))
                if own is not None:
                    values -= own.read(start, stop)
                file.write(values.astype("<f4").data)

    def advance(self, plan: Plan, *, round_: int, trained: Path, base: Path, correction: Path) -> None:
        """Keep c_i+ of a round whose sum has this site's update in it. A repeat changes nothing.

        Raises StorageFailed, or UpdateLost where what was trained is not there any more: then c_i stays as it was.
        """
        path = self._path(plan.run, round_)
        if path.exists():
            return
        sent, layout = sent_vector(plan, round_), plan.layout()
        size = sent.stretches.size
        try:
            after, before = FlatFile.open(trained, layout), FlatFile.open(base, layout)
            corrected = _opened(correction, size)
        except OSError as error:
            raise UpdateLost(f"what was trained in round {round_} cannot be read: {error.strerror}") from error
        scale = np.float32(1.0 / _reach(plan, round_))
        path.parent.mkdir(parents=True, exist_ok=True)
        with _written(path) as file:
            for start, stop in _blocks(size):
                moved = _read(before, sent, start, stop) - _read(after, sent, start, stop)
                file.write((scale * moved - corrected.read(start, stop)).astype("<f4").data)
        for old in self._kept(plan.run)[:-KEPT_CONTROLS]:
            self._path(plan.run, old).unlink(missing_ok=True)

    def forget(self, run: str) -> None:
        """Of a run that is over."""
        shutil.rmtree(self._folder / run, ignore_errors=True)

    def _own(self, run: str, *, up_to: int, size: int) -> FlatFile | None:
        """The newest c_i that was made no later than the adapter; None is zero, as at the beginning."""
        made = [round_ for round_ in self._kept(run) if round_ <= up_to]
        return _opened(self._path(run, made[-1]), size) if made else None

    def _kept(self, run: str) -> list[int]:
        return sorted(int(path.stem) for path in (self._folder / run).glob("[0-9]*.f32"))

    def _path(self, run: str, round_: int) -> Path:
        return self._folder / run / f"{round_}.f32"


def _reach(plan: Plan, round_: int) -> float:
    """K eta: how far a round moves a parameter whose direction is always one."""
    return plan.training.steps_per_round * plan.training.learning_rate_in(round_, rounds=plan.rounds)


def _read(file: FlatFile, sent: SentVector, start: int, stop: int) -> FlatVector:
    """float32[stop - start] of a stored vector, by places of the sent one."""
    values = np.empty(stop - start, dtype=np.float32)
    for part, place in sent.stretches.within(start, stop):
        file.read_into(place, values[part])
    return values


def _opened(path: Path, size: int) -> FlatFile:
    found = path.stat().st_size
    if found != size * FLOAT32_BYTES:
        raise UpdateLost(f"{path} has {found} bytes, the plan says {size * FLOAT32_BYTES}")
    return FlatFile(path, 0, size)


@contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    """A file that is there, and durable, when the block has ended well."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        move_durably(partial, path)
    except OSError as error:
        raise StorageFailed(f"cannot write {path}: {error.strerror}; free some disk") from error


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, _BLOCK):
        yield start, min(start + _BLOCK, size)
