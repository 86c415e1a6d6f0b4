"""Large content in chunks: how long a chunk is, and a download that goes on where it was cut off.

Knows no service: where chunks come from is passed in, and what they must come to is named by length and digest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, Final

from common.durable import move_durably
from common.errors import DigestMismatch, TooLarge, UploadIncomplete

CHUNK_BYTES: Final = 1024 * 1024


def download(target: Path, *, sha256: str, size_bytes: int, chunks_from: Callable[[int], Iterable[bytes]]) -> Path:
    """Fetch a file until it is whole, checked and durable under its name; returns `target`.

    chunks_from(offset) yields the content from a byte offset on. What has arrived is kept beside the target when that
    raises, and the next call goes on from there; a target that is there already is only checked.
    Raises UploadIncomplete if the content ends early, TooLarge if it does not end, DigestMismatch if it is another one
    (it is thrown away then), and whatever `chunks_from` raises.
    """
    if target.exists() and target.stat().st_size == size_bytes and _sha256(target) == sha256:
        return target
    # The digest in the name: what was begun of one file is never continued with the bytes of another.
    part = target.with_name(f"{target.name}.{sha256[:16]}.part")
    with part.open("ab") as file:
        if file.tell() > size_bytes:
            file.truncate(0)
        try:
            _append(file, chunks_from, size_bytes)
        finally:
            file.flush()
            os.fsync(file.fileno())
        received = file.tell()
    if received < size_bytes:
        raise UploadIncomplete(
            f"{target.name} ended after {received} of {size_bytes} bytes; try again to go on from there"
        )
    if _sha256(part) != sha256:
        part.unlink()
        raise DigestMismatch(f"{target.name} does not have the digest {sha256}; what came was thrown away")
    move_durably(part, target)
    return target


def _append(file: BinaryIO, chunks_from: Callable[[int], Iterable[bytes]], size_bytes: int) -> None:
    if file.tell() == size_bytes:
        return
    for chunk in chunks_from(file.tell()):
        if file.tell() + len(chunk) > size_bytes:
            raise TooLarge(f"{file.name} goes on after its {size_bytes} bytes")
        file.write(chunk)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
