"""One round of Accord's masking with the functions that its participant and coordinator run, measured as a peer's is.

    python -m benchmarks.peers.accord_masking participant PARAMETERS PARTICIPANTS DROPOUTS

`python -m benchmarks.flower_secagg` starts it, once for each side. Measures what the peer's script measures, and no
more: `benchmarks.secagg` has Accord's own figures. Prints one JSON line.
"""

from __future__ import annotations

import json
import math
import secrets
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

from benchmarks.masked_round import Case, delta_of, masking_of, unmasking_of
from benchmarks.processes import extra_mib, watch_memory
from common.secagg import RoundContext, TailSums
from coordinator.aggregation import OpenSum
from coordinator.store.blobs_file import FileBlobStore
from coordinator.uploads import SEGMENT_CHUNKS, UploadReader, upload_prefix, write_segment
from participant.spool import write_masked
from participant.update import CLIPPED_ELEMENTS, Update, open_update

REPEATS: Final = 15


def case_of(parameters: int, participants: int, dropouts: int) -> Case:
    """Every survivor has an upload of its own, as the peer's have."""
    return Case(parameters, participants, dropouts, stored=participants)


def made_up_update(case: Case, context: RoundContext, folder: Path) -> Update:
    """Two adapter files, as training leaves them."""
    layout = context.layout
    with (folder / "local").open("wb") as local, (folder / "base").open("wb") as base:
        for file in (local, base):
            file.write(case.adapter.header())
        for chunk in range(layout.lane_chunks):
            start, stop = layout.parameters_in(chunk)
            delta = delta_of(0, chunk, stop - start)
            local.write(delta.tobytes())
            base.write(bytes(delta.nbytes))
    return open_update(folder / "local", folder / "base", case.adapter, max_norm=math.inf)


def participant_side(folder: Path, case: Case) -> dict[str, float]:
    """Masks on one thread, so that CPU time compares."""
    context = case.context()
    masking, update, spool = masking_of(context, 0), made_up_update(case, context, folder), folder / "spool"
    metrics = {name: 0.0 for name in context.epoch.plan.metric_words if name != CLIPPED_ELEMENTS}

    def mask(peers: int) -> float:
        some = replace(masking, pair_seeds=dict(islice(masking.pair_seeds.items(), peers)))
        begun = time.process_time()
        write_masked(spool, some, update, alpha=1.0, metrics=metrics, random_bytes=secrets.token_bytes, threads=1)
        return time.process_time() - begun

    # The least of a few runs, taken in turns, as the peer is measured.
    mask(1)
    before = watch_memory()
    pairs = [(mask(1), mask(case.participants - 1)) for _ in range(REPEATS)]
    extra = extra_mib(before)
    few, many = min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
    return {
        "mask_ns_per_parameter_peer": (many - few) / (case.participants - 2) / case.parameters * 1e9,
        "client_cpu_seconds": many,
        "upload_bytes_per_parameter": spool.stat().st_size / case.parameters,
        "participant_extra_rss_mib": extra,
    }


def coordinator_side(folder: Path, case: Case) -> dict[str, float]:
    """Add, unmask and decode, from the coordinator's blob store. The uploads are random words: it cannot tell."""
    context = case.context()
    layout, unmasking = context.layout, unmasking_of(case, context)
    blobs = FileBlobStore(folder / "blobs")
    prefixes = [upload_prefix("bench", 1, context.members.org_ids[index]) for index in unmasking.survivors]
    for prefix in prefixes:
        for first in range(0, layout.chunks, SEGMENT_CHUNKS):
            chunks = range(first, min(first + SEGMENT_CHUNKS, layout.chunks))
            write_segment(blobs, prefix, first, [secrets.token_bytes(8 * layout.words_in(at)) for at in chunks])
    before, begun = watch_memory(), time.process_time()
    opened = OpenSum(unmasking, [UploadReader(blobs, prefix, layout) for prefix in prefixes])
    tail = TailSums(count=len(prefixes), weight=float(len(prefixes)), metrics={})
    decoded = sum(mean.size for mean in opened.mean_chunks(tail))
    spent = time.process_time() - begun
    if decoded != case.parameters:
        raise RuntimeError(f"{decoded} parameters were decoded of {case.parameters}")
    return {"coordinator_cpu_seconds": spent, "coordinator_extra_rss_mib": extra_mib(before)}


def main() -> None:
    side, case = sys.argv[1], case_of(*map(int, sys.argv[2:5]))
    with tempfile.TemporaryDirectory(prefix="accord-bench-") as folder:
        measure = participant_side if side == "participant" else coordinator_side
        print(json.dumps(measure(Path(folder), case)))


if __name__ == "__main__":
    main()
