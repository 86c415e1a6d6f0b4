"""Opens a round's sum, chunk by chunk, in constant memory.

Reads masked uploads, adds them, takes off the masks that the revealed shares open, and decodes the mean of what was
sent. Knows nothing of what is made of it (`next_adapter`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from queue import SimpleQueue
from typing import Final

import numpy as np

from common.adapters import FLOAT32_BYTES, FlatVector
from common.cores import usable_cores
from common.secagg import SecaggPlan, StreamSum, TailSums, Unmasking, VectorLayout, Words, add_into, decode_chunk
from coordinator.uploads import UploadReader

THREADS: Final = min(4, usable_cores())
# What is made becomes durable after so many bytes of it, or of uploads and masks that went into it: a few seconds' work
# either way, whether two sites were summed or a thousand. A smaller sum is durable when it is whole.
DURABLE_AFTER_MADE_BYTES: Final = 512 << 20
DURABLE_AFTER_SUMMED_BYTES: Final = 32 << 30


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
