"""What private steps cost: Renyi differential privacy of Poisson-sampled Gaussian noise, by dp-accounting.

Pure. Neighbours are data sets that differ in one record, added or removed. Knows nothing of runs and rounds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from dp_accounting import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    LowerEndpointAndGuess,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
    calibrate_dp_mechanism,
)
from dp_accounting.rdp import RdpAccountant, compute_epsilon
from numpy.typing import NDArray

from common.errors import InvalidArgument

Curve = NDArray[np.float64]
# Orders of the accountant's Renyi divergences; epsilon is the least that any of them proves.
ORDERS: Final[Curve] = np.asarray(RdpAccountant().orders, dtype=np.float64)
LEAST_NOISE: Final = 0.2
MOST_NOISE: Final = 1e6


@dataclass(frozen=True, slots=True)
class PrivateSteps:
    """So many steps that each sample every record with probability sample_rate, sum their gradients, clipped to C, and
    add Gaussian noise of standard deviation noise_multiplier * C to the sum."""

    sample_rate: float
    noise_multiplier: float
    steps: int


def epsilon_of(spent: Iterable[PrivateSteps], *, delta: float, beside: Curve | None = None) -> float:
    """Epsilon at `delta` of all these together; 0 for none. beside: a further curve over `ORDERS`."""
    total = sum((_curve(*_key(steps)) * steps.steps for steps in spent), np.zeros_like(ORDERS))
    return epsilon_of_curve(total if beside is None else total + beside, delta=delta)


def epsilon_of_curve(curve: Curve, *, delta: float) -> float:
    """Epsilon at `delta` of Renyi divergences over `ORDERS` (Canonne, Kamath and Steinke, arXiv 2004.00010)."""
    if not curve.any():
        return 0.0
    epsilon, _ = compute_epsilon(ORDERS, curve, delta)
    return float(epsilon)


def noise_multiplier_for(
    *, epsilon: float, delta: float, sample_rate: float, steps: int, spent: Sequence[PrivateSteps] = ()
) -> float:
    """The least noise with which `steps` more steps, together with what is spent, stay within (epsilon, delta).

    Raises InvalidArgument if no noise can do that, because what is spent is too much already.
    """
    return _least_noise(epsilon, delta, sample_rate, steps, tuple(spent))


@lru_cache(maxsize=256)
def _least_noise(
    epsilon: float, delta: float, sample_rate: float, steps: int, spent: tuple[PrivateSteps, ...]
) -> float:
    """Kept, because it takes a second and is asked for again before every run and round."""
    if epsilon_of([*spent, PrivateSteps(sample_rate, MOST_NOISE, steps)], delta=delta) > epsilon:
        raise InvalidArgument(
            f"no noise keeps {steps} further steps within epsilon {epsilon:g} at delta {delta:g}: "
            f"{epsilon_of(spent, delta=delta):.3f} of it is spent"
        )
    if epsilon_of([*spent, PrivateSteps(sample_rate, LEAST_NOISE, steps)], delta=delta) <= epsilon:
        return LEAST_NOISE
    before = [_event(part) for part in spent]

    def after(noise_multiplier: float) -> DpEvent:
        return ComposedDpEvent([*before, _event(PrivateSteps(sample_rate, noise_multiplier, steps))])

    with _few_words():
        return float(
            calibrate_dp_mechanism(
                RdpAccountant,
                after,
                target_epsilon=epsilon,
                target_delta=delta,
                bracket_interval=LowerEndpointAndGuess(LEAST_NOISE, 2 * LEAST_NOISE),
                tol=1e-4,
            )
        )


def _event(steps: PrivateSteps) -> DpEvent:
    once = PoissonSampledDpEvent(steps.sample_rate, GaussianDpEvent(steps.noise_multiplier))
    return SelfComposedDpEvent(once, steps.steps)


def _key(steps: PrivateSteps) -> tuple[float, float]:
    return steps.sample_rate, steps.noise_multiplier


@lru_cache(maxsize=1024)
def _curve(sample_rate: float, noise_multiplier: float) -> Curve:
    """Of one step, over `ORDERS`."""
    accountant = RdpAccountant()
    with _few_words():
        accountant.compose(_event(PrivateSteps(sample_rate, noise_multiplier, 1)))
    curve: Curve = np.asarray(accountant.rdp, dtype=np.float64)
    return curve


@contextmanager
def _few_words() -> Iterator[None]:
    """The accountant warns of every order for which little noise gives it no bound; another order is the best then."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
