"""The spool: the same bytes whatever the number of threads, bounded memory, and what was clipped is told."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from common.adapters import AdapterLayout, TensorSlot, create_adapter_file
from common.errors import StorageFailed, UpdateNotFinite
from common.secagg import CHUNK_WORDS, Masking, RoundKind
from participant.spool import chunk_sizes, write_masked
from participant.update import ClipReport, Update, open_update
from tests.unit.secagg.federation import Round, make_plan, set_up

METRICS = {"loss": 1.0, "tokens": 2.0}
CLIP = 0.5


def masking_of(parameters: int, *, chunk_words: int = 16, kind: RoundKind = RoundKind.TRAINING) -> Masking:
    plan = make_plan(3, parameters=parameters, clip=CLIP, chunk_words=chunk_words)
    return Round.start(set_up(plan, 3), kind=kind).masking(1)


def update_of(folder: Path, delta: np.ndarray, *, max_norm: float = 1e9) -> Update:
    layout = AdapterLayout((TensorSlot("delta", (1, delta.size), 0),))
    for name, values in (("base", np.zeros(delta.size)), ("local", delta)):
        mapped = create_adapter_file(folder / name, layout)
        mapped[:] = values
        mapped.flush()
    return open_update(folder / "local", folder / "base", layout, max_norm=max_norm)


def written(folder: Path, masking: Masking, update: Update | None, *, threads: int | None = None):
    spool = folder / "spools" / f"{threads}.masked"
    spooled = write_masked(spool, masking, update, alpha=0.5, metrics=METRICS, random_bytes=bytes, threads=threads)
    return spool.read_bytes(), spooled


@pytest.mark.parametrize("parameters", [1, 63, 64, 65, 1000])
def test_the_spool_is_the_same_whatever_the_number_of_threads(tmp_path, parameters):
    masking = masking_of(parameters)
    update = update_of(tmp_path, np.random.default_rng(1).normal(0, 0.4, parameters).astype(np.float32))
    alone, spooled = written(tmp_path, masking, update, threads=1)
    for threads in (2, 3, 7, None):
        assert written(tmp_path, masking, update, threads=threads) == (alone, spooled)
    sizes = chunk_sizes(masking.context.layout)
    assert len(alone) == sum(sizes)
    starts = np.cumsum((0, *sizes))
    pieces = [alone[start : start + size] for start, size in zip(starts, sizes, strict=False)]
    assert spooled.digests == tuple(hashlib.sha256(piece).digest() for piece in pieces)


def test_two_spools_of_one_update_have_the_same_masks_and_other_roundings(tmp_path):
    masking = masking_of(1000)
    update = update_of(tmp_path, np.random.default_rng(1).normal(0, 0.1, 1000).astype(np.float32))
    for name, source in (("first", bytes), ("second", b"\1".__mul__)):
        write_masked(tmp_path / name, masking, update, alpha=0.5, metrics=METRICS, random_bytes=source)
    first, second = (np.fromfile(tmp_path / name, dtype=np.uint64) for name in ("first", "second"))
    tail = masking.context.layout.lane_words
    assert 0 < np.count_nonzero(first[:tail] - second[:tail]) < tail
    assert np.array_equal(first[tail:], second[tail:])


def test_an_evaluation_round_spools_its_tail_alone(tmp_path):
    masking = masking_of(1000, kind=RoundKind.EVALUATION)
    content, spooled = written(tmp_path, masking, None)
    tail = masking.pack_tail(fixed_alpha=2**29, metrics=METRICS)
    masking.masker().add_into(0, tail)
    assert content == tail.tobytes()
    assert (len(spooled.digests), spooled.clipping.elements) == (1, 0)


def test_what_the_clip_took_is_counted_and_measured(tmp_path):
    delta = np.full(1000, 0.25, dtype=np.float32)
    delta[::100] = -0.75
    update = update_of(tmp_path, delta)
    _, spooled = written(tmp_path, masking_of(1000), update, threads=2)
    report = ClipReport.of(update, spooled.clipping)
    assert (report.clipped_elements, report.parameters, report.scale) == (10, 1000, 1.0)
    assert report.lost_norm == pytest.approx(np.sqrt(10 * 0.25**2) / np.linalg.norm(delta.astype(np.float64)))
    assert not report.is_untouched
    assert ClipReport.from_json(report.to_json()) == report


def test_an_update_within_its_bounds_is_reported_untouched_and_a_scaled_one_is_not(tmp_path):
    delta = np.full(100, 0.25, dtype=np.float32)
    for max_norm, is_untouched in ((10.0, True), (1.0, False)):
        update = update_of(tmp_path, delta, max_norm=max_norm)
        _, spooled = written(tmp_path, masking_of(100), update)
        report = ClipReport.of(update, spooled.clipping)
        assert (report.clipped_elements, report.lost_norm) == (0, 0.0)
        assert report.is_untouched == is_untouched


def test_a_file_that_is_spoiled_meanwhile_ends_every_thread_with_its_reason(tmp_path):
    update = update_of(tmp_path, np.zeros(1000, dtype=np.float32))
    values = np.zeros(1000, dtype=np.float32)
    values[700] = np.nan
    update_of(tmp_path, np.zeros(1000, dtype=np.float32))
    with (tmp_path / "local").open("r+b") as file:
        file.seek(update.local.offset_bytes)
        file.write(values.tobytes())
    with pytest.raises(UpdateNotFinite):
        written(tmp_path, masking_of(1000), update, threads=3)


def test_a_full_disk_says_what_to_do(tmp_path):
    with pytest.raises(StorageFailed, match="free some disk"):
        write_masked(
            Path("/dev/full"),
            masking_of(100),
            update_of(tmp_path, np.zeros(100, dtype=np.float32)),
            alpha=0.5,
            metrics=METRICS,
            random_bytes=bytes,
        )


def test_masking_on_one_core_takes_at_most_three_chunks_of_memory(tmp_path):
    parameters, spool = 4 * 4 * CHUNK_WORDS + 5, tmp_path / "spool"
    masking = masking_of(parameters, chunk_words=CHUNK_WORDS)
    update = update_of(tmp_path, np.random.default_rng(1).normal(0, 0.1, parameters).astype(np.float32))
    tracemalloc.start()
    try:
        write_masked(spool, masking, update, alpha=0.5, metrics=METRICS, random_bytes=bytes, threads=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * 8 * CHUNK_WORDS < spool.stat().st_size
