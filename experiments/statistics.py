"""Comparisons of two models on the same records: paired bootstrap, gap closed. Pure; numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class DomainLosses:
    """Answer losses of one model on one domain's test records, in the records' order.

    nats: float64[n], summed over a record's answer tokens. tokens: float64[n], how many these are.
    """

    nats: Float
    tokens: Float

    @property
    def mean(self) -> float:
        """Nats per answer token."""
        return float(self.nats.sum() / self.tokens.sum())


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean loss of the first model less that of the second, with a 95 % interval: below 0, the first is better."""

    mean: float
    low: float
    high: float

    @property
    def is_better(self) -> bool:
        return self.high < 0.0


def macro(losses: Mapping[str, DomainLosses]) -> float:
    """Mean over the domains of their mean losses: a domain counts as one, however many records it has."""
    return float(np.mean([domain.mean for domain in losses.values()]))


def worst(losses: Mapping[str, DomainLosses]) -> tuple[str, float]:
    """The domain with the highest mean loss, and that loss."""
    domain = max(losses, key=lambda name: losses[name].mean)
    return domain, losses[domain].mean


def paired_difference(
    first: Mapping[str, DomainLosses], second: Mapping[str, DomainLosses], *, resamples: int, seed: int
) -> Difference:
    """Macro loss of `first` less `second` with a percentile interval of the paired bootstrap over test records.

    Records are drawn within each domain, the same ones for both models (Efron & Tibshirani 1993, chapter 16; Koehn
    2004, EMNLP, for system comparisons). Raises ValueError where the two have not seen the same records.
    """
    if first.keys() != second.keys() or any(len(first[name].nats) != len(second[name].nats) for name in first):
        raise ValueError("the two models were not tested on the same records")
    generator = np.random.Generator(np.random.PCG64(seed))
    totals = np.zeros(resamples)
    for name in sorted(first):
        one, other = first[name], second[name]
        drawn = generator.integers(0, len(one.nats), size=(resamples, len(one.nats)))
        totals += one.nats[drawn].sum(1) / one.tokens[drawn].sum(1)
        totals -= other.nats[drawn].sum(1) / other.tokens[drawn].sum(1)
    low, high = np.quantile(totals / len(first), (0.025, 0.975))
    return Difference(macro(first) - macro(second), float(low), float(high))


def gap_closed(*, alone: float, federated: float, central: float) -> float | None:
    """(alone - federated) / (alone - central): 0 as bad as alone, 1 as good as all data in one place.

    None where central training is no better than training alone: there is no gap.
    """
    gap = alone - central
    return (alone - federated) / gap if gap > 0 else None


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds (0 for a single one)."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else 0.0
