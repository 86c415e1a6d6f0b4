"""Epsilon is dp-accounting's, and the published noise levels come out again."""

from __future__ import annotations

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from common.errors import InvalidArgument
from participant.privacy.accounting import PrivateSteps, epsilon_of, noise_multiplier_for

# Records, records a step, steps, epsilon: noise multiplier, at delta = 1 / (10 records); calculated beforehand.
KNOWN = {
    (500, 32, 150, 2): 1.69,
    (500, 32, 150, 4): 1.11,
    (500, 32, 150, 8): 0.81,
    (2000, 64, 300, 2): 1.38,
    (2000, 64, 300, 4): 0.97,
    (2000, 64, 300, 8): 0.72,
    (10000, 64, 300, 2): 0.81,
    (10000, 64, 300, 4): 0.64,
    (10000, 64, 300, 8): 0.52,
    (10000, 256, 300, 2): 1.28,
    (10000, 256, 300, 4): 0.92,
    (10000, 256, 300, 8): 0.70,
}


@pytest.mark.parametrize("case", KNOWN, ids=str)
def test_epsilon_of_known_noise_is_that_of_dp_accounting(case):
    records, batch, steps, wanted = case
    rate, delta, noise = batch / records, 1 / (10 * records), KNOWN[case]
    event = SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps)
    found = epsilon_of([PrivateSteps(rate, noise, steps)], delta=delta)
    assert found == pytest.approx(RdpAccountant().compose(event).get_epsilon(delta), rel=0.01)
    # The table rounds its noise: upwards where it was coarse.
    assert 0.85 * wanted < found <= 1.01 * wanted


@pytest.mark.parametrize("case", KNOWN, ids=str)
def test_noise_for_a_known_epsilon_keeps_it_and_is_no_more_than_known(case):
    records, batch, steps, epsilon = case
    rate, delta = batch / records, 1 / (10 * records)
    noise = noise_multiplier_for(epsilon=epsilon, delta=delta, sample_rate=rate, steps=steps)
    assert KNOWN[case] * 0.95 < noise <= KNOWN[case] + 0.005
    assert 0.99 * epsilon < epsilon_of([PrivateSteps(rate, noise, steps)], delta=delta) <= epsilon


def test_epsilon_is_an_upper_bound_of_the_tightest_accountants():
    event = SelfComposedDpEvent(PoissonSampledDpEvent(0.032, GaussianDpEvent(0.97)), 300)
    tight = PLDAccountant().compose(event).get_epsilon(5e-5)
    found = epsilon_of([PrivateSteps(0.032, 0.97, 300)], delta=5e-5)
    assert tight < found < 1.2 * tight


def test_runs_compose_to_less_than_their_sum_and_more_than_each():
    first, second = PrivateSteps(0.05, 1.0, 100), PrivateSteps(0.02, 0.8, 50)
    one, other = (epsilon_of([steps], delta=1e-5) for steps in (first, second))
    together = epsilon_of([first, second], delta=1e-5)
    assert max(one, other) < together < one + other
    assert epsilon_of([first, first], delta=1e-5) == pytest.approx(
        epsilon_of([PrivateSteps(0.05, 1.0, 200)], delta=1e-5)
    )


def test_nothing_spent_is_epsilon_nothing():
    assert epsilon_of([], delta=1e-5) == 0.0


def test_noise_for_the_rest_of_a_run_counts_what_is_spent():
    spent = [PrivateSteps(0.05, 1.2, 40)]
    noise = noise_multiplier_for(epsilon=3.0, delta=1e-5, sample_rate=0.05, steps=60, spent=spent)
    assert noise > noise_multiplier_for(epsilon=3.0, delta=1e-5, sample_rate=0.05, steps=60)
    assert epsilon_of([*spent, PrivateSteps(0.05, noise, 60)], delta=1e-5) <= 3.0


def test_no_noise_makes_up_for_an_epsilon_that_is_spent():
    with pytest.raises(InvalidArgument, match="is spent"):
        noise_multiplier_for(epsilon=0.5, delta=1e-5, sample_rate=0.5, steps=1, spent=[PrivateSteps(0.5, 0.6, 100)])
