"""What must hold for any input: secrets below the threshold, masks that cancel, fair rounding that stays in lane."""

from __future__ import annotations

import hashlib
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import AggregationFailed, TooFewMembers
from common.secagg import Packer, RoundKind, TailSums, decode_chunk, hashing, open_masks, shamir
from common.secagg.prg import keystream_by_counter
from common.secagg.ring import lane_bits
from tests.unit.secagg import statistics
from tests.unit.secagg.federation import Round, make_plan, plain_sum, random_chunks, set_up

REJECTED = 1e-6


def finished_round(members: int, *, dropped: int):
    """A slow close with every reveal, checked."""
    round_ = Round.start(set_up(make_plan(members), members))
    for i in range(members - dropped):
        round_.mask(i, random_chunks(round_.context, i))
        round_.hand_in(i)
    _, survivors = round_.close()
    reveals = round_.slow_close(survivors, commit=range(members), reveal=range(members))
    return round_, survivors, round_.check_reveals(survivors, reveals)


# --- shares -----------------------------------------------------------------------------------------------------


def test_one_reveal_fewer_than_the_threshold_opens_no_secret():
    round_, survivors, checked = finished_round(5, dropped=1)
    few = checked[: round_.context.thresholds.shares - 1]
    with pytest.raises(TooFewMembers):
        open_masks(round_.context, round_.epoch.roster, survivors, few, round_.epoch.readies)
    offset, number = round_.context.round_offset, round_.context.start.round
    for owner, advertised in enumerate(round_.epoch.roster.advertisements):
        shares = {reveal.holder + 1: reveal.shares[owner] for reveal in few}
        try:
            key = shamir.combine(tuple(shares), list(shares.values()))
        except AggregationFailed:
            continue
        place = (advertised.epoch_hash, advertised.org_id, number, key)
        assert hashing.commit_self_key(*place) != advertised.self_commitments[offset]
        assert hashing.commit_escrow_key(*place) != advertised.escrow_commitments[offset]


def test_shares_of_the_two_secrets_have_nothing_in_common():
    """On one polynomial for both, their difference would be the same at every holder, and one kind opened the other."""
    epoch = set_up(make_plan(5), 5)
    for owner in range(5):
        differences = set()
        for holder in range(5):
            shares = epoch.keys[holder].shares[owner]
            one, other = (int.from_bytes(shares[at : at + 33], "big") for at in (0, 33))
            differences.add((one - other) % shamir.PRIME)
        assert len(differences) == 5


