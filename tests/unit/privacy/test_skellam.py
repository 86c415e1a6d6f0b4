"""Skellam noise: shares add up to the plan's variance, epsilon is the formula's, and no sum wraps around."""

from __future__ import annotations

import math
import secrets

import numpy as np
import pytest

from common.errors import InvalidArgument
from common.privacy import LARGEST_PARTS, MOST_MULTIPLIER, LargestPart, MetricNoise, largest_part
from common.secagg import MetricGroup
from common.secagg.packing import METRIC_BITS
from participant.privacy.skellam import (
    STEPS,
    figures_epsilon,
    release_curve,
    renyi_bound,
    sensitivity,
    skellam,
    touched_parts,
    with_noise,
)

GROUPS = (
    MetricGroup("held_out", ("heldout_loss", "heldout_tokens")),
    MetricGroup("classification", ("classification_correct", "classification_total")),
    MetricGroup("ner", ("span_true_positives", "span_false_positives", "span_false_negatives")),
)
WORDS = [word for group in GROUPS for word in group.words]
NOISE = MetricNoise(10.0, tuple(LargestPart(word, LARGEST_PARTS[word]) for word in WORDS))


def test_the_sum_of_the_honest_shares_has_the_plans_variance():
    honest, variance = 3, 400.0
    shares = [skellam(1_000_000, variance=variance / honest, random_bytes=secrets.token_bytes) for _ in range(honest)]
    total = np.sum(shares, axis=0, dtype=np.int64)
    # The standard error of the variance of a million draws is 0.14 %: 1 % is seven of them.
    assert total.var() == pytest.approx(variance, rel=0.01)
    assert abs(total.mean()) < 6 * math.sqrt(variance / 1_000_000)


def test_large_variances_come_out_as_well():
    """The largest that a plan can ask for: its Poisson numbers are beyond 10**10."""
    drawn = skellam(200_000, variance=2.0**40, random_bytes=secrets.token_bytes).astype(np.float64)
    assert drawn.var() == pytest.approx(2.0**40, rel=0.03)
    assert np.mean((drawn / 2.0**20) ** 4) == pytest.approx(3.0, rel=0.06)
    assert len(np.unique(np.mod(drawn, 64))) == 64


@pytest.mark.parametrize("variance", [0.0, -1.0, float("nan"), 2.0**41])
def test_a_variance_that_cannot_be_drawn_exactly_enough_is_refused(variance):
    with pytest.raises(InvalidArgument):
        skellam(1, variance=variance, random_bytes=secrets.token_bytes)


def test_every_plans_largest_noise_can_be_drawn_and_never_wraps_around():
    """A thousand members with the largest noise, sixteen deviations out, are far from a word's end."""
    largest = max(sensitivity(most) for most in LARGEST_PARTS.values())
    deviation = MOST_MULTIPLIER * largest
    assert deviation**2 <= 2.0**40
    rows = 10_000_000 * max(LARGEST_PARTS.values())
    word = (rows + 16 * deviation / STEPS) * (1 << METRIC_BITS)
    assert word < 2**63 / 1000


def test_the_bound_is_that_of_the_paper():
    assert renyi_bound(2.0, l2=1.0, l1=1.0, variance=100.0) == pytest.approx(
        2 / 200 + min((3 + 6) / (4 * 100.0**2), 3 / 200)
    )
    # With little noise the other part of the minimum is the smaller one.
    assert renyi_bound(8.0, l2=2.0, l1=3.0, variance=0.5) == pytest.approx(8 * 4 / 1.0 + min((15 * 4 + 18) / 1.0, 9.0))
    assert renyi_bound(1.5, l2=1.0, l1=1.0, variance=9.0) == renyi_bound(2.0, l2=1.0, l1=1.0, variance=9.0)


def test_epsilon_falls_with_noise_and_grows_with_rounds_to_that_of_gaussian_noise():
    parts = touched_parts(NOISE, GROUPS)
    once = figures_epsilon(10.0, parts, releases=1, delta=1e-5)
    assert (
        figures_epsilon(20.0, parts, releases=1, delta=1e-5)
        < once
        < figures_epsilon(10.0, parts, releases=4, delta=1e-5)
    )
    # Five words, each moved by one deviation in ten: rho = 5 / (2 * 100) of zero-concentrated privacy, to a good part.
    rho = len(parts) / (2 * 10.0**2)
    assert once == pytest.approx(rho + 2 * math.sqrt(rho * math.log(1e5)), rel=0.2)


def test_a_record_counts_in_the_words_of_one_task_and_one_domain_alone():
    assert sorted(touched_parts(NOISE, GROUPS)) == sorted([6 * 64 + 1, 65, *[8 * 64 + 1] * 3])
    domains = (
        MetricGroup("law/records", ("law/records",)),
        MetricGroup("law/ner", ("law/ner/rows", "law/ner/loss")),
        MetricGroup("law/ner/score", ("law/ner/true_positives",)),
        MetricGroup("art/classification", ("art/classification/rows",)),
    )
    words = [word for group in domains for word in group.words if largest_part(word) is not None]
    noise = MetricNoise(1.0, tuple(LargestPart(word, largest_part(word) or 0.0) for word in words))
    assert "law/records" not in words
    assert sorted(touched_parts(noise, domains)) == sorted([65, 6 * 64 + 1, 8 * 64 + 1])


def test_words_of_the_plan_get_noise_and_the_others_keep_their_value():
    metrics = dict.fromkeys(WORDS, 100.0) | {"train_records": 17.0}
    noisy = with_noise(metrics, NOISE, honest=2, random_bytes=secrets.token_bytes)
    assert noisy["train_records"] == 17.0
    assert all(noisy[word] * STEPS == int(noisy[word] * STEPS) for word in WORDS)
    assert sum(noisy[word] != 100.0 for word in WORDS) >= len(WORDS) - 2


def test_shares_of_as_many_members_as_are_counted_on_make_the_plans_noise():
    word = "heldout_tokens"
    metrics = {word: 0.0}
    noise = MetricNoise(10.0, (LargestPart(word, 1.0),))
    sums = [
        sum(with_noise(metrics, noise, honest=4, random_bytes=secrets.token_bytes)[word] for _ in range(4))
        for _ in range(3000)
    ]
    # 3000 sums: a standard error of the deviation of 1.3 %.
    assert np.std(sums) == pytest.approx(10.0 * sensitivity(1.0) / STEPS, rel=0.1)


def test_rounds_figures_add_up():
    parts = (65, 65)
    assert np.allclose(2 * release_curve(5.0, parts), release_curve(5.0, parts) + release_curve(5.0, parts))
    assert not release_curve(5.0, ()).any()
