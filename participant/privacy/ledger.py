"""The site's ledger: what private training and noisy figures have spent on one data set, over all runs, for ever.

An append-only file of JSON lines, each with the digest of the line before it; a line is on disk before what it pays for
begins. A counter beside it tells a ledger that went back in time. Knows nothing of plans and budgets.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from common import jsonform
from common.errors import InvalidArgument, StorageFailed
from participant.fence import Fence
from participant.privacy.accounting import PrivateSteps

_BEGINNING: Final = "0" * 64


class EntryKind(StrEnum):
    """TRAINING: a job's private steps. RETURNED: such a job whose result never left the site, so that nothing was told.
    FIGURES: a round's noisy figures."""

    TRAINING = "training"
    RETURNED = "returned"
    FIGURES = "figures"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line. job: names the secret that the job's noise was drawn from, or the round whose figures were told.

    at: RFC 3339, UTC. records: of the data set at that time. TRAINING: sample_rate, noise_multiplier and steps as in
    `PrivateSteps`, and the clip. FIGURES: noise_multiplier is that of the plan, `parts` the integer sensitivities of
    the words that the noise was added to.
    """

    kind: EntryKind
    at: str
    run: str
    run_id: str
    round: int
    job: str
    records: int = 0
    sample_rate: float = 0.0
    noise_multiplier: float = 0.0
    clip: float = 0.0
    steps: int = 0
    parts: tuple[int, ...] = ()
    before: str = _BEGINNING

    @property
    def private_steps(self) -> PrivateSteps:
        return PrivateSteps(self.sample_rate, self.noise_multiplier, self.steps)


class Ledger:
    """One data set's ledger. For one process, which the daemon's lock sees to; a reader may read beside it.

    counter: a file that says how many lines there are, where no backup of it comes. Methods raise StorageFailed.
    """

    def __init__(self, path: Path, *, counter: Path) -> None:
        self._path = path
        self._fence = Fence(counter)
        self._writing = threading.Lock()

    def entries(self) -> tuple[Entry, ...]:
        """All lines, oldest first. Raises StorageFailed if one is missing or was changed: then nobody knows the sum."""
        return tuple(entry for entry, _ in self._read())

    def training(self) -> tuple[Entry, ...]:
        """Private jobs whose results may have left the site."""
        entries = self.entries()
        returned = {entry.job for entry in entries if entry.kind is EntryKind.RETURNED}
        return tuple(entry for entry in entries if entry.kind is EntryKind.TRAINING and entry.job not in returned)

    def figures(self) -> tuple[Entry, ...]:
        """Noisy figures that may have left the site."""
        return tuple(entry for entry in self.entries() if entry.kind is EntryKind.FIGURES)

    def append(self, entry: Entry) -> None:
        """Write a line; it is on disk on return. For any thread."""
        with self._writing:
            self._append(entry)

    def _append(self, entry: Entry) -> None:
        lines = self._read()
        line = jsonform.encode(replace(entry, before=lines[-1][1] if lines else _BEGINNING), Entry).encode() + b"\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                # What a kill left half-written has paid for nothing: what it was to pay for had not begun.
                whole = sum(size for _, _, size in self._lines())
                os.ftruncate(descriptor, whole)
                os.pwrite(descriptor, line, whole)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._fence.write(len(lines) + 1)
        except OSError as error:
            raise StorageFailed(f"cannot write the privacy ledger {self._path}: {error.strerror}") from error

    def _read(self) -> list[tuple[Entry, str]]:
        try:
            # The mark first: beside a reader the daemon may write a line, and then its mark.
            mark, lines = self._fence.read(), self._lines()
        except OSError as error:
            raise StorageFailed(f"cannot read the privacy ledger {self._path}: {error.strerror}") from error
        if mark is not None and mark.count > len(lines):
            raise StorageFailed(
                f"the privacy ledger {self._path} has {len(lines)} entries and had {mark.count}: it is a backup, or "
                "was cut. Bring the newest copy back; without it nobody knows what is spent, and nothing is trained"
            )
        before = _BEGINNING
        for number, (entry, digest, _) in enumerate(lines, start=1):
            if entry.before != before:
                raise StorageFailed(
                    f"line {number} of the privacy ledger {self._path} does not follow from the line before it: lines "
                    "were changed or are missing. Bring an unchanged copy back"
                )
            before = digest
        return [(entry, digest) for entry, digest, _ in lines]

    def _lines(self) -> list[tuple[Entry, str, int]]:
        """(entry, SHA-256 of its line, bytes), without a last line that a kill has left without its end."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return []
        return [_line(line, number, self._path) for number, line in enumerate(_whole(content), start=1)]


def _whole(content: bytes) -> Iterable[bytes]:
    *lines, _unfinished = content.split(b"\n")
    return lines


def _line(line: bytes, number: int, path: Path) -> tuple[Entry, str, int]:
    try:
        entry = jsonform.decode(line, Entry, what="the entry")
    except InvalidArgument as error:
        raise StorageFailed(f"line {number} of the privacy ledger {path} cannot be read: {error.message}") from error
    return entry, hashlib.sha256(line).hexdigest(), len(line) + 1
