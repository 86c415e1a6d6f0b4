from __future__ import annotations

from collections import Counter
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from participant.training.batches import batches, passes_of, share_of

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=80)


@given(lengths=LENGTHS, size=st.integers(1, 9), seed=st.integers(0, 2**40))
def test_every_record_comes_once_before_any_comes_a_third_time(lengths, size, seed):
    order = batches(lengths, [1.0] * len(lengths), batch_size=size, seed=seed)
    drawn: Counter[int] = Counter()
    steps = 2 * len(lengths) // min(size, len(lengths)) + 1
    for batch in islice(order, steps):
        assert len(batch) == min(size, len(lengths))
        drawn.update(batch)
    assert len(drawn) == len(lengths)
    assert max(drawn.values()) <= 3


@given(lengths=LENGTHS, size=st.integers(1, 9), seed=st.integers(0, 2**40), start=st.integers(0, 30))
def test_the_same_seed_gives_the_same_order_from_any_step_on(lengths, size, seed, start):
    weights = [1.0 + index % 3 for index in range(len(lengths))]
    whole = list(islice(batches(lengths, weights, batch_size=size, seed=seed), start + 10))
    assert list(islice(batches(lengths, weights, batch_size=size, seed=seed), start, start + 10)) == whole[start:]


def test_another_seed_gives_another_order():
    first, second = (next(batches([5] * 100, [1.0] * 100, batch_size=20, seed=seed)) for seed in (1, 2))
    assert first != second


def test_records_of_like_length_share_a_batch():
    lengths = [10 if index % 2 else 100 for index in range(320)]
    mixed = [
        batch
        for batch in islice(batches(lengths, [1.0] * 320, batch_size=8, seed=3), 40)
        if len({lengths[index] for index in batch}) > 1
    ]
    assert len(mixed) <= 3  # one at most for each group of 16 batches


def test_a_heavier_record_is_drawn_in_proportion():
    drawn: Counter[int] = Counter()
    for batch in islice(batches([5] * 10, [3.0] + [1.0] * 9, batch_size=4, seed=5), 3000):
        drawn.update(batch)
    assert 2.8 < drawn[0] / (sum(drawn[index] for index in range(1, 10)) / 9) < 3.2


@given(records=st.integers(0, 60), processes=st.integers(1, 9), size=st.integers(1, 9))
def test_every_record_of_a_step_is_in_one_processes_share_and_no_share_is_two_larger(records, processes, size):
    shares = [share_of(records, rank=rank, processes=processes) for rank in range(processes)]
    assert sorted(place for share in shares for place in share) == list(range(records))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1
    passes = passes_of(records, processes=processes, micro_batch_size=size)
    assert passes * size >= max(lengths) > (passes - 1) * size or records == passes == 0


@given(records=st.integers(0, 60), size=st.integers(1, 9))
def test_one_process_takes_all_records_of_a_step_in_their_order(records, size):
    assert list(share_of(records, rank=0, processes=1)) == list(range(records))
