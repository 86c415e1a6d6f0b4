"""Rounds that take turns at what they send: each has its own vector, by its number alone, and so do all who sum it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from common.errors import ShapeMismatch
from common.secagg import (
    ClipSlot,
    Packer,
    RoundKind,
    SecaggPlan,
    TailSums,
    decode_chunk,
    fixed_weight,
)
from tests.unit.secagg.federation import Round, make_plan, set_up

LONG, SHORT = (ClipSlot(150, 0.5), ClipSlot(50, 0.01)), (ClipSlot(70, 0.25),)
PLAN = replace(make_plan(4, rounds=4, metrics=("loss",)), vectors=(SHORT, LONG), schedule=(1, 0, 0))
SIZES = {1: 200, 2: 70, 3: 70, 4: 200}


def test_a_rounds_number_alone_says_what_it_carries():
    assert {number: PLAN.layout(RoundKind.TRAINING, number).parameters for number in SIZES} == SIZES
    assert PLAN.slots_of(7) == PLAN.slots_of(1) == LONG
    assert PLAN.layout(RoundKind.EVALUATION, 1) == PLAN.layout(RoundKind.EVALUATION, 2)


def test_turns_are_in_the_plans_encoding_and_so_in_every_key_and_mask():
    assert SecaggPlan.decode(PLAN.encode()) == PLAN
    others = (replace(PLAN, schedule=(0, 1, 0)), replace(PLAN, schedule=(1, 0)), replace(PLAN, vectors=(LONG, SHORT)))
    assert len({PLAN.encode(), *(other.encode() for other in others)}) == 4


def test_rounds_of_one_epoch_sum_vectors_of_their_own_lengths_and_clips():
    epoch = set_up(PLAN, 4)
    generator = np.random.default_rng(3)
    for number, size in SIZES.items():
        round_ = Round.start(epoch, number=number)
        layout = round_.context.layout
        assert layout.parameters == size
        clips = np.concatenate([np.full(slot.size, slot.clip) for slot in PLAN.slots_of(number)])
        updates = [(generator.uniform(-1, 1, size) * clips).astype(np.float32) for _ in range(4)]
        for index, values in enumerate(updates):
            packer = Packer(PLAN, round_=number, alpha=1.0, rounding_key=bytes([index]) * 32)
            chunks = [
                packer.pack_chunk(at, values[slice(*layout.parameters_in(at))])[0] for at in range(layout.lane_chunks)
            ]
            chunks.append(round_.masking(index).pack_tail(fixed_alpha=fixed_weight(1.0), metrics={"loss": 0.0}))
            round_.mask(index, chunks)
            round_.hand_in(index)
        total = round_.open((0, 1, 2, 3), round_.fast_close(range(4)))
        tail = TailSums(4, 4.0, {})
        mean = np.concatenate(
            [decode_chunk(PLAN, at, words, tail, round_=number) for at, words in enumerate(total[:-1])]
        )
        assert np.all(np.abs(mean - np.mean(updates, axis=0)) <= clips / PLAN.lane_limit * 1.001)


def test_another_rounds_vector_does_not_fit_a_rounds_chunks():
    packer = Packer(PLAN, round_=1, alpha=1.0, rounding_key=bytes(32))
    short = PLAN.layout(RoundKind.TRAINING, 2)
    last = short.lane_chunks - 1
    with pytest.raises(ShapeMismatch):
        packer.pack_chunk(last, np.zeros(short.parameters_in(last)[1] - short.parameters_in(last)[0], np.float32))
    with pytest.raises(ShapeMismatch):
        decode_chunk(PLAN, last, np.zeros(short.words_in(last), np.uint64), TailSums(3, 1.0, {}), round_=1)
