"""How a round's masked sums change the instruction set: the domains' shares, and the candidate templates.

Shares follow group DRO by the regret against staying alone (Xie et al. 2023, DoReMi; Sagawa et al. 2020), probabilities
of templates follow Hedge (Freund and Schapire 1997); what made macro and worst domain both worse is taken back. Pure,
and the same to the last bit wherever it is computed: all arithmetic is decimal, whose exponential and root are rounded
correctly, which a machine's own need not be. So anybody who has the sums can check what the coordinator sends out.
Knows nothing of masks, rounds and texts of templates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from enum import StrEnum
from typing import Final

from common import jsonform
from common.domains import CellSums, LossSums, PlanDomain, RoundSums, cells_of
from common.errors import PlanInvalid
from common.instructions import DomainShare, InstructionSet, Task, Template
from common.record_bounds import LOSS_BOUND

_ARITHMETIC: Final = Context(prec=34, rounding=ROUND_HALF_EVEN)
_PLACES: Final = Decimal("1e-12")
_TINY: Final = Decimal("1e-6")
_HISTORY: Final = 2


class Reference(StrEnum):
    """What a site alone reaches. LOCAL: each site trains an adapter on its own records once in a run, and measures it.

    GIVEN: the plan's domains say it (0: the loss itself is the regret, as in plain group DRO).
    """

    LOCAL = "local"
    GIVEN = "given"


class Start(StrEnum):
    """The domains' first shares. ROWS: as their records are many. EQUAL: all the same."""

    ROWS = "rows"
    EQUAL = "equal"


@dataclass(frozen=True, slots=True)
class Updates:
    """How the instruction set is updated; a plan without this leaves it as it is.

    rows: held-out records by which a site measures each candidate template; every: rounds from one such measurement to
    the next. eta, smoothing (c), box (shares are from 1/(box G) to box/G), momentum: of the step of the shares.
    template_rate: of Hedge, 0 for sqrt(8 ln|T| / evaluations) / B. least_probability: candidates below are dropped.
    switch_errors: standard errors by which another candidate must be better, `switch_streak` evaluations in a row, to
    be served. reference: what a site alone reaches; reference_steps: optimiser steps of its own adapter, 0 for those
    of the whole run.
    """

    rows: int = 32
    every: int = 1
    eta: float = 0.5
    smoothing: float = 0.05
    box: float = 4.0
    momentum: float = 0.5
    template_rate: float = 0.0
    least_probability: float = 0.02
    switch_errors: float = 2.0
    switch_streak: int = 2
    reference: Reference = Reference.GIVEN
    reference_steps: int = 0
    start: Start = Start.ROWS

    def check(self) -> None:
        """Raises PlanInvalid that lists every mistake."""
        rules = (
            (1 <= self.rows <= 100_000, "rows must be 1 to 100000"),
            (self.every >= 1, "every must be at least 1"),
            (0.0 < self.eta <= 10.0, "eta must be over 0 and at most 10"),
            (0.0 <= self.smoothing < 1.0, "smoothing must be from 0 up to 1"),
            (1.0 < self.box <= 100.0, "box must be over 1 and at most 100"),
            (0.0 <= self.momentum < 1.0, "momentum must be from 0 up to 1"),
            (0.0 <= self.template_rate <= 100.0, "template_rate must be 0 to 100"),
            (0.0 <= self.least_probability <= 0.1, "least_probability must be 0 to 0.1"),
            (0.0 <= self.switch_errors <= 100.0, "switch_errors must be 0 to 100"),
            (self.switch_streak >= 1, "switch_streak must be at least 1"),
            (self.reference_steps >= 0, "reference_steps must not be negative"),
        )
        mistakes = [f"updates: {text}" for holds, text in rules if not holds]
        if mistakes:
            raise PlanInvalid("; ".join(mistakes))

    def measures_templates(self, round_: int) -> bool:
        """Whether candidate templates are measured in a round; the first is one."""
        return (round_ - 1) % self.every == 0


