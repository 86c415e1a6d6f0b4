"""Streams, shares, encodings and states: each part by itself, and the structure of a masked update."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import AggregationFailed, MalformedMessage, PlanInvalid, ProtocolViolation, ShapeMismatch
from common.secagg import (
    Advertisement,
    Advertising,
    Bound,
    ClipSlot,
    Commit,
    Dealt,
    Deposit,
    EpochKeys,
    KeyEpoch,
    Masked,
    Masking,
    MetricGroup,
    Ready,
    Receipt,
    Reveal,
    Revealed,
    RoundKind,
    SealedShare,
    SecaggPlan,
    Signed,
    Start,
    StreamSum,
    graph,
    prg,
    shamir,
)
from common.secagg.prg import keystream_by_counter
from common.secagg.ring import VectorLayout
from tests.unit.secagg.federation import Round, advertise, deal, make_plan, random_chunks, set_up

LAYOUT = VectorLayout(parameters=1000, lanes=4, tail_words=5, chunk_words=64)


def stream(seed: bytes, chunk: int, layout: VectorLayout = LAYOUT) -> np.ndarray:
    """The stream by its definition, not by the code that adds it."""
    return np.frombuffer(keystream_by_counter(seed, chunk, 8 * layout.words_in(chunk)), dtype="<u8")


# --- streams ----------------------------------------------------------------------------------------------------


@given(st.binary(min_size=32, max_size=32), st.integers(0, 4))
def test_streams_are_those_of_aes_counter_mode_at_any_chunk_in_any_order(seed, chunk):
    words = np.zeros(LAYOUT.words_in(chunk), dtype=np.uint64)
    streams = StreamSum(LAYOUT, plus=[seed], minus=[])
    streams.add_into(LAYOUT.tail_chunk, np.zeros(LAYOUT.tail_words, dtype=np.uint64))
    streams.add_into(chunk, words)
    np.testing.assert_array_equal(words, stream(seed, chunk))


def test_a_stream_added_and_the_same_stream_subtracted_leave_nothing():
    seeds = [bytes([i]) * 32 for i in range(3)]
    words = np.arange(64, dtype=np.uint64)
    StreamSum(LAYOUT, plus=seeds, minus=[]).add_into(1, words)
    assert not np.array_equal(words, np.arange(64))
    StreamSum(LAYOUT, plus=[], minus=seeds).copy().add_into(1, words)
    np.testing.assert_array_equal(words, np.arange(64))


def test_chunks_of_the_wrong_size_or_outside_are_refused():
    streams = StreamSum(LAYOUT, plus=[bytes(32)], minus=[])
    wrong: list[tuple[int, Any]] = [
        (0, np.zeros(63, np.uint64)),
        (0, np.zeros(64, np.int64)),
        (5, np.zeros(5, np.uint64)),
        (-1, np.zeros(5, np.uint64)),
    ]
    for chunk, words in wrong:
        with pytest.raises(ShapeMismatch):
            streams.add_into(chunk, words)


def test_a_masked_update_is_the_update_and_exactly_one_stream_for_each_partner_and_itself():
    """Given all seeds but one, upload minus known masks minus plain words is that one stream, whichever it is."""
    epoch = set_up(make_plan(4, parameters=200), 4)
    round_ = Round.start(epoch)
    layout = round_.context.layout
    for index in range(4):
        masking = round_.masking(index)
        plain = random_chunks(round_.context, index)
        round_.mask(index, plain)
        signed = [(1, masking.self_seed)]
        signed += [(1 if index < other else -1, seed) for other, seed in masking.pair_seeds.items()]
        assert len(signed) == len({seed for _, seed in signed}) == 4
        for missing in range(len(signed)):
            for chunk, masked in enumerate(round_.uploads[index]):
                rest = masked - plain[chunk]
                for at, (sign, seed) in enumerate(signed):
                    if at != missing:
                        rest = rest - stream(seed, chunk, layout) if sign > 0 else rest + stream(seed, chunk, layout)
                sign, seed = signed[missing]
                expected = stream(seed, chunk, layout)
                np.testing.assert_array_equal(rest if sign > 0 else np.uint64(0) - rest, expected)


def test_both_ends_of_a_pair_have_one_seed_and_no_two_pairs_or_rounds_share_any():
    epoch = set_up(make_plan(5, rounds=2), 5)
    seen: set[bytes] = set()
    for number in (1, 2):
        round_ = Round.start(epoch, number=number)
        for one, other in combinations(range(5), 2):
            assert round_.masking(one).pair_seeds[other] == round_.masking(other).pair_seeds[one]
        seeds = {
            seed for i in range(5) for seed in (*round_.masking(i).pair_seeds.values(), round_.masking(i).self_seed)
        }
        assert len(seeds) == 10 + 5
        assert not seeds & seen
        seen |= seeds


@given(st.integers(2, 40))
def test_neighbourhood_is_symmetric_and_holders_are_neighbours_and_oneself(members):
    complete = graph.complete(members)
    for index in range(members):
        around = complete.neighbours(index)
        assert list(around) == sorted(set(around))
        assert index not in around
        assert all(index in complete.neighbours(other) for other in around)
        assert set(complete.holders(index)) == {*around, index}


# --- shares -----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.one_of(st.binary(min_size=32, max_size=32), st.sampled_from([bytes(32), b"\xff" * 32])),
    st.integers(1, 7),
    st.integers(0, 5),
    st.integers(0, 2**32),
)
def test_any_threshold_of_shares_gives_the_secret(secret, threshold, spare, seed):
    source = random.Random(seed)
    points = tuple(source.sample(range(1, 200), threshold + spare))
    shares = shamir.split(secret, points, source.randbytes(48 * (threshold - 1)))
    chosen = source.sample(range(len(points)), threshold)
    assert shamir.combine(tuple(points[i] for i in chosen), [shares[i] for i in chosen]) == secret


def test_fewer_shares_than_the_threshold_fit_every_secret():
    """For any other secret there is a polynomial through the same t - 1 shares: they tell nothing."""
    source = random.Random(5)
    secret, other = source.randbytes(32), source.randbytes(32)
    shares = shamir.split(secret, (1, 2, 3), source.randbytes(96))
    # Interpolate the polynomial through (0, other), (1, s1), (2, s2) at 3, by a third way: solving for it.
    prime, (s1, s2) = shamir.PRIME, (int.from_bytes(share, "big") for share in shares[:2])
    zero = int.from_bytes(other, "big")
    at_three = (zero - 3 * s1 + 3 * s2) % prime
    assert shamir.combine((1, 2, 3), [*shares[:2], at_three.to_bytes(33, "big")]) == other


def test_shares_of_too_few_or_off_the_polynomial_give_another_secret_or_none():
    source = random.Random(6)
    secret = source.randbytes(32)
    shares = shamir.split(secret, (1, 2, 3), source.randbytes(96))
    assert shamir.combine((1, 2), shares[:2]) != secret
    big = (2**256 + 5).to_bytes(33, "big")
    with pytest.raises(AggregationFailed):
        shamir.combine((1,), [big])
    for bad in (shamir.PRIME.to_bytes(33, "big"), bytes(32), b"\xff" * 33):
        with pytest.raises(ProtocolViolation):
            shamir.check_share(bad)


def test_the_prime_is_the_smallest_above_two_to_the_256():
    def is_probably_prime(n: int) -> bool:
        return all(pow(base, n - 1, n) == 1 for base in (2, 3, 5, 7, 11, 13))

    assert is_probably_prime(shamir.PRIME)
    assert not any(is_probably_prime(2**256 + k) for k in range(1, 297))


# --- encodings --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoded():
    """One real encoded value of every message and state, by its class."""
    plan = make_plan(4, groups=(MetricGroup("ner", ("hits", "misses")), MetricGroup("held_out", ("tokens_judged",))))
    epoch = KeyEpoch(plan, 0, 1)
    declared = {0: ("ner", "held_out"), 2: ("held_out",)}
    advertising = next(iter(advertise(epoch, 4, declared=declared).values()))
    _, dealt = deal(epoch, 4, declared=declared)
    ready_epoch = set_up(plan, 4, declared=declared)
    round_ = Round.start(ready_epoch)
    start = round_.context.start
    masking = round_.masking(0)
    for i in range(4):
        round_.mask(i, random_chunks(round_.context, i))
        round_.hand_in(i)
    masked = round_.masked(0)
    survivors = (0, 1, 2, 3)
    bound = masked.bind(survivors, round_.receipts_of(survivors))
    revealed = masked.accept_fast_close(round_.receipts_of(survivors))
    deposit = Deposit.decode(dealt[0].message)
    body = lambda message: Signed.decode(message).body  # noqa: E731
    messages = {
        SecaggPlan: plan.encode(),
        KeyEpoch: epoch.encode(),
        Signed: advertising.message,
        Advertisement: body(advertising.message),
        Deposit: dealt[0].message,
        SealedShare: body(deposit.envelopes[1]),
        Ready: body(ready_epoch.keys[0].message),
        Start: start.encode(),
        Receipt: body(masked.message),
        Commit: body(bound.message),
        Reveal: body(revealed.message),
    }
    states = {
        Advertising: advertising.to_bytes(),
        Dealt: dealt[0].to_bytes(),
        EpochKeys: ready_epoch.keys[0].to_bytes(),
        Masking: masking.to_bytes(),
        Masked: masked.to_bytes(),
        Bound: bound.to_bytes(),
        Revealed: revealed.to_bytes(),
    }
    return messages, states


def parsers(encoded):
    messages, states = encoded
    return [
        *((kind.decode, lambda value: value.encode(), data) for kind, data in messages.items()),
        *((kind.from_bytes, lambda value: value.to_bytes(), data) for kind, data in states.items()),
    ]


def test_every_message_and_state_survives_its_encoding(encoded):
    assert len(parsers(encoded)) == 18
    for parse, write, data in parsers(encoded):
        value = parse(data)
        assert write(value) == data
        assert parse(write(value)) == value


def test_trailing_missing_and_foreign_bytes_are_malformed(encoded):
    for parse, _, data in parsers(encoded):
        others = [data + b"\0", data[:-1], b"", data[:6], b"XSA0" + data[4:], data[:4] + b"\1" + data[5:]]
        others.append(data[:5] + b"\xff\xff" + data[7:])
        for bad in others:
            with pytest.raises(MalformedMessage):
                parse(bad)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 17), st.integers(0, 10**6), st.integers(1, 255), st.booleans())
def test_damaged_bytes_raise_a_typed_error_or_are_another_value_and_never_anything_else(encoded, which, at, bits, cut):
    parse, write, data = parsers(encoded)[which]
    at %= len(data)
    bad = data[:at] if cut else data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]
    try:
        value = parse(bad)
    except (ProtocolViolation, PlanInvalid):
        return
    assert write(value) == bad


def test_lengths_over_their_limit_are_refused_before_anything_is_read():
    start = Round.start(set_up(make_plan(3), 3)).context.start.encode()
    with pytest.raises(MalformedMessage, match="limit"):
        Start.decode(start[: 7 + 64 + 5] + (2**31).to_bytes(4, "big") + start[7 + 64 + 9 :])


def test_an_unknown_round_kind_is_refused():
    start = Round.start(set_up(make_plan(3), 3)).context.start
    data = bytearray(start.encode())
    data[7 + 64 + 4] = 9
    with pytest.raises(MalformedMessage, match="kind 9"):
        Start.decode(bytes(data))
    assert start.kind is RoundKind.TRAINING


@pytest.mark.parametrize(
    "change",
    [
        {"members_floor": 2},
        {"vectors": ()},
        {"schedule": ()},
        {"schedule": (1,)},
        {"vectors": ((ClipSlot(3, 0.5),), (ClipSlot(2, 0.5),)), "schedule": (1, 1)},
        {"vectors": ((ClipSlot(3, 0.5),), (ClipSlot(2, 0.5),)), "schedule": (0, 1) * 33},
        {"vectors": ((ClipSlot(3, 0.5),), (ClipSlot(2**32, 0.5),)), "schedule": (0, 1)},
        {"vectors": ((ClipSlot(3, 0.5),), (ClipSlot(0, 0.5),)), "schedule": (0, 1)},
        {"members_limit": 2},
        {"plan_hash": b""},
        {"run_id": b""},
        {"rounds_per_epoch": 0},
        {"lanes": 9},
        {"lanes": 1},
        {"colluders": -1},
        {"chunk_words": 2},
        {"chunk_words": 2**20},
        {"metrics": ("loss", "loss")},
        {"metric_groups": (MetricGroup("one", ("loss",)),)},
        {"metric_groups": (MetricGroup("one", ("hits",)), MetricGroup("two", ("hits",)))},
        {"metric_groups": (MetricGroup("one", ("hits",)), MetricGroup("one", ("misses",)))},
        {"metric_groups": (MetricGroup("one", ()),)},
        {"metric_groups": (MetricGroup("", ("hits",)),)},
        {"metric_groups": tuple(MetricGroup(str(n), (f"word {n}",)) for n in range(513)), "chunk_words": 1024},
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(change):
    with pytest.raises(PlanInvalid):
        replace(make_plan(5), **change)


def test_more_streams_than_ciphers_are_kept_for_give_the_same_sum(monkeypatch):
    seeds = [hashlib.sha256(bytes([at])).digest() for at in range(9)]
    kept, fresh = np.zeros(LAYOUT.words_in(1), np.uint64), np.zeros(LAYOUT.words_in(1), np.uint64)
    StreamSum(LAYOUT, plus=seeds[:5], minus=seeds[5:]).add_into(1, kept)
    monkeypatch.setattr(prg, "MOST_CIPHERS", 8)
    streams = StreamSum(LAYOUT, plus=seeds[:5], minus=seeds[5:])
    for _ in range(2):
        fresh[:] = 0
        streams.copy().add_into(1, fresh)
        assert np.array_equal(fresh, kept)
    assert kept.any()
