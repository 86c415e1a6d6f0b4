"""One round of Accord's masking with the functions that its participant and coordinator run, measured as a peer's is.

    python -m benchmarks.peers.accord_masking participant PARAMETERS PARTICIPANTS DROPOUTS

`python -m benchmarks.flower_secagg` starts it, once for each side. Seeds are random: what they were agreed on by costs
the same whatever the adapter's size. One thread, so that CPU time compares. Prints one JSON line.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.processes import status_mib
from common.adapters import FlatFile
from common.plan import METRIC_WORDS
from common.secagg import (
    ClipSlot,
    KeyEpoch,
    Masking,
    Members,
    RoundContext,
    RoundKind,
    SecaggPlan,
    Start,
    TailSums,
    Unmasking,
    choose_lanes,
)
from common.secagg.hashing import DIGEST_BYTES, KEY_BYTES
from coordinator.aggregation import OpenSum
from coordinator.store.opening import open_blobs
from coordinator.uploads import SEGMENT_CHUNKS, UploadReader, upload_prefix, write_segment
from participant.spool import write_masked
from participant.update import CLIPPED_ELEMENTS, Update

CLIP: Final = 0.02
BLOCK: Final = 1 << 20
REPEATS: Final = 5


def context_of(parameters: int, participants: int) -> RoundContext:
    """A training round of `participants`, all of them in its cohort."""
    plan = SecaggPlan(
        plan_hash=secrets.token_bytes(DIGEST_BYTES),
        run_id=secrets.token_bytes(32),
        members_floor=3,
        members_limit=max(participants, 10),
        rounds_per_epoch=1,
        slots=(ClipSlot(parameters, CLIP),),
        metrics=METRIC_WORDS,
        lanes=choose_lanes(max(participants, 10)),
    )
    epoch = KeyEpoch(plan, 1, 1)
    names = tuple(f"site-{index:04}" for index in range(participants))
    members = Members(secrets.token_bytes(DIGEST_BYTES), names, (bytes(32),) * participants, ((),) * participants)
    start = Start(
        epoch.hash,
        members.roster_hash,
        1,
        RoundKind.TRAINING,
        tuple(range(participants)),
        participants,
        secrets.token_bytes(DIGEST_BYTES),
    )
    return RoundContext.of(epoch, members, start)


def masking_of(context: RoundContext, peers: int) -> Masking:
    """Member 0, with as many pair masks."""
    seeds = {other: secrets.token_bytes(KEY_BYTES) for other in range(1, peers + 1)}
    key = secrets.token_bytes(KEY_BYTES)
    return Masking(context, 0, secrets.token_bytes(KEY_BYTES), key, seeds, {})


def made_up_update(folder: Path, parameters: int) -> Update:
    """Two files of float32, as training leaves them."""
    generator = np.random.default_rng(1)
    paths = folder / "local", folder / "base"
    with paths[0].open("wb") as local, paths[1].open("wb") as base:
        for at in range(0, parameters, BLOCK):
            size = min(BLOCK, parameters - at)
            local.write((generator.standard_normal(size, dtype=np.float32) * np.float32(CLIP / 5)).tobytes())
            base.write(bytes(4 * size))
    trained, before = (FlatFile(path, 0, parameters) for path in paths)
    return Update(trained, before, norm=1.0, scale=1.0)


def begin_peak() -> float:
    """Forget the peak so far; MiB that are resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_mib(os.getpid(), "VmRSS")


def participant_side(folder: Path, parameters: int, participants: int) -> dict[str, float]:
    context = context_of(parameters, participants)
    update, spool = made_up_update(folder, parameters), folder / "spool"
    metrics = {name: 0.0 for name in METRIC_WORDS if name != CLIPPED_ELEMENTS}

    def mask(peers: int) -> float:
        masking, begun = masking_of(context, peers), time.process_time()
        write_masked(spool, masking, update, alpha=1.0, metrics=metrics, random_bytes=secrets.token_bytes, threads=1)
        return time.process_time() - begun

    # The least of a few runs, taken in turns, as the peer is measured.
    mask(1)
    before = begin_peak()
    pairs = [(mask(1), mask(participants - 1)) for _ in range(REPEATS)]
    peak = status_mib(os.getpid(), "VmHWM")
    few, many = min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
    return {
        "mask_ns_per_parameter_peer": (many - few) / (participants - 2) / parameters * 1e9,
        "client_cpu_seconds": many,
        "upload_bytes_per_parameter": spool.stat().st_size / parameters,
        "participant_extra_rss_mib": peak - before,
    }


def coordinator_side(folder: Path, parameters: int, participants: int, dropouts: int) -> dict[str, float]:
    """Add, unmask and decode, from the coordinator's blob store. The uploads are random words: it cannot tell."""
    context = context_of(parameters, participants)
    layout, survivors = context.layout, tuple(range(dropouts, participants))
    blobs = open_blobs(f"file://{folder / 'blobs'}")
    prefixes = [upload_prefix("bench", 1, context.members.org_ids[index]) for index in survivors]
    for prefix in prefixes:
        for first in range(0, layout.chunks, SEGMENT_CHUNKS):
            chunks = range(first, min(first + SEGMENT_CHUNKS, layout.chunks))
            write_segment(blobs, prefix, first, [secrets.token_bytes(8 * layout.words_in(at)) for at in chunks])
    pairs = tuple(secrets.token_bytes(KEY_BYTES) for _ in range(dropouts * len(survivors)))
    selves = tuple(secrets.token_bytes(KEY_BYTES) for _ in survivors)
    before, begun = begin_peak(), time.process_time()
    opened = OpenSum(
        Unmasking(context, survivors, pairs, selves), [UploadReader(blobs, prefix, layout) for prefix in prefixes]
    )
    tail = TailSums(count=len(survivors), weight=float(len(survivors)), metrics={})
    decoded = sum(mean.size for mean in opened.mean_chunks(tail))
    spent, peak = time.process_time() - begun, status_mib(os.getpid(), "VmHWM")
    if decoded != parameters:
        raise RuntimeError(f"{decoded} parameters were decoded of {parameters}")
    return {"coordinator_cpu_seconds": spent, "coordinator_extra_rss_mib": peak - before}


def main() -> None:
    side, parameters, participants, dropouts = sys.argv[1], *map(int, sys.argv[2:5])
    with tempfile.TemporaryDirectory(prefix="accord-bench-") as folder:
        if side == "participant":
            figures = participant_side(Path(folder), parameters, participants)
        else:
            figures = coordinator_side(Path(folder), parameters, participants, dropouts)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
