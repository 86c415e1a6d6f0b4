"""What masking costs a participant: one update from two adapter files to a durable spool, and its loops, each alone.

Rates are the best of several tries, for masking and memcpy alike; memcpy copies between buffers far larger than the
last-level cache, so it is memory's speed.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.masked_round import Case, delta_of, masking_of, weight_of
from benchmarks.processes import MEBIBYTE, best, extra_mib, watch_memory
from common.cores import usable_cores
from common.secagg import Packer, RoundContext, StreamSum, Words
from participant.spool import write_masked
from participant.update import CLIPPED_ELEMENTS, open_update

# Ten times the last-level cache of the servers that this was written on.
MEMCPY_BYTES: Final = 320 * MEBIBYTE
LEAST_STREAM_BYTES: Final = 1 << 30
MOST_QUANTISED: Final = 8_000_000
GIGA: Final = 1e9


def measure_spooling(case: Case, folder: Path, threads: int) -> dict[str, Any]:
    """One masked update, from two adapter files to a durable spool. First in its process, for the memory's sake."""
    context = case.context()
    index = case.participants // 2
    masking = masking_of(context, index)
    update = open_update(folder / "local", folder / "base", case.adapter, max_norm=math.inf)
    metrics = {name: 0.0 for name in context.epoch.plan.metric_words if name != CLIPPED_ELEMENTS}
    before = watch_memory()
    wall, cpu = time.perf_counter(), time.process_time()
    write_masked(
        folder / "spool",
        masking,
        update,
        alpha=weight_of(index),
        metrics=metrics,
        random_bytes=os.urandom,
        threads=threads,
    )
    return {
        "spool_seconds": time.perf_counter() - wall,
        "spool_cpu_seconds": time.process_time() - cpu,
        "extra_rss_mib": extra_mib(before),
        "upload_bytes": (folder / "spool").stat().st_size,
    }


def measure_masking(case: Case) -> dict[str, Any]:
    """The loops that masking is made of, each alone, on one core and (masking) on two."""
    context = case.context()
    masker = masking_of(context, case.participants // 2).masker()
    streams = 1 + len(context.graph.neighbours(case.participants // 2))
    layout = context.layout
    lane_chunks = range(layout.lane_chunks)
    # Few parameters or few peers are gone over several times; of many, as many chunks as are enough.
    passes = max(1, -(-LEAST_STREAM_BYTES // (layout.lane_words * 8 * streams)))
    some = lane_chunks[: max(2, -(-LEAST_STREAM_BYTES // (layout.words_in(0) * 8 * streams)))]
    words = [np.zeros(layout.words_in(chunk), dtype=np.uint64) for chunk in some]
    size = sum(part.nbytes for part in words) * streams * passes
    parameters = sum(stop - start for start, stop in map(layout.parameters_in, some))
    alone = best(lambda: _mask(masker, words, range(len(words)), passes))
    memcpy = _memcpy_seconds()
    one_wall = best(lambda: _mask(masker, words, range(len(words)), passes), time.perf_counter)
    two_wall = best(lambda: _mask_by_two(masker, words, passes), time.perf_counter)
    quantised = some[: max(1, MOST_QUANTISED // layout.parameters_per_chunk)]
    deltas = [delta_of(0, chunk, stop - start) for chunk, (start, stop) in _places(context, quantised)]
    packer = Packer(context.epoch.plan, round_=context.start.round, alpha=0.7, rounding_key=os.urandom(32))
    packing = best(lambda: [packer.pack_chunk(chunk, delta) for chunk, delta in zip(quantised, deltas, strict=True)])
    hashing = best(lambda: [hashlib.sha256(part.data).digest() for part in words])
    return {
        "streams": streams,
        "mask_ns_per_parameter_peer": alone / (parameters * streams * passes) * GIGA,
        "mask_gb_per_second": size / alone / GIGA,
        "memcpy_gb_per_second": MEMCPY_BYTES / memcpy / GIGA,
        "mask_over_memcpy": size / alone / (MEMCPY_BYTES / memcpy),
        "mask_speedup_two_cores": one_wall / two_wall if usable_cores() > 1 else None,
        "quantise_ns_per_parameter": packing / sum(delta.size for delta in deltas) * GIGA,
        "sha256_gb_per_second": sum(part.nbytes for part in words) / hashing / GIGA,
    }


def _places(context: RoundContext, chunks: range) -> list[tuple[int, tuple[int, int]]]:
    return [(chunk, context.layout.parameters_in(chunk)) for chunk in chunks]


def _mask(masker: StreamSum, words: list[Words], chunks: range, passes: int) -> None:
    for _ in range(passes):
        for chunk in chunks:
            masker.add_into(chunk, words[chunk])


def _mask_by_two(masker: StreamSum, words: list[Words], passes: int) -> None:
    """Chunks 0, 2, ... in one thread, 1, 3, ... in another; a single chunk by both, each for half the time."""
    if len(words) > 1:
        shares = [(words, range(len(words))[first::2], passes) for first in range(2)]
    else:
        shares = [([words[0].copy()], range(1), -(-passes // 2)) for _ in range(2)]
    threads = [threading.Thread(target=_mask, args=(masker.copy(), *share)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _memcpy_seconds() -> float:
    source, target = np.ones(MEMCPY_BYTES, dtype=np.uint8), np.zeros(MEMCPY_BYTES, dtype=np.uint8)
    target[:] = 2  # touched, so that page faults are not part of what is timed
    return best(lambda: np.copyto(target, source))
