"""Files that are made in step, chunk by chunk and in order, and that a restarted process goes on with.

Beside the files lies one small record: how many chunks are done, how long each file was then, the SHA-256 of that
beginning, and of what work all this is a part. The record is replaced as a whole, and only when the bytes that it
speaks of are on the disk. Whoever opens the folder again reads each beginning once, because a running SHA-256 cannot
be stored: that costs a fraction of making it, and tells a torn or a foreign file. Where anything does not fit, all of
it is thrown away and the work starts from nothing. What lies behind the beginning is cut off and made again.

Flushing runs in a thread of its own while the work goes on; only a second flush waits for the first. Work that is done
before a first checkpoint is due writes no record and flushes nothing but the files' end, once.

Knows nothing of what is in the files.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from common import jsonform
from common.durable import flush_folder, write_durably
from common.errors import AccordError
from common.log import get_logger

RECORD_FILE: Final = "progress.json"
_READ_BYTES: Final = 1 << 20

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Beginning:
    """The first `size` bytes of a file, and their SHA-256 in hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Progress:
    """What is durable. work: names what is being made. total: a running sum of the caller's, exact (float.hex)."""

    work: str
    chunks: int
    total: str
    files: tuple[Beginning, ...]


class GrowingFiles:
    """Appends to some files in step. `chunks` are done and `total` is their running sum; both go on after a restart.

    One process at a time; used by one thread. OSError comes through, from a flush at the next call that waits for it.
    """

    def __init__(self, folder: Path, *, work: str, names: Sequence[str]) -> None:
        """Open the files below `folder`, or begin them. work: digest of all that decides what will be in them."""
        self._folder, self._work = folder, work
        progress = _read_progress(folder, work=work, names=names)
        begun = _verify(folder, progress) if progress is not None else None
        if progress is None or begun is None:
            _forget(folder, names)
            progress, begun = Progress(work, 0, (0.0).hex(), ()), {}
        self.chunks, self.total = progress.chunks, float.fromhex(progress.total)
        self._has_record = bool(progress.chunks)
        self._hashes = {name: begun.get(name) or hashlib.sha256() for name in names}
        self._sizes = dict.fromkeys(names, 0) | {part.name: part.size for part in progress.files}
        self._flushing: Future[None] | None = None
        self._files: dict[str, io.FileIO] = {}
        for name in names:
            self._files[name] = file = io.FileIO(os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC), "r+")
            file.truncate(self._sizes[name])
            file.seek(self._sizes[name])
        self._flusher = ThreadPoolExecutor(1)
        if self.chunks:
            log.info("work_resumed", folder=str(folder), chunks=self.chunks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flusher.shutdown()
        for file in self._files.values():
            file.close()

    def size(self, name: str) -> int:
        """Bytes that are in the file so far."""
        return self._sizes[name]

    def append(self, name: str, content: bytes | memoryview) -> None:
        self._hashes[name].update(content)
        left = memoryview(content).cast("B")
        self._sizes[name] += len(left)
        while left:
            left = left[self._files[name].write(left) or 0 :]

    def chunk_done(self, addend: float) -> None:
        """All files have their part of one more chunk."""
        self.chunks += 1
        self.total += addend

    def checkpoint(self) -> None:
        """Make what is there durable, beside what the caller does next; waits for the flush before this one."""
        self.wait()
        self._has_record = True
        self._flushing = self._flusher.submit(self._flush, self._progress())

    def finish(self) -> dict[str, str]:
        """All is written and durable. The files' SHA-256 in hex, by name."""
        self.wait()
        if self._has_record:
            self._flush(self._progress())
        else:
            for file in self._files.values():
                os.fsync(file.fileno())
        return {name: digest.hexdigest() for name, digest in self._hashes.items()}

    def wait(self) -> None:
        """Until the last checkpoint is durable."""
        if self._flushing is not None:
            self._flushing.result()
            self._flushing = None

    def _progress(self) -> Progress:
        files = (Beginning(name, size, self._hashes[name].hexdigest()) for name, size in self._sizes.items())
        return Progress(self._work, self.chunks, self.total.hex(), tuple(files))

    def _flush(self, progress: Progress) -> None:
        for file in self._files.values():
            os.fsync(file.fileno())
        # The names of the files go to the disk with the folder, which is flushed before the record says anything.
        flush_folder(self._folder)
        write_durably(self._folder / RECORD_FILE, jsonform.encode(progress, Progress).encode())


def _read_progress(folder: Path, *, work: str, names: Sequence[str]) -> Progress | None:
    """The record, if there is one of this very work."""
    try:
        content = (folder / RECORD_FILE).read_bytes()
    except FileNotFoundError:
        return None
    try:
        progress = jsonform.decode(content, Progress, what=RECORD_FILE)
        float.fromhex(progress.total)
    except (AccordError, ValueError):
        _say_refused(folder, "the record is damaged")
        return None
    is_of_these = [part.name for part in progress.files] == list(names) and progress.chunks >= 1
    if progress.work != work or not is_of_these:
        _say_refused(folder, "the record is of other work")
        return None
    return progress


def _verify(folder: Path, progress: Progress) -> dict[str, hashlib._Hash] | None:
    """The running SHA-256 of each file's beginning; None unless all are what the record says."""
    found = {}
    for part in progress.files:
        digest = _digest_of_beginning(folder / part.name, part.size)
        if digest is None or digest.hexdigest() != part.sha256:
            _say_refused(folder, f"{part.name} is not what the record says")
            return None
        found[part.name] = digest
    return found


def _digest_of_beginning(path: Path, size: int) -> hashlib._Hash | None:
    digest, left = hashlib.sha256(), size
    try:
        with path.open("rb", buffering=0) as file:
            while left > 0:
                content = file.read(min(left, _READ_BYTES))
                if not content:
                    return None
                digest.update(content)
                left -= len(content)
    except FileNotFoundError:
        return None
    return digest


def _say_refused(folder: Path, why: str) -> None:
    log.warning("work_begun_anew", folder=str(folder), why=why)


def _forget(folder: Path, names: Sequence[str]) -> None:
    """The record first: without it nothing of the files counts."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (RECORD_FILE, *names):
        (folder / name).unlink(missing_ok=True)
