"""What masking costs a coordinator, from arriving chunks to the next adapter, beside what its cost model says.

Every chunk of every upload is checked and made durable in a `FileBlobStore`; then the sum is opened and decoded and the
next adapter is written (`OpenSum`, `make_next_adapter`).

The model: |U|V/a + |U|V/h + S V/b + |U|V/w + |U|V/r + d q + 4d/h + 4d/w + f, with the constants of the same process: V
bytes an upload, |U| survivors, S streams that are left in the sum, a adding, h SHA-256, b masking, w writing blobs
(between the uploads) and r reading them, q decoding; 4d/h and 4d/w are the next adapter's digest and file. f is what no
byte of the update pays for: files, threads, ciphers. It is not fitted: it is the CPU time of the same round, with the
same members, dropouts and streams, over one parameter (`fixed`).

A round of a few chunks and members is played before anything is measured: what a process does once in its life, such as
loading a cipher or taking memory that it keeps, is no part of a round. A round of at most `REPEATED_BYTES` is played
`REPEATS` times and the median one is told: it is over before a busy machine's moments even out. The bare model is the
first three terms alone.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.masked_round import CLIP, Case, exact_file, file_chunks, unmasking_of, upload_file
from benchmarks.processes import MEBIBYTE, best, extra_mib, watch_memory
from common.adapters import FLOAT32_BYTES, FlatFile
from common.errors import AccordError
from common.methods import Method
from common.secagg import RoundContext, StreamSum, TailSums, Unmasking, add_into, decode_chunk
from common.strategies import server_optimizer
from coordinator.aggregation import OpenSum
from coordinator.next_adapter import NextAdapter, StartingPoint, make_next_adapter
from coordinator.store.blobs_file import FileBlobStore
from coordinator.uploads import SEGMENT_CHUNKS, UploadReader, check_chunk, upload_prefix, write_segment

ADDED_BYTES: Final = 160 * MEBIBYTE
WRITTEN_SEGMENTS: Final = 64
LEAST_SEGMENTS: Final = 32
REPEATED_BYTES: Final = 512 * MEBIBYTE
REPEATS: Final = 5
SMALL_ROUNDS: Final = 3
SMALL_STORED: Final = 32
WARM_MEMBERS: Final = 3
WARM_CHUNKS: Final = 8


@dataclass(frozen=True, slots=True)
class Opened:
    """A round that was received and opened, and its CPU seconds. seconds: wall time of opening."""

    unmasking: Unmasking
    made: NextAdapter
    tail: TailSums
    receiving: float
    opening: float
    seconds: float

    @property
    def spent(self) -> float:
        return self.receiving + self.opening


class WriteRate:
    """How fast blobs of a segment's size are written while the uploads are, by the mean and not the best.

    A file's pages are fresh ones each time, and some are much dearer than others; what else the machine writes counts.
    """

    def __init__(self, blobs: FileBlobStore, *, every: int) -> None:
        self.blobs = blobs
        self._every = every
        self._segment = (os.urandom(MEBIBYTE),) * SEGMENT_CHUNKS
        self._calls = self._written = 0
        self._seconds = 0.0

    def sample(self) -> None:
        """Write one segment at every `every`-th call."""
        if self._calls % self._every == 0:
            begun = time.thread_time()
            self.blobs.put(f"rate/{self._written}", *self._segment)
            self._seconds += time.thread_time() - begun
            self._written += 1
        self._calls += 1

    def bytes_per_second(self) -> float:
        """Of CPU time. Writes more where too little was written for a mean."""
        while self._written < LEAST_SEGMENTS:
            self._every = 1
            self.sample()
        return self._written * SEGMENT_CHUNKS * MEBIBYTE / self._seconds


def small_case(case: Case) -> Case:
    """The same members, dropouts and streams over one parameter."""
    return replace(case, parameters=1, stored=min(case.stored, SMALL_STORED))


def warm_case(case: Case) -> Case:
    """A few members and, if the case has so many, a few chunks."""
    some = case.context().layout.parameters_per_chunk * WARM_CHUNKS
    return Case(min(some, case.parameters), WARM_MEMBERS, 0, stored=WARM_MEMBERS)


def small_folder(folder: Path) -> Path:
    return folder / "small"


def warm_folder(folder: Path) -> Path:
    return folder / "warm"


def measure_coordinator(case: Case, folder: Path) -> dict[str, Any]:
    """From arriving chunks to the next adapter."""
    blobs = FileBlobStore(folder / "blobs")
    before = watch_memory()
    _play(warm_case(case), warm_folder(folder), blobs, 1)
    rate = WriteRate(blobs, every=-(-len(case.uploaders) // WRITTEN_SEGMENTS))
    played = _median(case, folder, blobs, meanwhile=rate.sample)
    extra = extra_mib(before)
    context, streams = case.context(), len(played.unmasking.added) + len(played.unmasking.subtracted)
    terms = _model_terms(case, context, played.unmasking.unmasker(), streams, rate)
    bare = terms["add"] + terms["hash"] + terms["streams"]
    small = [_play(small_case(case), small_folder(folder), blobs, 2 + REPEATS + at).spent for at in range(SMALL_ROUNDS)]
    terms["fixed"] = sum(small) / SMALL_ROUNDS
    return {
        "coordinator_cpu_seconds": played.spent,
        "coordinator_receive_cpu_seconds": played.receiving,
        "coordinator_open_cpu_seconds": played.opening,
        "coordinator_open_seconds": played.seconds,
        "coordinator_extra_rss_mib": extra,
        "coordinator_model_cpu_seconds": terms,
        "coordinator_fixed_cpu_seconds": terms["fixed"],
        "coordinator_cpu_over_model": played.spent / sum(terms.values()),
        "coordinator_cpu_over_bare_model": played.spent / bare,
        "unmask_streams": streams,
        "max_error_over_bound": _error_over_bound(case, context, folder, played.made.path, played.tail),
        "opens_in_protocol": _opens(case, context),
    }


def _median(case: Case, folder: Path, blobs: FileBlobStore, *, meanwhile: Callable[[], None]) -> Opened:
    """The median round by CPU time of as many as the case is worth; one's uploads are deleted before the next."""
    stored = len(case.uploaders) * case.context().layout.bytes
    played: list[Opened] = []
    for round_ in range(2, 2 + (REPEATS if stored <= REPEATED_BYTES else 1)):
        for index in case.uploaders:
            blobs.delete(_prefix(round_ - 1, index))
        played.append(_play(case, folder, blobs, round_, meanwhile=meanwhile))
    return sorted(played, key=lambda one: one.spent)[len(played) // 2]


def _prefix(round_: int, index: int) -> str:
    return upload_prefix("bench", round_, f"site-{index:04}")


def _play(
    case: Case, folder: Path, blobs: FileBlobStore, round_: int, *, meanwhile: Callable[[], None] = lambda: None
) -> Opened:
    """Receive the uploads that lie in `folder`, open their sum and make the next adapter there.

    meanwhile: called after each upload; not part of the round.
    """
    context = case.context()
    prefixes = {index: _prefix(round_, index) for index in case.uploaders}
    receiving = 0.0
    for index in case.uploaders:
        receiving += _receive(blobs, context, upload_file(folder, index), prefixes[index])
        meanwhile()
    unmasking = unmasking_of(case, context)
    readers = {index: UploadReader(blobs, prefix, context.layout) for index, prefix in prefixes.items()}
    wall, cpu = time.perf_counter(), time.process_time()
    opened = OpenSum(unmasking, [readers[case.uploader_for(at)] for at in range(len(case.survivors))])
    tail = opened.tail()
    made = make_next_adapter(
        opened,
        tail,
        start=StartingPoint(case.adapter, folder / "base", case.adapter),
        sent=case.sent,
        optimizer=server_optimizer(Method()),
        max_update_norm=math.inf,
        scratch=folder / "scratch",
        work=str(round_),
        still_ours=lambda: None,
    )
    opening, seconds = time.process_time() - cpu, time.perf_counter() - wall
    return Opened(unmasking, made, tail, receiving * len(case.survivors) / len(case.uploaders), opening, seconds)


def _receive(blobs: FileBlobStore, context: RoundContext, upload: Path, prefix: str) -> float:
    """CPU seconds of checking and storing one upload. Reading it stands for the network and is not counted."""
    spent, collected, first = 0.0, list[bytes](), 0
    layout = context.layout
    digests = b"".join(hashlib.sha256(chunk).digest() for chunk in file_chunks(upload, context))
    for index, chunk in enumerate(file_chunks(upload, context)):
        begun = time.thread_time()
        check_chunk(layout, digests, index, chunk)
        collected.append(chunk)
        if len(collected) == SEGMENT_CHUNKS or index == layout.tail_chunk:
            write_segment(blobs, prefix, first, collected)
            first, collected = index + 1, []
        spent += time.thread_time() - begun
    return spent


def _model_terms(
    case: Case, context: RoundContext, masker: StreamSum, streams: int, rate: WriteRate
) -> dict[str, float]:
    """CPU seconds of each term of the cost model, with rates that are measured here."""
    layout, survivors = context.layout, len(case.survivors)
    upload_bytes = layout.bytes
    large = [np.ones(ADDED_BYTES // 8, dtype=np.uint64) for _ in range(2)]
    add = large[0].nbytes / best(lambda: add_into(*large))
    content = os.urandom(MEBIBYTE)
    digest = MEBIBYTE / best(lambda: hashlib.sha256(content).digest(), tries=20)
    words = np.zeros(layout.words_in(0), dtype=np.uint64)
    per_stream = best(lambda: masker.add_into(0, words), tries=3) / max(streams, 1)
    write = rate.bytes_per_second()
    read = (
        SEGMENT_CHUNKS
        * MEBIBYTE
        / best(lambda: [rate.blobs.read("rate/0", at * MEBIBYTE, MEBIBYTE) for at in range(SEGMENT_CHUNKS)])
    )
    tail = TailSums(survivors, float(survivors), {})
    decode = (
        best(lambda: decode_chunk(context.epoch.plan, 0, words, tail, round_=context.start.round))
        / layout.parameters_in(0)[1]
    )
    received = survivors * upload_bytes
    return {
        "add": received / add,
        "hash": received / digest,
        "streams": streams * upload_bytes * per_stream / words.nbytes,
        "write": received / write,
        "read": received / read,
        "decode": case.parameters * decode,
        "adapter": case.parameters * FLOAT32_BYTES * (1 / digest + 1 / write),
    }


def _error_over_bound(case: Case, context: RoundContext, folder: Path, made: Path, tail: TailSums) -> float:
    """Largest error of an element of the mean, over the bound |U| C / (L A). The old adapter is zeros."""
    bound = tail.count * CLIP / (context.epoch.plan.lane_limit * tail.weight)
    new = FlatFile.open(made, case.adapter)
    worst, step = 0.0, 1 << 20
    for start in range(0, case.parameters, step):
        stop = min(start + step, case.parameters)
        exact = np.fromfile(exact_file(folder), dtype=np.float32, count=stop - start, offset=4 * start)
        worst = max(worst, float(np.abs(new.read(start, stop) - exact).max()))
    return worst / bound


def _opens(case: Case, context: RoundContext) -> bool:
    """Whether the protocol's floors let such a sum be opened: with a third of the members missing they may not."""
    try:
        context.check_survivors(case.survivors)
    except AccordError:
        return False
    return not context.unopenable(case.survivors)
