"""What masking costs: a participant's side and the coordinator's, each in a process of its own.

    python -m benchmarks.secagg --parameters 10000000 --participants 10 --dropouts 1

Prints one JSON line. `--dropouts` is a number or a percentage ("5%").

Measured with the product's own code: the participant quantises, packs, masks and spools an update that lies in two
adapter files (`participant.spool.write_masked`), once on one core and once on all; the coordinator checks every chunk
of every upload and makes it durable in a `FileBlobStore`, then adds, unmasks, decodes and writes the next adapter
(`OpenSum`, `make_next_adapter`). Not measured here: gRPC (`benchmarks.round`), and making and opening keys.

Stood in for: keys and seeds (made up), and the other members (`benchmarks.masked_round`). At most `--disk-gib` of
uploads are on disk (`stored_uploads`); where more survive, each stands for several in the sum and is read as often, and
what receiving costs is multiplied.

CPU seconds hold on a busy machine where wall time does not. Rates are the best of several tries, for masking and memcpy
alike; memcpy copies between buffers far larger than the last-level cache, so it is memory's speed.

`coordinator_cpu_over_model`: the coordinator's CPU over |U|V/a + |U|V/h + S V/b + |U|V/w + |U|V/r + d q + 4d/h + 4d/w,
with the constants of the same process: V bytes an upload, |U| survivors, S streams that are left in the sum, a adding,
h SHA-256, b masking, w and r writing and reading blobs, q decoding; the last two terms are the next adapter's digest
and file. `coordinator_cpu_over_bare_model` has the first three terms alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.masked_round import (
    CLIP,
    Case,
    delta_of,
    exact_file,
    file_chunks,
    make_uploads,
    masking_of,
    unmasking_of,
    upload_file,
    weight_of,
)
from benchmarks.processes import MEBIBYTE, status_mib
from common.adapters import FLOAT32_BYTES, FlatFile, create_adapter_file
from common.cores import usable_cores
from common.errors import AccordError
from common.memory import share_one_pool
from common.secagg import Packer, RoundContext, StreamSum, TailSums, Words, add_into, decode_chunk
from common.strategies import server_optimizer
from coordinator.aggregation import OpenSum, make_next_adapter
from coordinator.store.blobs_file import FileBlobStore
from coordinator.uploads import SEGMENT_CHUNKS, UploadReader, check_chunk, upload_prefix, write_segment
from participant.spool import write_masked
from participant.update import CLIPPED_ELEMENTS, open_update

# Ten times the last-level cache of the servers that this was written on.
MEMCPY_BYTES: Final = 320 * MEBIBYTE
LEAST_STREAM_BYTES: Final = 1 << 30
MOST_QUANTISED: Final = 8_000_000
TRIES: Final = 5
WRITTEN_SEGMENTS: Final = 64
GIGA: Final = 1e9


def best(work: Callable[[], object], clock: Callable[[], float] = time.thread_time, tries: int = TRIES) -> float:
    """Least seconds of several tries."""
    seconds = math.inf
    for _ in range(tries):
        begun = clock()
        work()
        seconds = min(seconds, clock() - begun)
    return seconds


def watch_memory() -> float:
    """Let the kernel's peak begin here; MiB that are resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_mib(os.getpid(), "VmRSS")


def extra_mib(before: float) -> float:
    """MiB by which the peak went beyond `before`."""
    return round(status_mib(os.getpid(), "VmHWM") - before, 2)


# --- participant ------------------------------------------------------------------------------------------------


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
    packer = Packer(context.epoch.plan, alpha=0.7, rounding_key=os.urandom(32))
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


# --- coordinator ------------------------------------------------------------------------------------------------