@dataclass(frozen=True, slots=True)
class DomainLoss:
    """A domain's mean loss and its standard error, in nats: what the next measurement is compared with."""

    domain: str
    loss: float
    error: float


@dataclass(frozen=True, slots=True)
class Odds:
    """One candidate's probability, and whether it was served."""

    task: Task
    domain: str
    name: str
    probability: float
    is_served: bool


@dataclass(frozen=True, slots=True)
class Mixture:
    """What an update may change in an instruction set: so that it can be taken back."""

    shares: tuple[DomainShare, ...]
    odds: tuple[Odds, ...]


@dataclass(frozen=True, slots=True)
class Streak:
    """So many evaluations in a row a candidate was clearly better than the served one."""

    task: Task
    domain: str
    name: str
    length: int


@dataclass(frozen=True, slots=True)
class UpdateState:
    """What one update hands to the next. excess_*: count, mean and sum of squared deviations of all regrets so far."""

    excess_count: int = 0
    excess_mean: float = 0.0
    excess_squares: float = 0.0
    streaks: tuple[Streak, ...] = ()
    losses: tuple[DomainLoss, ...] = ()
    history: tuple[Mixture, ...] = ()
    rollbacks: int = 0


@dataclass(frozen=True, slots=True)
class NextRound:
    """What follows from a round for the one after it: the instruction set (canonical JSON), and the state."""

    instruction_set: str
    state: UpdateState = UpdateState()

    def to_json(self) -> str:
        return jsonform.encode(self, NextRound)


@dataclass(frozen=True, slots=True)
class _Mean:
    loss: Decimal
    error: Decimal


def next_round(
    before: NextRound, sums: RoundSums, *, settings: Updates, domains: tuple[PlanDomain, ...], evaluations: int
) -> NextRound:
    """The instruction set of the round after the one that used `before` and gave these sums.

    evaluations: how often templates are measured in the whole run. The same arguments give the same bytes, anywhere.
    """
    old = InstructionSet.from_json(before.instruction_set)
    with localcontext(_ARITHMETIC):
        new, state = _updated(old, before.state, sums, settings, domains, max(1, evaluations))
    if new != old:
        new = replace(new, version=old.version + 1)
    return NextRound(new.to_json(), state)


def _updated(
    old: InstructionSet,
    state: UpdateState,
    sums: RoundSums,
    settings: Updates,
    domains: tuple[PlanDomain, ...],
    evaluations: int,
) -> tuple[InstructionSet, UpdateState]:
    by_domain = _cells_by_domain(sums, domains)
    means = {name: mean for name, cells in by_domain.items() if (mean := _mean_of([cell.served for cell in cells]))}
    losses = _kept_losses(state.losses, means)
    history = (*state.history, _mixture(old))[-_HISTORY:]
    sized = _sized(old, sums, domains, settings)
    if len(state.history) == _HISTORY and _got_worse(state.losses, means):
        # These losses are of the adapter that the round before has made; what that was trained with is older still.
        restored = _restored(sized, state.history[0])
        return restored, replace(state, streaks=(), losses=losses, history=(), rollbacks=state.rollbacks + 1)
    regrets = _regrets(means, by_domain, domains, settings)
    state = _with_regrets(state, regrets)
    shares = _next_shares(sized.shares, regrets, means, state, settings)
    templates, streaks = _next_templates(sized, sums, domains, state.streaks, settings, evaluations)
    new = replace(sized, shares=shares, templates=templates)
    return new, replace(state, streaks=streaks, losses=losses, history=history)


# --- what was measured -------------------------------------------------------------------------------------------


def _cells_by_domain(sums: RoundSums, domains: tuple[PlanDomain, ...]) -> dict[str, list[CellSums]]:
    found: dict[str, list[CellSums]] = {}
    for (_, domain), cell in zip(cells_of(domains), sums.cells, strict=True):
        if cell is not None:
            found.setdefault(domain, []).append(cell)
    return found


