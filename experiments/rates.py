"""Which learning rate an arm gets: the best by validation records, of a grid and, at its edge, beyond it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

STEP: Final = 2.0
MOST_STEPS: Final = 2


@dataclass(frozen=True, slots=True, order=True)
class Rates:
    """Learning rates of a federated arm: the first round's, and how it goes on ("constant" or "cosine")."""

    first: float
    schedule: str


@dataclass(frozen=True, slots=True)
class ChosenRates:
    """By arm: rates of those that train in one place, and of the federated methods."""

    local: dict[str, float]
    federated: dict[str, Rates]


Rate = TypeVar("Rate", float, Rates)


def searched(grid: Sequence[float], loss_at: Callable[[float], float]) -> dict[float, float]:
    """Losses by rate, smallest first: of the grid, and of up to two beyond the edge at which the best one lies."""
    losses = {rate: loss_at(rate) for rate in grid}
    for _ in range(MOST_STEPS):
        best = best_rate(losses)
        if best == max(losses):
            losses[best * STEP] = loss_at(best * STEP)
        elif best == min(losses):
            losses[best / STEP] = loss_at(best / STEP)
        else:
            break
    return dict(sorted(losses.items()))


def searched_with_schedules(
    grid: Sequence[float], schedules: Sequence[str], loss_at: Callable[[Rates], float]
) -> dict[Rates, float]:
    """Losses by rates: with the first schedule those of the grid, with each other one from its best on.

    A search by coordinates: the rate that a run begins with may be as large as before, or larger, where it falls.
    """
    first, *others = schedules

    def at(schedule: str, rate: float) -> float:
        return loss_at(Rates(rate, schedule))

    found = {Rates(rate, first): loss for rate, loss in searched(grid, partial(at, first)).items()}
    best = best_rate(found).first
    for schedule in others:
        near = searched((best, best * STEP), partial(at, schedule))
        found |= {Rates(rate, schedule): loss for rate, loss in near.items()}
    return found


def best_rate(losses: Mapping[Rate, float]) -> Rate:
    """The learning rate with the lowest validation loss; of equals the smaller."""
    return min(losses, key=lambda rate: (losses[rate], rate))