@pytest.mark.parametrize("threshold", [2, 3, 7])
@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32], ids=["zeros", "ones"])
def test_fewer_shares_than_the_threshold_are_uniform(threshold, secret):
    """Coefficients come from streams, as they do in dealing; chi-square over the top bits of t - 1 shares together."""
    points = tuple(range(1, threshold + 1))
    seen = np.zeros((threshold - 1, 256), np.int64)
    sums = np.zeros(256, np.int64)
    for trial in range(12_000):
        seed = hashlib.sha256(b"%d" % trial).digest()
        shares = shamir.split(secret, points, keystream_by_counter(seed, 0, 48 * (threshold - 1)))
        values = [int.from_bytes(share, "big") for share in shares[:-1]]
        for row, value in zip(seen, values, strict=True):
            row[value * 256 // shamir.PRIME] += 1
        sums[sum(value * (2 * at + 1) for at, value in enumerate(values)) % shamir.PRIME * 256 // shamir.PRIME] += 1
    assert min(statistics.chi_square(row) for row in (*seen, sums)) > REJECTED


# --- masks ------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(3, 8), st.integers(1, 300), st.sampled_from([2, 3, 4, 5]), st.integers(0, 2**16))
def test_pair_masks_cancel_and_leave_the_self_masks(members, parameters, lanes, seed):
    round_ = Round.start(set_up(make_plan(members, parameters=parameters, lanes=lanes), members, seed=seed))
    layout = round_.context.layout
    seeds = [round_.masking(i).self_seed for i in range(members)]
    inputs = [random_chunks(round_.context, seed + i) for i in range(members)]
    for i in range(members):
        round_.mask(i, inputs[i])
    for at, (masked, plain) in enumerate(zip(round_.sum(range(members)), plain_sum(inputs), strict=True)):
        streams = (
            np.frombuffer(keystream_by_counter(one, at, 8 * layout.words_in(at)), "<u8").astype(np.uint64)
            for one in seeds
        )
        np.testing.assert_array_equal(masked - plain, sum(streams, np.zeros_like(plain)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.data())
def test_a_chunk_masked_alone_is_that_chunk_of_the_whole(seed, data):
    """So a spool is made in any order, by any number of threads, and again from any chunk on."""
    round_ = shared_round()
    masking, layout = round_.masking(1), round_.context.layout
    plain = random_chunks(round_.context, seed)
    whole = [words.copy() for words in plain]
    masker = masking.masker()
    for at, words in enumerate(whole):
        masker.add_into(at, words)
    order = data.draw(st.permutations(range(layout.chunks)))
    again = masking.masker()
    for at in order[: data.draw(st.integers(1, layout.chunks))]:
        words = plain[at].copy()
        (again if at % 2 else again.copy()).add_into(at, words)
        np.testing.assert_array_equal(words, whole[at])


_ROUNDS: list[Round] = []


def shared_round() -> Round:
    """One for all examples: nothing of it changes."""
    if not _ROUNDS:
        _ROUNDS.append(Round.start(set_up(make_plan(4, parameters=500), 4)))
    return _ROUNDS[0]


# --- lanes ------------------------------------------------------------------------------------------------------


def lanes_of(words: np.ndarray, lanes: int) -> np.ndarray:
    bits = lane_bits(lanes)
    shifts = (np.arange(lanes, dtype=np.uint64) * np.uint64(bits))[:, None]
    return ((words[None, :] >> shifts) & np.uint64((1 << bits) - 1)).astype(np.int64).ravel()


@pytest.mark.parametrize(("members", "lanes"), [(10, 4), (100, 3), (3, 5), (1000, 2)])
def test_no_rounding_leaves_its_lane_at_the_clips_edge(members, lanes):
    """A sum in float32 rounds L + u up to L + 1 about once in ten thousand times."""
    count = 1 << 20
    plan = make_plan(members, parameters=count, lanes=lanes, chunk_words=131072)
    layout = plan.layout(RoundKind.TRAINING, 1)
    for sign, expected in ((1, 2 * plan.lane_limit), (-1, 0)):
        packer = Packer(plan, round_=1, alpha=1.0, rounding_key=bytes([1]) * 32)
        for at in range(layout.lane_chunks):
            first, last = layout.parameters_in(at)
            words, _ = packer.pack_chunk(at, np.full(last - first, sign * 0.5, np.float32))
            found = lanes_of(words, lanes)[: last - first]
            assert set(np.unique(found)) == {expected}


def test_the_mean_error_of_ten_million_roundings_is_zero():
    """z-test over 3 * 2**22 random values, in steps of the lanes."""
    count, parts = 1 << 22, 3
    plan = make_plan(10, parameters=count, clip=1.0, lanes=4, chunk_words=131072)
    layout, limit = plan.layout(RoundKind.TRAINING, 1), plan.lane_limit
    total, squares = 0.0, 0.0
    for part in range(parts):
        packer = Packer(plan, round_=1, alpha=1.0, rounding_key=bytes([part]) * 32)
        generator = np.random.default_rng(part)
        for at in range(layout.lane_chunks):
            first, last = layout.parameters_in(at)
            values = generator.uniform(-1, 1, last - first).astype(np.float32)
            words, _ = packer.pack_chunk(at, values)
            error = lanes_of(words, 4)[: last - first] - limit - values.astype(np.float64) * limit
            assert np.max(np.abs(error)) < 1
            total += float(error.sum())
            squares += float((error**2).sum())
    samples = parts * count
    assert samples >= 10**7
    assert abs(total) / math.sqrt(squares) < 5
    assert squares / samples <= 0.25


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 60), st.integers(0, 2**32))
def test_as_many_members_as_the_plan_allows_never_carry_wherever_they_are(members, seed):
    """Each lane of the sum is the sum of the lanes, at the edges and between."""
    source = random.Random(seed)
    lanes = source.choice([lanes for lanes in (2, 3, 4, 5) if 2 * members < 2 ** lane_bits(lanes)])
    plan = make_plan(members, parameters=3 * lanes, lanes=lanes)
    packed = []
    for member in range(members):
        values = np.array([source.choice((-9.0, -0.5, 0.1, 0.5, 9.0)) for _ in range(3 * lanes)], np.float32)
        words, _ = Packer(plan, round_=1, alpha=1.0, rounding_key=bytes([member]) * 32).pack_chunk(0, values)
        packed.append(words)
    (total,) = plain_sum([words] for words in packed)
    np.testing.assert_array_equal(lanes_of(total, lanes), np.sum([lanes_of(one, lanes) for one in packed], axis=0))
    mean = decode_chunk(plan, 0, total, TailSums(members, members, {}), round_=1)
    assert np.max(np.abs(mean)) <= 0.5 * (1 + 1e-6)
