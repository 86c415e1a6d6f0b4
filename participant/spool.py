"""The spool: one masked update on disk, made chunk by chunk on all cores, with the digest of every chunk.

Each chunk's rounding, masks, place in the file and digest are its own, so the bytes are the same whatever the number of
threads. Memory: two chunks a thread and a fraction of one for packing. Knows nothing of journal and transport.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from common.cores import usable_cores
from common.errors import StorageFailed
from common.secagg import Clipping, Masking, Packer, RandomBytes, StreamSum, VectorLayout, Words, fixed_weight
from participant.update import CLIPPED_ELEMENTS, Update

ROUNDING_KEY_BYTES: Final = 32
WORD_BYTES: Final = 8
MOST_THREADS: Final = 4


@dataclass(frozen=True, slots=True)
class Spooled:
    """digests: SHA-256 of every chunk, the tail's last. clipping: what the plan's clips took from the update."""

    digests: tuple[bytes, ...]
    clipping: Clipping


def chunk_sizes(layout: VectorLayout) -> tuple[int, ...]:
    """Bytes of every chunk of a masked update, the tail's last."""
    return tuple(layout.words_in(chunk) * WORD_BYTES for chunk in range(layout.chunks))


def write_masked(
    spool: Path,
    masking: Masking,
    update: Update | None,
    *,
    alpha: float,
    metrics: Mapping[str, float],
    random_bytes: RandomBytes,
    threads: int | None = None,
) -> Spooled:
    """Quantise, pack and mask chunk by chunk into the spool; durable on return.

    update: None in an evaluation round, which carries metrics alone. threads: None takes a few of the usable cores.
    """
    plan, layout = masking.context.epoch.plan, masking.context.layout
    spool.parent.mkdir(parents=True, exist_ok=True)
    try:
        with spool.open("wb", buffering=0) as file:
            masker, spooled = masking.masker(), Spooled((), Clipping())
            if update is not None:
                round_ = masking.context.start.round
                packer = Packer(plan, round_=round_, alpha=alpha, rounding_key=random_bytes(ROUNDING_KEY_BYTES))
                press = _Press(file.fileno(), layout, packer, update)
                spooled = press.run(masker, threads=threads or min(MOST_THREADS, usable_cores()))
            clipped = {CLIPPED_ELEMENTS: float(spooled.clipping.elements)} if CLIPPED_ELEMENTS in plan.metrics else {}
            tail = masking.pack_tail(fixed_alpha=fixed_weight(alpha), metrics={**metrics, **clipped})
            masker.add_into(layout.tail_chunk, tail)
            digest = _write(file.fileno(), layout, layout.tail_chunk, tail)
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageFailed(f"cannot write the masked update {spool}: {error.strerror}; free some disk") from error
    return Spooled((*spooled.digests, digest), spooled.clipping)


class _Press:
    """Writes the lane chunks of one update. Threads take turns at packing and do the rest side by side.

    Packing is many short numpy calls; two threads at it hand the interpreter's lock to and fro and gain nothing. Masks,
    digests and files are long calls that release it.
    """

    def __init__(self, file: int, layout: VectorLayout, packer: Packer, update: Update) -> None:
        self._file = file
        self._layout = layout
        self._packer = packer
        self._update = update
        self._turn = threading.Lock()
        self._has_failed = threading.Event()

    def run(self, masker: StreamSum, *, threads: int) -> Spooled:
        """Every `threads`-th chunk a thread."""
        chunks = range(self._layout.lane_chunks)
        shares = [chunks[first::threads] for first in range(min(threads, len(chunks)))]
        maskers = [masker, *(masker.copy() for _ in shares[1:])]
        written: dict[int, tuple[bytes, Clipping]] = {}
        with ThreadPoolExecutor(max(1, len(shares))) as pool:
            for part in pool.map(self._write_share, shares, maskers):
                written |= part
        digests, clippings = zip(*(written[chunk] for chunk in chunks), strict=True) if written else ((), ())
        return Spooled(digests, Clipping.of_all(clippings))

    def _write_share(self, chunks: range, masker: StreamSum) -> dict[int, tuple[bytes, Clipping]]:
        written: dict[int, tuple[bytes, Clipping]] = {}
        try:
            for chunk in chunks:
                if self._has_failed.is_set():
                    break
                written[chunk] = self._write_chunk(chunk, masker)
        except BaseException:
            self._has_failed.set()
            raise
        return written

    def _write_chunk(self, chunk: int, masker: StreamSum) -> tuple[bytes, Clipping]:
        with self._turn:
            words, clipping = self._packer.pack_chunk(chunk, self._update.part(*self._layout.parameters_in(chunk)))
        masker.add_into(chunk, words)
        return _write(self._file, self._layout, chunk, words), clipping


def _write(file: int, layout: VectorLayout, chunk: int, words: Words) -> bytes:
    """Put a chunk in its place and return its SHA-256."""
    content = memoryview(words.astype("<u8", copy=False).view(np.uint8).data)
    digest = hashlib.sha256(content).digest()
    offset = layout.byte_offset(chunk)
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written
    return digest
