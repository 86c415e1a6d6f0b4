"""Opens a round's sum and makes the next global adapter, chunk by chunk, in constant memory.

Reads masked uploads, adds them, takes off the masks that the revealed shares open, decodes the mean delta and lets the
strategy move the global adapter. Integers are summed, so doing it again after a crash gives the same bits.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import numpy as np

from common.adapters import ADAPTER_FILE, FLOAT32_BYTES, AdapterLayout, FlatFile, FlatVector, square_norm
from common.cores import usable_cores
from common.errors import NormExceeded, StorageFailed, UpdateNotFinite
from common.secagg import SecaggPlan, StreamSum, TailSums, Unmasking, VectorLayout, Words, add_into, decode_chunk
from common.strategies import ServerOptimizer
from coordinator.uploads import UploadReader

# Of float32: participants scale to the bound, the mean is summed up again.
NORM_SLACK: Final = 1.001
THREADS: Final = min(4, usable_cores())


@dataclass(frozen=True, slots=True)
class NextAdapter:
    """The adapter that a round has made: where its model file is, its digest, and the mean delta's L2 norm."""

    path: Path
    digest: str
    delta_norm: float


class OpenSum:
    """The unmasked sum over the survivors, one chunk at a time; any thread may ask, with an unmasker of its own."""

    def __init__(self, unmasking: Unmasking, uploads: Sequence[UploadReader]) -> None:
        self._unmasking = unmasking
        self._uploads = tuple(uploads)

    @property
    def plan(self) -> SecaggPlan:
        return self._unmasking.context.epoch.plan

    @property
    def layout(self) -> VectorLayout:
        return self._unmasking.context.layout

    def unmasker(self) -> StreamSum:
        """A mask remover for one thread."""
        return self._unmasking.unmasker()

    def words(self, chunk: int, unmasker: StreamSum) -> Words:
        """uint64[layout.words_in(chunk)]: the survivors' sum without masks."""
        total = np.zeros(self.layout.words_in(chunk), dtype=np.uint64)
        for upload in self._uploads:
            add_into(total, upload.words(chunk))
        unmasker.add_into(chunk, total)
        return total

    def tail(self) -> TailSums:
        """Weight, count and metrics. Raises AggregationFailed unless the count is the number of survivors."""
        return self._unmasking.check_tail(self.words(self.layout.tail_chunk, self.unmasker()))

    def mean_chunks(self, tail: TailSums) -> Iterator[FlatVector]:
        """The mean delta, float32, lane chunk after lane chunk in order; a few are worked on at a time."""
        # The ciphers are made once and shared: above a thousand members there are thousands of them.
        unmasker, idle = self.unmasker(), SimpleQueue[StreamSum]()
        for spare in (unmasker, *(unmasker.copy() for _ in range(THREADS - 1))):
            idle.put(spare)

        def mean(chunk: int) -> FlatVector:
            own = idle.get()
            try:
                words = self.words(chunk, own)
            finally:
                idle.put(own)
            return decode_chunk(self.plan, chunk, words, tail)

        chunks = iter(range(self.layout.lane_chunks))
        with ThreadPoolExecutor(THREADS) as pool:
            # A few at a time, and the next one is begun before one is handed on: memory does not grow with the adapter,
            # and the threads have work while the caller has.
            means = deque(pool.submit(mean, chunk) for chunk in islice(chunks, THREADS))
            try:
                while means:
                    done = means.popleft().result()
                    means.extend(pool.submit(mean, chunk) for chunk in islice(chunks, 1))
                    yield done
            finally:
                for begun in means:
                    begun.cancel()


def make_next_adapter(
    opened: OpenSum,
    tail: TailSums,
    *,
    base: Path,
    adapter_layout: AdapterLayout,
    optimizer: ServerOptimizer,
    max_update_norm: float,
    scratch: Path,
    still_ours: Callable[[], None],
) -> NextAdapter:
    """Write the next global adapter below `scratch`.

    base: model file of the adapter that the round trained from. still_ours: raises LeaseLost when another process has
    taken the round over. Raises UpdateNotFinite or NormExceeded instead of making something bad, and StorageFailed.
    """
    FlatFile.open(base, adapter_layout)  # its header is this layout's, so the flat vector begins right behind it
    header = adapter_layout.header()
    path = scratch / ADAPTER_FILE
    digest, squares = hashlib.sha256(header), 0.0
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with base.open("rb") as before, path.open("wb") as after:
            before.seek(len(header))
            after.write(header)
            for mean in opened.mean_chunks(tail):
                still_ours()
                squares += square_norm(mean)
                old = np.frombuffer(before.read(mean.size * FLOAT32_BYTES), dtype=np.float32)
                new, _ = optimizer.step(old, mean, ())
                digest.update(new.data)
                after.write(new.data)
            after.flush()
            os.fsync(after.fileno())
    except OSError as error:
        raise StorageFailed(f"cannot write the next adapter below {scratch}: {error.strerror}") from error
    norm = math.sqrt(squares)
    if not math.isfinite(norm):
        raise UpdateNotFinite("the mean delta holds a NaN or an infinity")
    if norm > max_update_norm * NORM_SLACK + rounding_norm(opened.plan, tail):
        raise NormExceeded(
            f"the mean delta has L2 norm {norm:.6g}, the plan's bound is {max_update_norm:.6g}: "
            "some participant did not clip its update"
        )
    return NextAdapter(path, digest.hexdigest(), norm)


def rounding_norm(plan: SecaggPlan, tail: TailSums) -> float:
    """Most that the fixed point's rounding can add to the mean's L2 norm: sqrt(d) * |U3| * C / (L * A).

    Where the weights are small against their cap this is much more than the float's rounding, and nobody's fault.
    """
    clips = sum(slot.size * slot.clip**2 for slot in plan.slots)
    return math.sqrt(clips) * tail.count / (plan.lane_limit * tail.weight)
