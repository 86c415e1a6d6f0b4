"""Bytes too large for rows: masked uploads and adapters, behind one interface.

Keys are "/"-separated paths of safe segments (A-Z a-z 0-9 _ . = -), and no key is also the prefix of another one.
A blob is whole or absent, and durable when a method returns. Prefixes are whole segments: "runs/1" covers "runs/1/a",
not "runs/10". Safe to call from several threads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from common.errors import InvalidArgument

MAX_KEY_BYTES: Final = 1024
_SEGMENT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=-]{0,199}")


def is_key(text: str) -> bool:
    """Whether every store can hold a blob of this key."""
    return len(text) <= MAX_KEY_BYTES and all(_SEGMENT.fullmatch(segment) for segment in text.split("/"))


def check_key(key: str) -> None:
    """Raises InvalidArgument for what is not a key."""
    if not is_key(key):
        raise InvalidArgument(
            f"{key[:80]!r} is not a blob key: segments of A-Z a-z 0-9 _ . = - joined by '/', each at most 200 long "
            f"and none starting with '.', '-' or '=', at most {MAX_KEY_BYTES} in all"
        )


def check_range(key: str, offset: int, length: int | None) -> None:
    """Raises InvalidArgument for a part of a blob that cannot be."""
    if offset < 0 or (length is not None and length < 0):
        raise InvalidArgument(f"blob {key!r}: offset and length cannot be negative")


class BlobStore(Protocol):
    """Where bytes lie.

    Raises NotFound for a missing key, InvalidArgument for a malformed one, StorageFailed when the store refuses.
    """

    def put(self, key: str, *content: bytes | memoryview) -> None:
        """Store bytes, given in one piece or in several; writing the same key again replaces it as a whole."""

    def put_file(self, key: str, path: Path) -> None:
        """Store a file's bytes; the file may be moved away, but a kill leaves it where it was or as the blob."""

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes from offset on; fewer than length at the end."""

    def fetch(self, key: str, destination: Path) -> None:
        """A local file with the blob's bytes; may be a hard link: not to be written to."""

    def size(self, key: str) -> int: ...

    def exists(self, key: str) -> bool: ...

    def keys(self, prefix: str) -> Iterator[str]:
        """Keys under a prefix, sorted; "" means all. Keys that come or go meanwhile may be in it or not."""

    def delete(self, prefix: str) -> None:
        """Delete the key and all under it; harmless if absent."""