def _mean_of(parts: Sequence[LossSums]) -> _Mean | None:
    """Mean of the records' losses, and its standard error."""
    rows = sum((Decimal(part.rows) for part in parts), Decimal(0))
    if rows <= 0:
        return None
    mean = sum((Decimal(part.loss) for part in parts), Decimal(0)) / rows
    variance = sum((Decimal(part.squares) for part in parts), Decimal(0)) / rows - mean * mean
    return _Mean(mean, (max(variance, Decimal(0)) / rows).sqrt())


def _kept_losses(old: tuple[DomainLoss, ...], means: dict[str, _Mean]) -> tuple[DomainLoss, ...]:
    new = {one.domain: one for one in old}
    new |= {name: DomainLoss(name, _rounded(mean.loss), _rounded(mean.error)) for name, mean in means.items()}
    return tuple(new[name] for name in sorted(new))


def _got_worse(old: tuple[DomainLoss, ...], means: dict[str, _Mean]) -> bool:
    """Whether macro and worst domain both rose by more than one standard error of the difference."""
    pairs = [(_Mean(Decimal(one.loss), Decimal(one.error)), means[one.domain]) for one in old if one.domain in means]
    if not pairs:
        return False
    before, after = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return _rose(_macro(before), _macro(after)) and _rose(_worst(before), _worst(after))


def _macro(means: list[_Mean]) -> _Mean:
    squares = sum((mean.error**2 for mean in means), Decimal(0))
    return _Mean(sum((mean.loss for mean in means), Decimal(0)) / len(means), squares.sqrt() / len(means))


def _worst(means: list[_Mean]) -> _Mean:
    return max(means, key=lambda mean: mean.loss)


def _rose(before: _Mean, after: _Mean) -> bool:
    return after.loss - before.loss > (before.error**2 + after.error**2).sqrt()


def _mixture(used: InstructionSet) -> Mixture:
    odds = (Odds(t.task, t.domain, t.name, t.probability, t.is_served) for t in used.templates)
    return Mixture(used.shares, tuple(odds))


def _restored(used: InstructionSet, old: Mixture) -> InstructionSet:
    """The set with old shares and probabilities; a candidate that has been dropped since stays out."""
    known = {(odds.task, odds.domain, odds.name): odds for odds in old.odds}
    cells: dict[tuple[Task, str], list[Template]] = {}
    for template in used.templates:
        odds = known[*template.cell, template.name]
        was = replace(template, probability=odds.probability, is_served=odds.is_served)
        cells.setdefault(template.cell, []).append(was)
    templates = [template for found in cells.values() for template in _normalised(found)]
    if not old.shares:
        return replace(used, templates=tuple(templates))
    sizes = {share.domain: share.records for share in used.shares}
    shares = tuple(replace(share, records=sizes[share.domain]) for share in old.shares)
    return replace(used, templates=tuple(templates), shares=shares)


# --- shares of the domains ---------------------------------------------------------------------------------------


def _sized(used: InstructionSet, sums: RoundSums, domains: tuple[PlanDomain, ...], settings: Updates) -> InstructionSet:
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


