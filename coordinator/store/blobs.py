"""Bytes too large for rows: masked uploads and adapters, behind one interface.

Keys are "/"-separated paths of safe segments (A-Z a-z 0-9 _ . = -), and no key is also the prefix of another one.
A blob is whole or absent, and durable when a method returns. Prefixes are whole segments: "runs/1" covers "runs/1/a",
not "runs/10". Safe to call from several threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol


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
