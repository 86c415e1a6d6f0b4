"""The search of a learning rate: the best of a grid, and beyond its edge where the best lies there."""

import pytest

from experiments.rates import Rates, best_rate, searched, searched_with_schedules

GRID = (1e-3, 2e-3, 4e-3)


@pytest.mark.parametrize(
    ("lowest_at", "tried"),
    [
        (2e-3, GRID),
        (1e-3, (5e-4, *GRID)),
        (8e-3, (*GRID, 8e-3, 16e-3)),
        (1.0, (*GRID, 8e-3, 16e-3)),  # it has an end
        (1e-9, (2.5e-4, 5e-4, *GRID)),
    ],
)
def test_a_search_goes_on_beyond_the_edge_at_which_the_best_lies(lowest_at, tried):
    asked = []

    def loss_at(rate):
        asked.append(rate)
        return abs(rate - lowest_at)

    losses = searched(GRID, loss_at)
    assert tuple(losses) == pytest.approx(tried)
    assert sorted(asked) == pytest.approx(sorted(tried))  # each once
    assert best_rate(losses) == pytest.approx(min(tried, key=lambda rate: abs(rate - lowest_at)))


def test_of_equal_losses_the_smaller_rate_is_taken():
    assert best_rate({2e-3: 1.0, 1e-3: 1.0}) == 1e-3


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (Rates(2e-3, "constant"), (2e-3, 4e-3, 1e-3)),
        (Rates(4e-3, "cosine"), (2e-3, 4e-3, 8e-3)),
        (Rates(16e-3, "cosine"), (8e-3, 16e-3, 32e-3)),
    ],
)
def test_another_schedule_is_searched_from_the_best_of_the_first_on(best, tried):
    losses = searched_with_schedules(
        GRID,
        ("constant", "cosine"),
        lambda rates: abs(rates.first - best.first) + (rates.schedule != best.schedule) * 1e-3,
    )

    assert best_rate(losses) == best
    assert sorted(rates.first for rates in losses if rates.schedule == "cosine") == pytest.approx(sorted(tried))
