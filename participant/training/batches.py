"""Which records go into which optimiser step: seeded, weighted by domain, grouped by length.

And which of a step's records each of a job's processes takes. Pure: numbers in, indices out. The same seed gives the
same order on every machine, from any step on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Batches whose records are sorted by length together: enough to save most padding, few enough to keep the order random.
_GROUP_BATCHES: Final = 16


def batches(
    lengths: Sequence[int], weights: Sequence[float], *, batch_size: int, seed: int
) -> Iterator[tuple[int, ...]]:
    """Endless batches of min(batch_size, records) record indices, the longest record first.

    lengths: tokens per record. weights: how often a record is drawn relative to others; all equal means every record
    once a pass. Records that do not fill a pass's last batch come first in the next pass.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    size = min(batch_size, len(lengths))
    share = np.asarray(weights, dtype=np.float64) * (len(weights) / float(np.sum(weights)))
    waiting: list[int] = []
    while True:
        waiting.extend(_pass(share, generator))
        group = size * _GROUP_BATCHES
        ready: list[tuple[int, ...]] = []
        while len(waiting) >= size:
            head = waiting[:group]
            whole = len(head) - len(head) % size
            ready.extend(_by_length(head[:whole], lengths, size))
            waiting = waiting[whole:]
        for index in generator.permutation(len(ready)):
            yield ready[int(index)]


def share_of(records: int, *, rank: int, processes: int) -> range:
    """Places in a step of that many records that one process takes: one in so many, as they are sorted by length."""
    return range(rank, records, processes)


def passes_of(records: int, *, processes: int, micro_batch_size: int) -> int:
    """Micro-batches that the largest share of a step takes."""
    return -(-len(share_of(records, rank=0, processes=processes)) // micro_batch_size)


def _pass(share: NDArray[np.float64], generator: np.random.Generator) -> Iterator[int]:
    """Record i comes floor(share_i) times, and once more with what is left as probability; in random order."""
    times = np.floor(share + generator.random(len(share))).astype(np.int64)
    order = np.repeat(np.arange(len(share)), times)
    return (int(index) for index in generator.permutation(order))


def _by_length(indices: Sequence[int], lengths: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    ordered = sorted(indices, key=lambda index: (-lengths[index], index))
    return (tuple(ordered[start : start + size]) for start in range(0, len(ordered), size))
