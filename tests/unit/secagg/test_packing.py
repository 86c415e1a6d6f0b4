"""Lanes: no carry ever, unbiased rounding, the error bound, and what may not be packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import AggregationFailed, InvalidArgument, PlanInvalid, ShapeMismatch, UpdateNotFinite
from common.secagg import (
    ClipSlot,
    Packer,
    RoundKind,
    SecaggPlan,
    TailSums,
    add_into,
    choose_lanes,
    decode_chunk,
    fixed_weight,
    lane_limit,
)
from common.secagg.packing import fraction_bits, pack_tail, read_tail
from common.secagg.ring import LANE_CHOICES, lane_bits
from tests.unit.secagg.federation import make_plan, plain_sum

KEY = bytes(range(32))


def plan_of(slots, *, members=5, lanes=4, chunk_words=16) -> SecaggPlan:
    base = make_plan(members, lanes=lanes, chunk_words=chunk_words)
    return SecaggPlan(
        plan_hash=base.plan_hash,
        run_id=base.run_id,
        members_floor=3,
        members_limit=members,
        rounds_per_epoch=1,
        vectors=(tuple(ClipSlot(size, clip) for size, clip in slots),),
        metrics=("loss", "correct"),
        lanes=lanes,
        chunk_words=chunk_words,
    )


def pack(plan, values, *, alpha=1.0, key=KEY):
    packer = Packer(plan, round_=1, alpha=alpha, rounding_key=key)
    layout = plan.layout(RoundKind.TRAINING, 1)
    chunks, clipped = [], 0
    for chunk in range(layout.lane_chunks):
        words, over = packer.pack_chunk(chunk, values[slice(*layout.parameters_in(chunk))])
        assert words.shape == (layout.words_in(chunk),)
        chunks.append(words)
        clipped += over.elements
    return chunks, clipped


def lanes_of(plan, words):
    """Lane values of one chunk in parameter order, by shifts of Python ints: a second way to read the packing."""
    bits = lane_bits(plan.lanes)
    return [(int(word) >> (lane * bits)) & ((1 << bits) - 1) for lane in range(plan.lanes) for word in words]


@pytest.mark.parametrize(
    ("members", "lanes", "limit"), [(3, 4, 10922), (10, 4, 3276), (11, 3, 95325), (100, 3, 10485), (1000, 3, 1048)]
)
def test_the_densest_lanes_that_keep_a_mean_of_real_updates_within_a_thousandth_are_chosen(members, lanes, limit):
    assert choose_lanes(members) == lanes
    assert lane_limit(lanes, members) == limit


def test_no_packing_for_absurdly_many_members():
    assert lane_limit(2, 1000) == 2_147_483
    with pytest.raises(PlanInvalid):
        choose_lanes(10**8)


@given(st.sampled_from(LANE_CHOICES), st.integers(3, 200))
def test_lane_sums_of_all_members_at_the_edge_fit_their_lane(lanes, members):
    limit = lane_limit(lanes, members)
    assert 2 * limit * members < 1 << lane_bits(lanes)
    if limit:
        fraction = fraction_bits(limit)
        assert (2 * limit << fraction) + (1 << fraction) <= 2**31


@pytest.mark.parametrize("lanes", [2, 3, 4, 5])
@pytest.mark.parametrize("sign", [1, -1])
def test_all_members_at_the_clip_edge_never_carry(lanes, sign):
    members = 5
    plan = plan_of([(300, 0.5)], members=members, lanes=lanes)
    values = np.full(300, sign * 0.5, dtype=np.float32)
    values[::3] *= -1
    values[1::7] = sign * 3e38
    packed = [pack(plan, values, key=bytes([member]) * 32)[0] for member in range(members)]
    total = plain_sum(packed)
    mean = np.concatenate(
        [decode_chunk(plan, at, words, TailSums(members, members, {}), round_=1) for at, words in enumerate(total)]
    )
    np.testing.assert_allclose(mean, np.clip(values, -0.5, 0.5), rtol=1e-6)
    assert set(lanes_of(plan, packed[0][0])) == {0, 2 * plan.lane_limit}


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 90), st.floats(1e-3, 10)), min_size=1, max_size=6),
    st.sampled_from([2, 3, 4, 5]),
    st.integers(3, 7),
    st.integers(0, 2**32),
)
def test_the_mean_is_within_the_error_bound(slots, lanes, members, seed):
    plan = plan_of(slots, members=members, lanes=lanes)
    generator = np.random.default_rng(seed)
    clips = np.concatenate([np.full(size, clip) for size, clip in slots])
    weights = [fixed_weight(alpha) / 2**30 for alpha in generator.uniform(0.01, 1, members)]
    exact, packed = np.zeros(sum(slot.size for slot in plan.slots_of(1))), []
    for member, weight in enumerate(weights):
        values = (generator.normal(0, 0.7, clips.size) * clips).astype(np.float32)
        exact += weight * np.clip(values.astype(np.float64), -clips, clips)
        chunks, clipped = pack(plan, values, alpha=weight, key=bytes([member]) * 32)
        assert clipped == np.count_nonzero(np.abs(values.astype(np.float64)) > clips)
        packed.append(chunks)
    tail = TailSums(members, sum(weights), {})
    mean = np.concatenate([decode_chunk(plan, at, words, tail, round_=1) for at, words in enumerate(plain_sum(packed))])
    bound = members * clips / (plan.lane_limit * tail.weight)
    assert mean.shape == exact.shape
    assert np.all(np.abs(mean - exact / tail.weight) <= bound + 1e-6 * clips)


def test_rounding_is_unbiased():
    """Mean error of 2**22 roundings of one value, as a z-score; the seed is fixed."""
    plan = plan_of([(2**22, 1.0)], members=10, lanes=4, chunk_words=131072)
    for value in (0.3, -0.7512345, 1.0, -1.0, 1e-4):
        values = np.full(2**22, value, dtype=np.float32)
        chunks, _ = pack(plan, values, alpha=0.75)
        tail = TailSums(1, 0.75, {})
        mean = np.concatenate([decode_chunk(plan, at, words, tail, round_=1) for at, words in enumerate(chunks)])
        error = mean.astype(np.float64) - np.float64(np.float32(value))
        spread = max(error.std(), 1e-9) / np.sqrt(error.size)
        half_step = 1.0 / (plan.lane_limit * 0.75) / 2 ** (fraction_bits(plan.lane_limit) + 1)
        assert abs(error.mean()) < 5 * spread + half_step + 1e-8


def test_packing_is_planar_and_pads_with_zero():
    plan = plan_of([(70, 1.0)], lanes=4, chunk_words=16)
    values = np.zeros(70, dtype=np.float32)
    values[[0, 16, 64, 69]] = 1.0  # 64 = first of chunk 1, which has ceil(6 / 4) = 2 words
    chunks, _ = pack(plan, values)
    one, zero = 2 * plan.lane_limit, plan.lane_limit
    first, second = lanes_of(plan, chunks[0]), lanes_of(plan, chunks[1])
    assert [at for at, lane in enumerate(first) if lane != zero] == [0, 16]
    assert (first[0], len(chunks[1])) == (one, 2)
    assert second == [one, zero, zero, zero, zero, one, zero, zero]


def test_the_same_key_packs_the_same_words_and_another_key_other_words():
    plan = plan_of([(300, 1.0)])
    values = np.random.default_rng(0).normal(0, 0.3, 300).astype(np.float32)
    first, again, other = (pack(plan, values, key=key)[0] for key in (KEY, KEY, bytes(32)))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 150, 299])
def test_a_nan_or_an_infinity_is_refused(value, place):
    plan = plan_of([(100, 1.0), (200, 2.0)])
    values = np.zeros(300, dtype=np.float32)
    values[place] = value
    with pytest.raises(UpdateNotFinite):
        pack(plan, values)


def test_wrong_shapes_types_and_chunks_are_refused():
    plan = plan_of([(70, 1.0)])
    packer = Packer(plan, round_=1, alpha=1.0, rounding_key=KEY)
    wrong: list[tuple[int, Any]] = [
        (0, np.zeros(63, np.float32)),
        (0, np.zeros(64, np.float64)),
        (2, np.zeros(0, np.float32)),
        (3, np.zeros(0, np.float32)),
        (-1, np.zeros(0, np.float32)),
    ]
    for chunk, values in wrong:
        with pytest.raises(ShapeMismatch):
            packer.pack_chunk(chunk, values)
    with pytest.raises(ShapeMismatch):
        add_into(np.zeros(3, np.uint64), np.zeros(1, np.uint64))
    with pytest.raises(ShapeMismatch):
        decode_chunk(plan, 0, np.zeros(15, np.uint64), TailSums(3, 1.0, {}), round_=1)


@given(st.integers(0, 500), st.sampled_from([2, 3, 5, 8]), st.integers(8, 20))
def test_a_layout_covers_every_parameter_and_every_byte_once(parameters, lanes, chunk_words):
    plan = plan_of([(parameters, 1.0)] if parameters else [], members=3, lanes=lanes, chunk_words=chunk_words)
    layout = plan.layout(RoundKind.TRAINING, 1)
    ends = [layout.parameters_in(chunk) for chunk in range(layout.chunks)]
    assert [0, *(stop for _, stop in ends)] == [*(start for start, _ in ends), parameters]
    sizes = [layout.words_in(chunk) for chunk in range(layout.chunks)]
    assert [layout.byte_offset(chunk) for chunk in range(layout.chunks)] == [
        8 * sum(sizes[:at]) for at in range(len(sizes))
    ]
    assert (sum(sizes), layout.bytes) == (layout.words, 8 * layout.words)
    assert max(sizes) <= chunk_words


# --- tail words -------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 1, exclude_min=True), st.floats(-1e6, 1e6)), min_size=3, max_size=5))
def test_tail_sums_come_out_as_the_fixed_point_sums(members):
    plan = plan_of([(8, 1.0)])
    total = np.zeros(plan.tail_words, np.uint64)
    for alpha, loss in members:
        metrics = {"loss": loss, "correct": 3.0}
        add_into(total, pack_tail(plan, fixed_alpha=fixed_weight(alpha), metrics=metrics, groups=()))
    tail = read_tail(plan, total, survivors=len(members), groups=())
    assert tail.count == len(members)
    assert tail.weight == sum(fixed_weight(alpha) for alpha, _ in members) / 2**30
    assert tail.metrics["correct"] == 3 * len(members)
    assert abs(tail.metrics["loss"] - sum(loss for _, loss in members)) <= len(members) * 2**-20


def test_an_impossible_tail_is_refused():
    plan = plan_of([(8, 1.0)])
    good = pack_tail(plan, fixed_alpha=2**30, metrics={"loss": 1.0, "correct": 1.0}, groups=()) * np.uint64(3)
    assert read_tail(plan, good, survivors=3, groups=()).weight == 3.0
    for word, value in ((1, 4), (0, 0), (0, 3 * 2**30 + 1)):
        bad = good.copy()
        bad[word] = value
        with pytest.raises(AggregationFailed):
            read_tail(plan, bad, survivors=3, groups=())


@pytest.mark.parametrize(
    "metrics",
    [
        {"loss": 1.0},
        {"loss": 1.0, "correct": 1.0, "more": 1.0},
        {"loss": float("nan"), "correct": 1.0},
        {"loss": float("inf"), "correct": 1.0},
        {"loss": 2.0**42, "correct": 1.0},
    ],
)
def test_metrics_that_are_not_the_plans_or_do_not_fit_are_refused(metrics):
    with pytest.raises(InvalidArgument):
        pack_tail(plan_of([(8, 1.0)]), fixed_alpha=1, metrics=metrics, groups=())


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.01, float("nan")])
def test_a_weight_outside_its_range_is_refused(alpha):
    with pytest.raises(InvalidArgument):
        fixed_weight(alpha)
