"""Comparisons of two models on the same records."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.statistics import DomainLosses, gap_closed, macro, paired_difference, spread, worst


def losses(nats, tokens=None):
    return DomainLosses(np.asarray(nats, dtype=float), np.asarray(tokens or [1] * len(nats), dtype=float))


def test_a_domain_counts_as_one_however_many_records_it_has():
    found = {"large": losses([1.0] * 98), "small": losses([3.0, 3.0])}

    assert macro(found) == pytest.approx(2.0)
    assert worst(found) == ("small", 3.0)


def test_a_long_answer_counts_by_its_tokens():
    assert losses([6.0, 1.0], [3, 1]).mean == pytest.approx(7 / 4)


def test_a_model_that_is_better_on_every_record_is_better():
    generator = np.random.default_rng(1)
    hard = generator.uniform(1.0, 9.0, 60)  # records differ far more than the models do: only pairing shows it
    better, other = {"d": losses(hard - 0.1)}, {"d": losses(hard)}

    found = paired_difference(better, other, resamples=500, seed=3)

    assert found.is_better
    assert (found.mean, found.low, found.high) == pytest.approx((-0.1, -0.1, -0.1))


def test_a_model_that_is_better_by_chance_alone_is_not_called_better():
    generator = np.random.default_rng(2)
    one, other = generator.normal(2.0, 1.0, 40), generator.normal(2.0, 1.0, 40)

    found = paired_difference({"d": losses(one)}, {"d": losses(other)}, resamples=500, seed=3)

    assert found.low < 0 < found.high
    assert not found.is_better


def test_an_interval_covers_the_true_difference_about_as_often_as_it_says():
    generator = np.random.default_rng(5)
    covered = 0
    for trial in range(120):
        base = generator.normal(3.0, 1.0, 50)
        found = paired_difference(
            {"d": losses(base + generator.normal(0.2, 0.5, 50))}, {"d": losses(base)}, resamples=300, seed=trial
        )
        covered += found.low <= 0.2 <= found.high

    assert 0.86 <= covered / 120 <= 1.0


def test_models_of_different_records_are_not_compared():
    with pytest.raises(ValueError, match="same records"):
        paired_difference({"d": losses([1.0])}, {"d": losses([1.0, 2.0])}, resamples=10, seed=0)
    with pytest.raises(ValueError, match="same records"):
        paired_difference({"d": losses([1.0])}, {"e": losses([1.0])}, resamples=10, seed=0)


@given(st.floats(0.1, 9), st.floats(0.1, 9), st.floats(0.1, 9))
def test_the_gap_is_closed_by_none_as_alone_and_all_as_central(alone, federated, central):
    if alone <= central:
        assert gap_closed(alone=alone, federated=federated, central=central) is None
        return
    assert gap_closed(alone=alone, federated=alone, central=central) == pytest.approx(0.0)
    assert gap_closed(alone=alone, federated=central, central=central) == pytest.approx(1.0)


def test_a_single_seed_has_no_spread():
    assert spread([2.0]) == (2.0, 0.0)
    assert spread([1.0, 3.0]) == pytest.approx((2.0, 2.0**0.5))
