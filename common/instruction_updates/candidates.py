"""Candidate templates: Hedge (Freund and Schapire 1997), and one that is served until another is clearly better."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal

from common.domains import PlanDomain, RoundSums, cells_of
from common.instruction_updates.measured import PLACES, Mean, mean_of, rounded
from common.instruction_updates.terms import Streak, Updates
from common.instructions import InstructionSet, Task, Template
from common.record_bounds import LOSS_BOUND


def next_templates(
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
        means = [mean for arm in measured.arms if (mean := mean_of([arm])) is not None]
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
    candidates: list[Template], means: list[Mean], streak: Streak | None, settings: Updates
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


def _hedged(candidates: list[Template], means: list[Mean], settings: Updates, evaluations: int) -> list[Template]:
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
        replace(template, probability=rounded(one / total))
        for template, one in zip(candidates, odds, strict=True)
        if template.is_served or one / total >= Decimal(settings.least_probability)
    ]
    return list(normalised(found))


def normalised(found: Iterable[Template]) -> tuple[Template, ...]:
    """Probabilities that add up to 1 again; equal ones that nobody has given (0) stay as they are."""
    listed = tuple(found)
    total = sum((Decimal(template.probability) for template in listed), Decimal(0))
    if not total:
        return listed
    return tuple(
        replace(template, probability=rounded(max(Decimal(template.probability) / total, PLACES)))
        for template in listed
    )
