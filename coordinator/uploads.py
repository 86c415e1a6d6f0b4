"""Masked uploads as blobs: durable segments of whole chunks, and reading a chunk back whatever the segments are.

A segment's key names its first chunk and its number of chunks, and its bytes are checked against the upload's declared
digests before it is written: two streams of the same upload may overlap and still write the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from common.errors import StorageFailed, UploadMismatch
from common.secagg import VectorLayout, Words
from coordinator.rounds.model import Upload
from coordinator.store.blobs import BlobStore

DIGEST_BYTES: Final = 32
# What the setting may be at most: uploads of so many rounds, the open one among them, are kept, so that what was summed
# can be audited; and with them the messages that opened the sums.
MOST_KEPT_ROUNDS: Final = 64
SEGMENT_CHUNKS: Final = 4
# In memory over all uploads that arrive at once. Each has up to three chunks on their way to its handler (the stream's
# window, the message, its copy) and shares what is left for those that it collects.
MOST_CHUNKS_IN_MEMORY: Final = 28
CHUNKS_ON_THEIR_WAY: Final = 3


def upload_prefix(run: str, round_number: int, participant: str) -> str:
    return f"uploads/{run}/{round_number}/{participant}"


def round_prefix(run: str, round_number: int) -> str:
    return f"uploads/{run}/{round_number}"


def segment_chunks(open_uploads: int) -> int:
    """How many chunks an upload collects before it makes them durable: fewer where many arrive at once."""
    return max(1, min(SEGMENT_CHUNKS, MOST_CHUNKS_IN_MEMORY // open_uploads - CHUNKS_ON_THEIR_WAY))


def check_chunk(layout: VectorLayout, chunk_digests: bytes, index: int, chunk: bytes) -> None:
    """Raises UploadMismatch unless these are chunk `index`'s declared bytes."""
    if index >= layout.chunks:
        raise UploadMismatch(f"the upload has more than {layout.chunks} chunks")
    expected = layout.words_in(index) * np.dtype(np.uint64).itemsize
    if len(chunk) != expected:
        raise UploadMismatch(f"chunk {index} has {len(chunk)} bytes, the plan's layout says {expected}")
    declared = chunk_digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
    if hashlib.sha256(chunk).digest() != declared:
        raise UploadMismatch(f"chunk {index} does not have the digest that the upload declared for it")


def split_digests(chunk_digests: bytes) -> list[bytes]:
    """SHA-256 of each chunk, in order."""
    return [chunk_digests[at : at + DIGEST_BYTES] for at in range(0, len(chunk_digests), DIGEST_BYTES)]


def check_header(declared: Upload, layout: VectorLayout) -> None:
    """Raises UploadMismatch unless an upload of this length can be the layout's."""
    if declared.chunk_count != layout.chunks or declared.total_bytes != layout.bytes:
        raise UploadMismatch(
            f"the header declares {declared.chunk_count} chunks and {declared.total_bytes} bytes, "
            f"the plan's layout says {layout.chunks} and {layout.bytes}"
        )
    if len(declared.chunk_digests) != declared.chunk_count * DIGEST_BYTES:
        raise UploadMismatch("the header needs one SHA-256 for each chunk")


def write_segment(blobs: BlobStore, prefix: str, first_chunk: int, chunks: Sequence[bytes]) -> None:
    """Make checked chunks durable."""
    blobs.put(f"{prefix}/{first_chunk:08d}-{len(chunks):04d}", *chunks)


class UploadReader:
    """Reads one complete upload chunk by chunk."""

    def __init__(self, blobs: BlobStore, prefix: str, layout: VectorLayout) -> None:
        self._blobs = blobs
        self._layout = layout
        self._segments: list[tuple[int, int, str]] = []
        for key in blobs.keys(prefix):
            first, count = key.rsplit("/", 1)[-1].split("-")
            self._segments.append((int(first), int(count), key))

    def words(self, chunk: int) -> Words:
        """uint64[layout.words_in(chunk)], read-only. Raises StorageFailed if no segment holds the chunk."""
        for first, count, key in self._segments:
            if first <= chunk < first + count:
                offset = self._layout.byte_offset(chunk) - self._layout.byte_offset(first)
                length = self._layout.words_in(chunk) * np.dtype(np.uint64).itemsize
                return np.frombuffer(self._blobs.read(key, offset, length), dtype="<u8").view(np.uint64)
        raise StorageFailed(f"chunk {chunk} of an acknowledged upload is missing from the blob store; restore it")
