"""Noise on metric words: Skellam noise, a share from every member, and what it proves (Agarwal, Kairouz and Liu, "The
Skellam Mechanism for Differentially Private Federated Learning", arXiv 2110.04995).

A word's sum is told in steps of 1/64. A member adds the difference of two Poisson numbers; such shares add up to one
Skellam number, whose variance is the sum of theirs. The bound counts the shares of honest members who survive alone:
who works with the coordinator can take its own share off again. Knows nothing of masks and rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from common.errors import InvalidArgument
from common.instructions import Task
from common.privacy import MetricNoise
from common.secagg import MetricGroup
from participant.privacy.accounting import ORDERS, Curve, epsilon_of_curve

STEPS: Final = 64  # in one unit of a metric word
_KEY_BYTES: Final = 16
_TASKS: Final = frozenset(task.value for task in Task)

RandomBytes = Callable[[int], bytes]


def sensitivity(most: float) -> int:
    """Steps by which one record can move a word, to which it adds at most `most`; rounding may add one."""
    return math.ceil(most * STEPS) + 1


def renyi_bound(order: float, *, l2: float, l1: float, variance: float) -> float:
    """Renyi divergence of `order` between Skellam sums of variance `variance` that are l2 (L2) and l1 (L1) apart.

    Theorem 3.5, for whole orders; divergences do not fall with the order, so the next whole one bounds the others.
    """
    whole = math.ceil(order)
    gaussian = whole * l2**2 / (2 * variance)
    rest = min(((2 * whole - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
    return gaussian + rest


def touched_parts(noise: MetricNoise, groups: Iterable[MetricGroup]) -> tuple[int, ...]:
    """Sensitivities, in steps, of the words that one held-out record can move, in the dearest case.

    A record has one task and one domain, so of the groups of tasks, and of domains' cells, one alone counts.
    """
    always: list[int] = []
    tasks: dict[str, list[int]] = {}
    cells: dict[tuple[str, ...], list[int]] = {}
    for group in groups:
        parts = [sensitivity(most) for word in group.words if (most := noise.most(word)) is not None]
        if group.name in _TASKS:
            tasks.setdefault(group.name, []).extend(parts)
        elif "/" in group.name:
            cells.setdefault(tuple(group.name.split("/")[:2]), []).extend(parts)
        else:
            always.extend(parts)
    return (*always, *max(tasks.values(), key=len, default=[]), *max(cells.values(), key=len, default=[]))


def release_curve(multiplier: float, parts: Sequence[int]) -> Curve:
    """Renyi divergences over `ORDERS` of one round's figures for one record that moves words by `parts`.

    Every word has its own noise of standard deviation multiplier * part, so their divergences add up.
    """
    curve = np.zeros_like(ORDERS)
    for part in parts:
        variance = (multiplier * part) ** 2
        curve += [renyi_bound(float(order), l2=part, l1=part, variance=variance) for order in ORDERS]
    return curve


def figures_epsilon(multiplier: float, parts: Sequence[int], *, releases: int, delta: float) -> float:
    """Epsilon at `delta` of so many rounds' figures, for one held-out record, added or removed."""
    return epsilon_of_curve(releases * release_curve(multiplier, parts), delta=delta)


def skellam(count: int, *, variance: float, random_bytes: RandomBytes) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """`count` Skellam numbers of this variance, int64: two Poisson numbers each.

    random_bytes: a secure source; its bytes key the generator (Philox) that makes these numbers and no others.
    Raises InvalidArgument beyond a variance of 2**40, where doubles no longer tell neighbouring integers apart.
    """
    if not 0 < variance <= 2.0**40:
        raise InvalidArgument("the variance of Skellam noise must be over 0 and at most 2**40")
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(random_bytes(_KEY_BYTES), "big")))
    first, second = generator.poisson(variance / 2, (2, count)).astype(np.int64)
    drawn: np.ndarray[tuple[int], np.dtype[np.int64]] = first - second
    return drawn


def with_noise(
    metrics: Mapping[str, float], noise: MetricNoise, *, honest: int, random_bytes: RandomBytes
) -> dict[str, float]:
    """Metric words with this member's share of noise on those that the plan names; all others as they are.

    honest: members that are certain to be in the sum and honest, at least 1: whose shares together are the plan's.
    """
    noisy = dict(metrics)
    for word, value in metrics.items():
        most = noise.most(word)
        if most is None:
            continue
        variance = (noise.multiplier * sensitivity(most)) ** 2 / honest
        share = int(skellam(1, variance=variance, random_bytes=random_bytes)[0])
        noisy[word] = (round(value * STEPS) + share) / STEPS
    return noisy
