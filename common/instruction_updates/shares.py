"""The domains' shares: group DRO by the regret against staying alone (Xie et al. 2023, DoReMi; Sagawa et al. 2020)."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Final

from common.domains import CellSums, PlanDomain, RoundSums
from common.instruction_updates.measured import Mean, rounded
from common.instruction_updates.terms import Reference, Start, Updates, UpdateState
from common.instructions import DomainShare, InstructionSet

_TINY: Final = Decimal("1e-6")


def with_sizes(
    used: InstructionSet, sums: RoundSums, domains: tuple[PlanDomain, ...], settings: Updates
) -> InstructionSet:
    """The set with the domains' sizes as they were summed now; a domain that is new gets its first share."""
    records = {share.domain: Decimal(share.records) for share in used.shares}
    records |= {
        domain.name: Decimal(found)
        for domain, found in zip(domains, sums.records, strict=True)
        if found is not None and found > 0
    }
    if not records:
        return used
    old = {share.domain: Decimal(share.share) for share in used.shares}
    total = sum(records.values(), Decimal(0))
    first = {
        name: size / total if settings.start is Start.ROWS else Decimal(1) / len(records)
        for name, size in records.items()
    }
    new = {name: first[name] for name in records if name not in old}
    left = 1 - sum(new.values(), Decimal(0)) if old else Decimal(0)
    raw = {name: old[name] * left if name in old else new[name] for name in records}
    # Domains that were there keep their shares to the bit while no other comes.
    boxed = _boxed(raw, total=Decimal(1), domains=len(records), box=Decimal(settings.box)) if new else raw
    return replace(used, shares=_shares(boxed, records), sites=sums.sites)


def regrets_of(
    means: dict[str, Mean], by_domain: dict[str, list[CellSums]], domains: tuple[PlanDomain, ...], settings: Updates
) -> dict[str, Decimal]:
    """e_g = max(0, L_g - what a site alone reaches), of domains of which both are known."""
    regrets: dict[str, Decimal] = {}
    for domain in domains:
        mean = means.get(domain.name)
        if mean is None:
            continue
        reference = Decimal(domain.reference_loss)
        if settings.reference is Reference.LOCAL:
            cells = by_domain[domain.name]
            alone = [Decimal(cell.reference) for cell in cells if cell.reference is not None]
            if len(alone) < len(cells):
                continue
            reference = sum(alone, Decimal(0)) / sum((Decimal(cell.served.rows) for cell in cells), Decimal(0))
        regrets[domain.name] = max(Decimal(0), mean.loss - reference)
    return regrets


def with_regrets(state: UpdateState, regrets: dict[str, Decimal]) -> UpdateState:
    """The running moments with these regrets (Welford 1962)."""
    count, mean = state.excess_count, Decimal(state.excess_mean)
    squares = Decimal(state.excess_squares)
    for name in sorted(regrets):
        count += 1
        step = regrets[name] - mean
        mean += step / count
        squares += step * (regrets[name] - mean)
    return replace(state, excess_count=count, excess_mean=rounded(mean), excess_squares=rounded(squares))


def next_shares(
    shares: tuple[DomainShare, ...],
    regrets: dict[str, Decimal],
    means: dict[str, Mean],
    state: UpdateState,
    settings: Updates,
) -> tuple[DomainShare, ...]:
    """One step of group DRO over the domains that were measured; the others keep their shares.

    alpha_g <- (1 - c) alpha_g exp(eta e_g / s) / Z + c / G, into the box, then the mean with the old share. s: running
    standard deviation of the regrets, but no less than what their own standard errors make of equal ones.
    """
    measured = {share.domain: Decimal(share.share) for share in shares if share.domain in regrets}
    if len(measured) < 2:
        return shares
    noise = sum((means[name].error for name in measured), Decimal(0)) / len(measured)
    spread = (max(Decimal(state.excess_squares), Decimal(0)) / max(1, state.excess_count)).sqrt()
    scale = max(spread, noise, _TINY)
    mass = sum(measured.values(), Decimal(0))
    highest = max(regrets[name] for name in measured)
    grown = {
        name: share * (Decimal(settings.eta) * (regrets[name] - highest) / scale).exp()
        for name, share in measured.items()
    }
    total = sum(grown.values(), Decimal(0))
    smoothing = Decimal(settings.smoothing)
    moved = {name: mass * ((1 - smoothing) * one / total + smoothing / len(measured)) for name, one in grown.items()}
    boxed = _boxed(moved, total=mass, domains=len(shares), box=Decimal(settings.box))
    momentum = Decimal(settings.momentum)
    after = {name: momentum * measured[name] + (1 - momentum) * boxed[name] for name in measured}
    return _shares(
        {share.domain: after.get(share.domain, Decimal(share.share)) for share in shares},
        {share.domain: Decimal(share.records) for share in shares},
    )


def _boxed(raw: dict[str, Decimal], *, total: Decimal, domains: int, box: Decimal) -> dict[str, Decimal]:
    """The shares nearest in proportion to `raw` that lie in [1/(box G), box/G] and add up to `total`."""
    low, high = 1 / (box * domains), min(box / domains, Decimal(1))
    if not low * len(raw) < total < high * len(raw):
        return dict.fromkeys(raw, total / len(raw))  # at the box's edge, or beyond it by the rounding of shares

    def at(factor: Decimal) -> dict[str, Decimal]:
        return {name: min(max(one * factor, low), high) for name, one in raw.items()}

    least, most = Decimal(0), high / min(raw.values())
    for _ in range(64):
        middle = (least + most) / 2
        if sum(at(middle).values(), Decimal(0)) < total:
            least = middle
        else:
            most = middle
    return at(most)


def _shares(shares: dict[str, Decimal], records: dict[str, Decimal]) -> tuple[DomainShare, ...]:
    return tuple(DomainShare(name, rounded(shares[name]), rounded(records[name])) for name in sorted(shares))
