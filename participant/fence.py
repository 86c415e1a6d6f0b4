"""A counter beside the journal, which tells a journal that went back in time: one that was restored from a backup.

The journal counts the transactions that change keys or masks, or say that a sum was opened, and says so here after each
of them, so the file is never ahead of the journal that belongs to it. A copy of the file is another file and is told
from it, too: by its inode, and by when that was born, as a copy that takes the place of a deleted file often gets its
inode. Knows nothing of what a journal holds.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_DIGITS: Final = 20
# statx(2), which Python does not have: the whole record, where the birth time lies in it, and how it is asked for.
_STATX_BYTES: Final = 256
_BIRTH: Final = slice(80, 92)
_STATX_BTIME: Final = 0x800
_AT_EMPTY_PATH: Final = 0x1000
_LIBC: Final = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the journal is, and which file says so."""

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
                return Mark(int(text), _identity(file.fileno())) if text.strip().isdigit() else None
        except FileNotFoundError:
            return None

    def write(self, count: int) -> Mark:
        """Say how far the journal is; durable on return."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, f"{count:0{_DIGITS}d}\n".encode(), 0)
            os.fsync(descriptor)
            return Mark(count, _identity(descriptor))
        finally:
            os.close(descriptor)


def _identity(descriptor: int) -> int:
    """A number of 56 bits for this very file. Where the kernel does not tell when it was born, the inode alone says."""
    told = f"{os.fstat(descriptor).st_ino} {_born(descriptor).hex()}"
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:7])


def _born(descriptor: int) -> bytes:
    """Seconds and nanoseconds as the kernel has them; empty where it or the file system does not know."""
    record = ctypes.create_string_buffer(_STATX_BYTES)
    try:
        failed = _LIBC.statx(descriptor, b"", _AT_EMPTY_PATH, _STATX_BTIME, record)
    except AttributeError:  # a C library without it
        return b""
    knows = int.from_bytes(record.raw[:4], sys.byteorder) & _STATX_BTIME
    return record.raw[_BIRTH] if not failed and knows else b""
