"""Copies all blobs of one store into another, each compared by digest, going on with what is there already.

The source is only read. A blob counts as copied when it was read back from the target and has the source's digest. The
coordinator may serve meanwhile: blobs that come or go are for the last copy, after it was stopped.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import AlreadyExists, DigestMismatch, NotFound, StorageFailed
from coordinator.runs import adapter_key
from coordinator.store.blobs import BlobStore

_READ_BYTES: Final = 4 << 20
_MOST_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class BlobsCopied:
    """How many blobs, and their bytes. present: there already with the same bytes. gone: deleted at the source
    meanwhile."""

    copied: int = 0
    copied_bytes: int = 0
    present: int = 0
    present_bytes: int = 0
    gone: int = 0

    def plus(self, *, copied: int | None = None, present: int | None = None, gone: bool = False) -> BlobsCopied:
        """With one blob more: of so many bytes copied or present, or gone."""
        return BlobsCopied(
            self.copied + (copied is not None),
            self.copied_bytes + (copied or 0),
            self.present + (present is not None),
            self.present_bytes + (present or 0),
            self.gone + gone,
        )


def copy_blobs(
    source: BlobStore, target: BlobStore, *, scratch: Path, progress: Callable[[BlobsCopied], None] = lambda _: None
) -> BlobsCopied:
    """Copy everything. scratch: a folder on local disk with room for the largest blob.

    All that can be copied is, whatever is wrong with single blobs. Raises then AlreadyExists if the target has other
    bytes under a key, which are left there, and DigestMismatch for adapters that are damaged at the source and for
    what comes back from the target as something else. Raises StorageFailed at once if a store fails.
    """
    done = BlobsCopied()
    taken: list[str] = []
    damaged: list[str] = []
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="blobs-", dir=scratch)
    except OSError as error:
        raise StorageFailed(f"cannot write to {scratch}: {error.strerror}") from error
    with folder as name:
        file = Path(name) / "blob"
        for key in list(source.keys("")):
            try:
                source.fetch(key, file)
            except NotFound:
                done = done.plus(gone=True)
                continue
            digest, size = _file_digest(file), file.stat().st_size
            if not _is_named_rightly(key, digest):
                damaged.append(key)
                continue
            if target.exists(key):
                if _stored_digest(target, key) != digest:
                    taken.append(key)
                    continue
                done = done.plus(present=size)
            else:
                target.put_file(key, file)
                if _stored_digest(target, key) != digest:
                    damaged.append(key)
                    continue
                done = done.plus(copied=size)
            progress(done)
    if damaged:
        raise DigestMismatch(f"{_named(damaged)}: damaged; everything else was copied. Restore them from a backup")
    if taken:
        raise AlreadyExists(
            f"{_named(taken)}: the target has other bytes there, which were left alone; everything else was copied. "
            "Use an empty prefix, or delete them there"
        )
    return done


def _is_named_rightly(key: str, digest: str) -> bool:
    """Adapters are named by their digest; of other blobs only the readers know what they should be."""
    return not key.startswith(adapter_key("")) or key == adapter_key(digest)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stored_digest(store: BlobStore, key: str) -> str:
    digest, offset = hashlib.sha256(), 0
    while piece := store.read(key, offset, _READ_BYTES):
        digest.update(piece)
        offset += len(piece)
    return digest.hexdigest()


def _named(keys: list[str]) -> str:
    more = f" and {len(keys) - _MOST_NAMED} more" if len(keys) > _MOST_NAMED else ""
    return ", ".join(keys[:_MOST_NAMED]) + more
