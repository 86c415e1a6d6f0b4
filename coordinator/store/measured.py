"""A store and a blob store that tell how long each of their operations took and whether it failed. Change nothing else.

What counts as failed is that the store did: a row that is not there is an answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from common.errors import ResourceExhausted, StorageFailed, Unavailable
from coordinator.store.blobs import BlobStore
from coordinator.store.interface import Reader, Store, Writer

_FAILURES = (StorageFailed, Unavailable, ResourceExhausted)


class StoreOperation(StrEnum):
    """READ and WRITE: a whole transaction, the wait for its turn included."""

    READ = "read"
    WRITE = "write"
    LEASE = "lease"
    PING = "ping"


class BlobOperation(StrEnum):
    PUT = "put"
    READ = "read"
    FETCH = "fetch"
    LOOK = "look"  # size, exists, keys
    DELETE = "delete"


class StoreMeter(Protocol):
    """Hears of every operation."""

    def store_used(self, operation: StoreOperation, seconds: float, *, has_failed: bool) -> None: ...

    def blobs_used(
        self, operation: BlobOperation, seconds: float, *, has_failed: bool, read: int = 0, written: int = 0
    ) -> None:
        """read, written: bytes."""


class MeasuredStore:
    """A `Store`."""

    def __init__(self, store: Store, meter: StoreMeter) -> None:
        self._store = store
        self._meter = meter

    @contextmanager
    def read(self) -> Iterator[Reader]:
        with self._timed(StoreOperation.READ), self._store.read() as reader:
            yield reader

    @contextmanager
    def write(self) -> Iterator[Writer]:
        with self._timed(StoreOperation.WRITE), self._store.write() as writer:
            yield writer

    def acquire_lease(self, name: str, *, holder: str, now: datetime, until: datetime) -> bool:
        with self._timed(StoreOperation.LEASE):
            return self._store.acquire_lease(name, holder=holder, now=now, until=until)

    def release_lease(self, name: str, *, holder: str) -> None:
        with self._timed(StoreOperation.LEASE):
            self._store.release_lease(name, holder=holder)

    def ping(self) -> None:
        with self._timed(StoreOperation.PING):
            self._store.ping()

    def close(self) -> None:
        self._store.close()

    @contextmanager
    def _timed(self, operation: StoreOperation) -> Iterator[None]:
        started, has_failed = time.monotonic(), False
        try:
            yield
        except _FAILURES:
            has_failed = True
            raise
        finally:
            self._meter.store_used(operation, time.monotonic() - started, has_failed=has_failed)


class MeasuredBlobs:
    """A `BlobStore`."""

    def __init__(self, blobs: BlobStore, meter: StoreMeter) -> None:
        self._blobs = blobs
        self._meter = meter

    def put(self, key: str, *content: bytes | memoryview) -> None:
        with self._timed(BlobOperation.PUT) as moved:
            self._blobs.put(key, *content)
            moved.written = sum(memoryview(piece).nbytes for piece in content)

    def put_file(self, key: str, path: Path) -> None:
        with self._timed(BlobOperation.PUT) as moved:
            size = path.stat().st_size if path.exists() else 0  # afterwards it may have been moved away
            self._blobs.put_file(key, path)
            moved.written = size

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        with self._timed(BlobOperation.READ) as moved:
            content = self._blobs.read(key, offset, length)
            moved.read = len(content)
            return content

    def fetch(self, key: str, destination: Path) -> None:
        with self._timed(BlobOperation.FETCH) as moved:
            self._blobs.fetch(key, destination)
            moved.read = destination.stat().st_size

    def size(self, key: str) -> int:
        with self._timed(BlobOperation.LOOK):
            return self._blobs.size(key)

    def exists(self, key: str) -> bool:
        with self._timed(BlobOperation.LOOK):
            return self._blobs.exists(key)

    def keys(self, prefix: str) -> Iterator[str]:
        # The listing's pages come as they are asked for: what is timed is all of it, with what is done between them.
        with self._timed(BlobOperation.LOOK):
            yield from self._blobs.keys(prefix)

    def delete(self, prefix: str) -> None:
        with self._timed(BlobOperation.DELETE):
            self._blobs.delete(prefix)

    @contextmanager
    def _timed(self, operation: BlobOperation) -> Iterator[_Moved]:
        started, moved, has_failed = time.monotonic(), _Moved(), False
        try:
            yield moved
        except _FAILURES:
            has_failed = True
            raise
        finally:
            self._meter.blobs_used(
                operation,
                time.monotonic() - started,
                has_failed=has_failed,
                read=moved.read,
                written=moved.written,
            )


class _Moved:
    """Bytes of one operation."""

    __slots__ = ("read", "written")

    def __init__(self) -> None:
        self.read = self.written = 0
