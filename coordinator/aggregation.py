"""Opens a round's sum and makes the next global adapter, chunk by chunk, in constant memory.

Reads masked uploads, adds them, takes off the masks that the revealed shares open, decodes the mean delta and lets the
strategy move the global adapter. Integers are summed, so doing it again after a crash gives the same bits.

A long sum need not be done again: what is made of it becomes durable every so often (`checkpoints`), and after a kill
the sum goes on at the first chunk that is not. `work` says of which sum that is. The tail's chunk is opened anew every
time: it is one, and the others are decoded with its weight.
"""

from __future__ import annotations

import math
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
from coordinator.checkpoints import GrowingFiles
from coordinator.uploads import UploadReader

# Of float32: participants scale to the bound, the mean is summed up again.
NORM_SLACK: Final = 1.001
THREADS: Final = min(4, usable_cores())
# What is made becomes durable after so many bytes of it, or of uploads and masks that went into it: a few seconds' work
# either way, whether two sites were summed or a thousand. A smaller sum is durable when it is whole.
DURABLE_AFTER_MADE_BYTES: Final = 512 << 20
DURABLE_AFTER_SUMMED_BYTES: Final = 32 << 30


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
    def round(self) -> int:
        return self._unmasking.context.start.round

    @property
    def layout(self) -> VectorLayout:
        return self._unmasking.context.layout

    @property
    def chunks_between_checkpoints(self) -> int:
        """Lane chunks after which it is time to make durable what came of them."""
        size = self.layout.chunk_words * np.dtype(np.uint64).itemsize
        summed = size * (len(self._uploads) + len(self._unmasking.added) + len(self._unmasking.subtracted))
        made = self.layout.chunk_words * self.layout.lanes * FLOAT32_BYTES
        return max(1, min(DURABLE_AFTER_MADE_BYTES // made, DURABLE_AFTER_SUMMED_BYTES // summed))

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

    def mean_chunks(self, tail: TailSums, *, first: int = 0) -> Iterator[FlatVector]:
        """The mean delta, float32, lane chunk after lane chunk from `first` on; a few are worked on at a time."""
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
            return decode_chunk(self.plan, chunk, words, tail, round_=self.round)

        chunks = iter(range(first, self.layout.lane_chunks))
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
    work: str,
    still_ours: Callable[[], None],
) -> NextAdapter:
    """Write the next global adapter below `scratch`, and go on there with what a killed process has left.

    base: model file of the adapter that the round trained from. work: digest of all that decides the result's bits;
    what another work has left is thrown away. still_ours: raises LeaseLost when another process has taken the round
    over. Raises UpdateNotFinite or NormExceeded instead of making something bad, and StorageFailed.
    """
    FlatFile.open(base, adapter_layout)  # its header is this layout's, so the flat vector begins right behind it
    header = adapter_layout.header()
    try:
        with base.open("rb") as before, GrowingFiles(scratch, work=work, names=(ADAPTER_FILE,)) as after:
            if not after.size(ADAPTER_FILE):
                after.append(ADAPTER_FILE, header)
            before.seek(after.size(ADAPTER_FILE))
            for mean in opened.mean_chunks(tail, first=after.chunks):
                still_ours()
                old = np.frombuffer(before.read(mean.size * FLOAT32_BYTES), dtype=np.float32)
                new, _ = optimizer.step(old, mean, ())
                after.append(ADAPTER_FILE, new.data)
                after.chunk_done(square_norm(mean))
                if after.chunks % opened.chunks_between_checkpoints == 0:
                    after.checkpoint()
            digest, norm = after.finish()[ADAPTER_FILE], math.sqrt(after.total)
    except OSError as error:
        raise StorageFailed(f"cannot write the next adapter below {scratch}: {error.strerror}") from error
    if not math.isfinite(norm):
        raise UpdateNotFinite("the mean delta holds a NaN or an infinity")
    if norm > max_update_norm * NORM_SLACK + rounding_norm(opened.plan, tail, round_=opened.round):
        raise NormExceeded(
            f"the mean delta has L2 norm {norm:.6g}, the plan's bound is {max_update_norm:.6g}: "
            "some participant did not clip its update"
        )
    return NextAdapter(scratch / ADAPTER_FILE, digest, norm)


def rounding_norm(plan: SecaggPlan, tail: TailSums, *, round_: int) -> float:
    """Most that the fixed point's rounding can add to the mean's L2 norm: sqrt(d) * |U3| * C / (L * A).

    Where the weights are small against their cap this is much more than the float's rounding, and nobody's fault.
    """
    clips = sum(slot.size * slot.clip**2 for slot in plan.slots_of(round_))
    return math.sqrt(clips) * tail.count / (plan.lane_limit * tail.weight)
