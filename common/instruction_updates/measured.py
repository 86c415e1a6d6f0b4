"""What a round has measured: means with their errors, and whether they got worse; and the arithmetic of all updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Final

from common.domains import CellSums, LossSums, PlanDomain, RoundSums, cells_of
from common.errors import PlanInvalid
from common.instruction_updates.terms import DomainLoss

# Whose exponential and root are rounded correctly, which a machine's own need not be.
ARITHMETIC: Final = Context(prec=34, rounding=ROUND_HALF_EVEN)
PLACES: Final = Decimal("1e-12")


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean loss of records and its standard error, nats."""

    loss: Decimal
    error: Decimal


def cells_by_domain(sums: RoundSums, domains: tuple[PlanDomain, ...]) -> dict[str, list[CellSums]]:
    """The sums that were open, by domain."""
    found: dict[str, list[CellSums]] = {}
    for (_, domain), cell in zip(cells_of(domains), sums.cells, strict=True):
        if cell is not None:
            found.setdefault(domain, []).append(cell)
    return found


def mean_of(parts: Sequence[LossSums]) -> Mean | None:
    """Mean of the records' losses, and its standard error."""
    rows = sum((Decimal(part.rows) for part in parts), Decimal(0))
    if rows <= 0:
        return None
    mean = sum((Decimal(part.loss) for part in parts), Decimal(0)) / rows
    variance = sum((Decimal(part.squares) for part in parts), Decimal(0)) / rows - mean * mean
    return Mean(mean, (max(variance, Decimal(0)) / rows).sqrt())


def kept_losses(old: tuple[DomainLoss, ...], means: dict[str, Mean]) -> tuple[DomainLoss, ...]:
    """The last loss of every domain, of this round where it was measured; by name."""
    new = {one.domain: one for one in old}
    new |= {name: DomainLoss(name, rounded(mean.loss), rounded(mean.error)) for name, mean in means.items()}
    return tuple(new[name] for name in sorted(new))


def got_worse(old: tuple[DomainLoss, ...], means: dict[str, Mean]) -> bool:
    """Whether macro and worst domain both rose by more than one standard error of the difference."""
    pairs = [(Mean(Decimal(one.loss), Decimal(one.error)), means[one.domain]) for one in old if one.domain in means]
    if not pairs:
        return False
    before, after = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return _rose(_macro(before), _macro(after)) and _rose(_worst(before), _worst(after))


def _macro(means: list[Mean]) -> Mean:
    squares = sum((mean.error**2 for mean in means), Decimal(0))
    return Mean(sum((mean.loss for mean in means), Decimal(0)) / len(means), squares.sqrt() / len(means))


def _worst(means: list[Mean]) -> Mean:
    return max(means, key=lambda mean: mean.loss)


def _rose(before: Mean, after: Mean) -> bool:
    return after.loss - before.loss > (before.error**2 + after.error**2).sqrt()


def rounded(value: Decimal) -> float:
    """A float that has one text on every machine, and little of it."""
    rounded = float(value.quantize(PLACES))
    if not math.isfinite(rounded):
        raise PlanInvalid("an update of the instruction set came to a number that is none")
    return rounded
