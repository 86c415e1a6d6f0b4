"""A counter beside the journal, which tells a journal that went back in time: one that was restored from a backup.

The journal counts the transactions that change keys or masks, or say that a sum was opened, and says so here after each
of them, so the file is never ahead of the journal that belongs to it. A copy of the file is another file and is told
from it, too. Knows nothing of what a journal holds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_DIGITS: Final = 20


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the journal is, and which file says so (its inode)."""

    count: int
    file: int


class Fence:
    """One file with one number, written in place so that it stays the same file. Methods raise OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Mark | None:
        """None if there is no file, or none with a number in it."""
        try:
            with self._path.open("rb") as file:
                text = file.read(_DIGITS + 1)
                return Mark(int(text), os.fstat(file.fileno()).st_ino) if text.strip().isdigit() else None
        except FileNotFoundError:
            return None

    def write(self, count: int) -> Mark:
        """Say how far the journal is; durable on return."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, f"{count:0{_DIGITS}d}\n".encode(), 0)
            os.fsync(descriptor)
            return Mark(count, os.fstat(descriptor).st_ino)
        finally:
            os.close(descriptor)
