"""p-values of a few tests of randomness, by their usual approximations; good to a few percent far into the tails."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


def normal_tail(z: float) -> float:
    """Two-sided."""
    return math.erfc(abs(z) / math.sqrt(2))


def chi_square(counts: Array) -> float:
    """Are all values as frequent? One-sided; Wilson and Hilferty 1931, for many degrees of freedom."""
    expected = counts.sum() / counts.size
    statistic = float(((counts - expected) ** 2).sum() / expected)
    freedom = counts.size - 1
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return 0.5 * math.erfc(z / math.sqrt(2))


def _kolmogorov(distance: float, size: float) -> float:
    """Stephens 1970 for the finite size, then Kolmogorov's series."""
    x = distance * (math.sqrt(size) + 0.12 + 0.11 / math.sqrt(size))
    if x < 0.2:
        return 1.0
    return min(1.0, max(0.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 101))))


def kolmogorov_smirnov(values: Array) -> float:
    """Are these uniform in [0, 1)?"""
    ordered = np.sort(values.astype(np.float64))
    steps = np.arange(ordered.size + 1) / ordered.size
    distance = max(float(np.max(steps[1:] - ordered)), float(np.max(ordered - steps[:-1])))
    return _kolmogorov(distance, ordered.size)


def kolmogorov_smirnov_of_two(one: Array, other: Array) -> float:
    """Are these from one distribution?"""
    one, other = np.sort(one), np.sort(other)
    every = np.concatenate([one, other])
    below_one = np.searchsorted(one, every, side="right") / one.size
    below_other = np.searchsorted(other, every, side="right") / other.size
    distance = float(np.max(np.abs(below_one - below_other)))
    return _kolmogorov(distance, one.size * other.size / (one.size + other.size))


def monobit(data: bytes) -> float:
    """Are as many bits set as not?"""
    ones = int(np.bitwise_count(np.frombuffer(data, np.uint64)).sum())
    bits = 8 * len(data)
    return normal_tail((2 * ones - bits) / math.sqrt(bits))


def lag_one(values: Array) -> float:
    """Does a value say something of the next?"""
    centred = values.astype(np.float64) - float(values.mean())
    spread = float(centred @ centred)
    if not spread:
        return 0.0
    return normal_tail(float(centred[:-1] @ centred[1:]) / spread * math.sqrt(values.size))