def measure_coordinator(case: Case, folder: Path) -> dict[str, Any]:
    """From arriving chunks to the next adapter."""
    context = case.context()
    blobs = FileBlobStore(folder / "blobs")
    prefixes = {index: upload_prefix("bench", 1, f"site-{index:04}") for index in case.uploaders}
    digests = {
        index: b"".join(hashlib.sha256(chunk).digest() for chunk in file_chunks(upload_file(folder, index), context))
        for index in case.uploaders
    }
    before = watch_memory()
    receiving = sum(
        _receive(blobs, context, upload_file(folder, index), prefixes[index], digests[index])
        for index in case.uploaders
    ) * (len(case.survivors) / len(case.uploaders))
    receive_mib = extra_mib(before)

    unmasking = unmasking_of(case, context)
    readers = {index: UploadReader(blobs, prefix, context.layout) for index, prefix in prefixes.items()}
    before = watch_memory()
    wall, cpu = time.perf_counter(), time.process_time()
    opened = OpenSum(unmasking, [readers[case.uploader_for(at)] for at in range(len(case.survivors))])
    tail = opened.tail()
    made = make_next_adapter(
        opened,
        tail,
        base=folder / "base",
        adapter_layout=case.adapter,
        optimizer=server_optimizer("fedavg", 1.0),
        max_update_norm=math.inf,
        scratch=folder / "scratch",
        still_ours=lambda: None,
    )
    opening, seconds = time.process_time() - cpu, time.perf_counter() - wall
    open_mib = extra_mib(before)
    terms = _model_terms(case, context, unmasking.unmasker(), len(unmasking.added) + len(unmasking.subtracted), blobs)
    spent = receiving + opening
    return {
        "coordinator_cpu_seconds": spent,
        "coordinator_receive_cpu_seconds": receiving,
        "coordinator_open_cpu_seconds": opening,
        "coordinator_open_seconds": seconds,
        "coordinator_extra_rss_mib": max(receive_mib, open_mib),
        "coordinator_model_cpu_seconds": terms,
        "coordinator_cpu_over_model": spent / sum(terms.values()),
        "coordinator_cpu_over_bare_model": spent / (terms["add"] + terms["hash"] + terms["streams"]),
        "unmask_streams": len(unmasking.added) + len(unmasking.subtracted),
        "max_error_over_bound": _error_over_bound(case, context, folder, made.path, tail),
        "opens_in_protocol": _opens(case, context),
    }


