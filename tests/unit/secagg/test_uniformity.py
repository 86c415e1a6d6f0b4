"""A masked update looks like noise, whatever is in it. Seeds are fixed: a test fails for a reason or never.

Says little by itself (one mask that is left hides every other that is missing); test_parts.py has the structure.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from common.secagg import CHUNK_WORDS, Packer, RoundKind
from tests.unit.secagg import statistics
from tests.unit.secagg.federation import Round, make_plan, set_up

LANES = 4
PARAMETERS = 2_200_000  # 4.4 MB of words
CLIP = 0.5
REJECTED = 1e-6
REPETITIONS = 20
PLAN = make_plan(3, parameters=PARAMETERS, clip=CLIP, chunk_words=CHUNK_WORDS, lanes=LANES)


@lru_cache(maxsize=4)
def packed(value: float) -> np.ndarray:
    """The update that is `value` everywhere, as words."""
    layout = PLAN.layout(RoundKind.TRAINING, 1)
    packer = Packer(PLAN, round_=1, alpha=1.0, rounding_key=bytes(32))
    values = np.full(PARAMETERS, value, np.float32)
    chunks = [packer.pack_chunk(at, values[slice(*layout.parameters_in(at))])[0] for at in range(layout.lane_chunks)]
    return np.concatenate(chunks)


def masked(value: float, seed: int) -> np.ndarray:
    """A member's upload in a federation of its own."""
    masking = Round.start(set_up(PLAN, 3, seed=seed)).masking(seed % 3)
    layout, masker = masking.context.layout, masking.masker()
    words = packed(value).copy()
    for at in range(layout.lane_chunks):
        first = layout.byte_offset(at) // 8
        masker.add_into(at, words[first : first + layout.words_in(at)])
    assert words.nbytes >= 4 << 20
    return words


def p_values(words: np.ndarray) -> dict[str, float]:
    as_bytes, lanes = words.view(np.uint8), words.view(np.uint16)
    fractions = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    found = {
        "bytes": statistics.chi_square(np.bincount(as_bytes, minlength=256)),
        "pairs of bytes": statistics.chi_square(np.bincount(lanes, minlength=65536)),
        "words": statistics.kolmogorov_smirnov(fractions),
        "bits": statistics.monobit(words.tobytes()),
        "next word": statistics.lag_one(fractions),
    }
    for lane in range(LANES):
        counts = np.bincount(lanes[lane::LANES] >> 4, minlength=4096)
        found[f"lane {lane}"] = statistics.chi_square(counts)
    return found


@pytest.mark.parametrize("value", [0.0, CLIP, -CLIP])
def test_plain_words_fail_every_test_of_uniformity(value):
    """Otherwise the tests below could not fail."""
    found = p_values(packed(value))
    # At zero every word is alike: nothing is left to correlate, which counts as failed too.
    assert {name for name, p in found.items() if p >= REJECTED} == set()


def test_masked_updates_at_the_clips_edge_are_uniform_and_so_are_the_p_values():
    found = [p_values(masked(CLIP if seed % 2 else -CLIP, seed)) for seed in range(REPETITIONS)]
    assert all(p > REJECTED for one in found for p in one.values())
    for name in found[0]:
        assert statistics.kolmogorov_smirnov(np.array([one[name] for one in found])) > REJECTED, name


def test_an_update_of_zeros_and_one_at_the_clip_cannot_be_told_apart():
    found = []
    for seed in range(0, REPETITIONS, 4):
        zeros, most = masked(0.0, seed), masked(CLIP, seed + 1000)
        found.append(statistics.kolmogorov_smirnov_of_two(zeros, most))
    assert min(found) > REJECTED
    assert statistics.kolmogorov_smirnov_of_two(packed(0.0), packed(CLIP)) < REJECTED


@pytest.mark.parametrize(
    ("broken", "caught"),
    [
        (lambda words: words & ~np.uint64(1 << 40), "pairs of bytes"),
        (lambda words: np.where(np.arange(words.size) % 200, words, np.uint64(0)), "words"),
        (lambda words: np.repeat(words[::2], 2), "next word"),
        (lambda words: words | (words >> np.uint64(1) & np.uint64(0x0101010101010101)), "bits"),
    ],
    ids=[
        "one bit is never set",
        "one word in two hundred is plain",
        "words come twice",
        "a bit depends on its neighbour",
    ],
)
def test_small_faults_of_a_mask_are_seen(broken, caught):
    words = masked(CLIP, 7)
    assert p_values(words)[caught] > REJECTED
    assert p_values(broken(words))[caught] < REJECTED