def _regrets(
    means: dict[str, _Mean], by_domain: dict[str, list[CellSums]], domains: tuple[PlanDomain, ...], settings: Updates
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


def _with_regrets(state: UpdateState, regrets: dict[str, Decimal]) -> UpdateState:
    """The running moments with these regrets (Welford 1962)."""
    count, mean = state.excess_count, Decimal(state.excess_mean)
    squares = Decimal(state.excess_squares)
    for name in sorted(regrets):
        count += 1
        step = regrets[name] - mean
        mean += step / count
        squares += step * (regrets[name] - mean)
    return replace(state, excess_count=count, excess_mean=_rounded(mean), excess_squares=_rounded(squares))


def _next_shares(
    shares: tuple[DomainShare, ...],
    regrets: dict[str, Decimal],
    means: dict[str, _Mean],
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
    return tuple(DomainShare(name, _rounded(shares[name]), _rounded(records[name])) for name in sorted(shares))


# --- candidate templates -----------------------------------------------------------------------------------------


def _next_templates(
    used: InstructionSet,
    sums: RoundSums,
    domains: tuple[PlanDomain, ...],
    streaks: tuple[Streak, ...],
    settings: Updates,
    evaluations: int,
) -> tuple[tuple[Template, ...], tuple[Streak, ...]]:
    """The templates with new probabilities, in their old order, and the streaks of those that may be served soon."""
    changed: dict[tuple[Task, str], list[Template]] = {}
    kept = {(streak.task, streak.domain): streak for streak in streaks}
    for cell, measured in zip(cells_of(domains), sums.cells, strict=True):
        candidates = list(used.candidates(*cell))
        if measured is None or len(measured.arms) != len(candidates) or candidates[0].domain != cell[1]:
            continue
        means = [mean for arm in measured.arms if (mean := _mean_of([arm])) is not None]
        streak = kept.pop(cell, None)
        found, streak = _switched(candidates, means, streak, settings)
        changed[cell] = _hedged(found, means, settings, evaluations)
        if streak is not None:
            kept[cell] = streak
    templates: list[Template] = []
    for cell in dict.fromkeys(template.cell for template in used.templates):
        templates.extend(changed.get(cell, [template for template in used.templates if template.cell == cell]))
    return tuple(templates), tuple(kept[cell] for cell in sorted(kept))


def _switched(
    candidates: list[Template], means: list[_Mean], streak: Streak | None, settings: Updates
) -> tuple[list[Template], Streak | None]:
    """Serve the best candidate once it was clearly better often enough in a row."""
    served = next((place for place, template in enumerate(candidates) if template.is_served), 0)
    best = min(range(len(means)), key=lambda place: (means[place].loss, place))
    error = (means[best].error ** 2 + means[served].error ** 2).sqrt()
    if means[best].loss - means[served].loss >= -Decimal(settings.switch_errors) * error or best == served:
        return _serving(candidates, served), None
    name = candidates[best].name
    length = streak.length + 1 if streak is not None and streak.name == name else 1
    if length >= settings.switch_streak:
        return _serving(candidates, best), None
    return _serving(candidates, served), Streak(*candidates[best].cell, name, length)


def _serving(candidates: list[Template], served: int) -> list[Template]:
    return [replace(template, is_served=place == served) for place, template in enumerate(candidates)]


def _hedged(candidates: list[Template], means: list[_Mean], settings: Updates, evaluations: int) -> list[Template]:
    """pi_k <- pi_k exp(-rate (L_k - min L)) / Z, without those that have become too unlikely."""
    rate = Decimal(settings.template_rate)
    if not rate:
        rate = (8 * Decimal(len(candidates)).ln() / evaluations).sqrt() / Decimal(LOSS_BOUND)
    least = min(mean.loss for mean in means)
    odds = [
        Decimal(template.probability or 1.0 / len(candidates)) * (-rate * (mean.loss - least)).exp()
        for template, mean in zip(candidates, means, strict=True)
    ]
    total = sum(odds, Decimal(0))
    found = [
        replace(template, probability=_rounded(one / total))
        for template, one in zip(candidates, odds, strict=True)
        if template.is_served or one / total >= Decimal(settings.least_probability)
    ]
    return list(_normalised(found))


def _normalised(found: Iterable[Template]) -> tuple[Template, ...]:
    """Probabilities that add up to 1 again; equal ones that nobody has given (0) stay as they are."""
    listed = tuple(found)
    total = sum((Decimal(template.probability) for template in listed), Decimal(0))
    if not total:
        return listed
    return tuple(
        replace(template, probability=_rounded(max(Decimal(template.probability) / total, _PLACES)))
        for template in listed
    )


def _rounded(value: Decimal) -> float:
    """A float that has one text on every machine, and little of it."""
    rounded = float(value.quantize(_PLACES))
    if not math.isfinite(rounded):
        raise PlanInvalid("an update of the instruction set came to a number that is none")
    return rounded