def _receive(blobs: FileBlobStore, context: RoundContext, upload: Path, prefix: str, digests: bytes) -> float:
    """CPU seconds of checking and storing one upload. Reading it stands for the network and is not counted."""
    spent, collected, first = 0.0, list[bytes](), 0
    layout = context.layout
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
    case: Case, context: RoundContext, masker: StreamSum, streams: int, blobs: FileBlobStore
) -> dict[str, float]:
    """CPU seconds of each term of the cost model, with rates that are measured here."""
    layout, survivors = context.layout, len(case.survivors)
    upload_bytes = layout.bytes
    large = [np.ones(MEMCPY_BYTES // 16, dtype=np.uint64) for _ in range(2)]
    add = large[0].nbytes / best(lambda: add_into(*large))
    content = os.urandom(MEBIBYTE)
    digest = MEBIBYTE / best(lambda: hashlib.sha256(content).digest(), tries=20)
    words = np.zeros(layout.words_in(0), dtype=np.uint64)
    per_stream = best(lambda: masker.add_into(0, words), tries=3) / max(streams, 1)
    segment = (content,) * SEGMENT_CHUNKS
    # The mean and not the best: a file's pages are fresh ones each time, and some are much dearer than others.
    begun = time.thread_time()
    for at in range(WRITTEN_SEGMENTS):
        blobs.put(f"rate/{at}", *segment)
    write = WRITTEN_SEGMENTS * SEGMENT_CHUNKS * MEBIBYTE / (time.thread_time() - begun)
    read = (
        SEGMENT_CHUNKS
        * MEBIBYTE
        / best(lambda: [blobs.read("rate/0", at * MEBIBYTE, MEBIBYTE) for at in range(SEGMENT_CHUNKS)])
    )
    tail = TailSums(survivors, float(survivors), {})
    decode = best(lambda: decode_chunk(context.epoch.plan, 0, words, tail)) / layout.parameters_in(0)[1]
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


# --- the run ----------------------------------------------------------------------------------------------------


def prepare(case: Case, folder: Path) -> None:
    """Everything that the measured processes find on disk: the others' uploads and this participant's adapters."""
    make_uploads(case, folder)
    index, layout = case.participants // 2, case.context().layout
    for name in ("base", "local"):
        mapped = create_adapter_file(folder / name, case.adapter)
        if name == "local":
            for chunk in range(layout.lane_chunks):
                start, stop = layout.parameters_in(chunk)
                mapped[start:stop] = delta_of(index, chunk, stop - start)
        mapped.flush()


ROLES: Final[dict[str, Callable[[Case, Path], dict[str, Any] | None]]] = {
    "prepare": prepare,
    "spool-on-one-core": lambda case, folder: measure_spooling(case, folder, 1),
    "spool-on-all-cores": lambda case, folder: measure_spooling(case, folder, min(4, usable_cores())),
    "masking": lambda case, folder: measure_masking(case),
    "coordinator": measure_coordinator,
}


def run_role(role: str, case: Case, folder: Path) -> dict[str, Any]:
    """In a process of its own, with the same placement and no threads of BLAS."""
    numbers = (case.parameters, case.participants, case.dropouts, case.stored)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.secagg", "--role", role, "--folder", folder, "--case", *map(str, numbers)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """All roles, one after another."""
    run_role("prepare", case, folder)
    one, all_cores = (run_role(f"spool-on-{cores}", case, folder) for cores in ("one-core", "all-cores"))
    masking = run_role("masking", case, folder)
    coordinator = run_role("coordinator", case, folder)
    return {
        "parameters": case.parameters,
        "participants": case.participants,
        "dropouts": case.dropouts,
        "stored_uploads": len(case.uploaders),
        "lanes": case.plan.lanes,
        **masking,
        "upload_bytes_per_parameter": one["upload_bytes"] / case.parameters,
        "participant_extra_rss_mib": one["extra_rss_mib"],
        "participant_extra_rss_mib_all_cores": all_cores["extra_rss_mib"],
        "participant_spool_cpu_seconds": one["spool_cpu_seconds"],
        "participant_spool_seconds": one["spool_seconds"],
        "spool_speedup_all_cores": one["spool_seconds"] / all_cores["spool_seconds"],
        **coordinator,
        "cores": usable_cores(),
        "load": os.getloadavg()[0],
    }


def _dropouts(text: str, participants: int) -> int:
    count = round(participants * float(text[:-1]) / 100) if text.endswith("%") else int(text)
    if not 0 <= count <= participants - 3:
        raise argparse.ArgumentTypeError(f"{text} dropouts of {participants} leave fewer than three")
    return count


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--participants", type=int, default=10)
    parser.add_argument("--dropouts", default="0")
    parser.add_argument("--disk-gib", type=float, default=4.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        share_one_pool()  # as both services do before anything else
        print(json.dumps(ROLES[options.role](Case(*options.case), options.folder) or {}))
        return
    if options.participants < 3 or options.parameters < 1:
        parser.error("at least 3 participants and 1 parameter")
    try:
        dropouts = _dropouts(options.dropouts, options.participants)
    except (ValueError, argparse.ArgumentTypeError) as error:
        parser.error(f"--dropouts: {error}")
    case = Case(options.parameters, options.participants, dropouts, stored=1)
    stored = max(1, int(options.disk_gib * 2**30 // (2 * case.context().layout.bytes)))
    with tempfile.TemporaryDirectory(prefix="accord-bench-", dir=options.folder) as scratch:
        try:
            figures = measure(Case(options.parameters, options.participants, dropouts, stored), Path(scratch))
        finally:
            shutil.rmtree(Path(scratch) / "blobs", ignore_errors=True)
    print(json.dumps(_rounded(figures)))


if __name__ == "__main__":
    main()
