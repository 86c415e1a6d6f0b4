"""One update: from the set that a round has used and the sums that it gave to the set of the next."""

from __future__ import annotations

from dataclasses import replace
from decimal import localcontext
from typing import Final

from common.domains import PlanDomain, RoundSums
from common.instruction_updates.candidates import next_templates, normalised
from common.instruction_updates.measured import ARITHMETIC, cells_by_domain, got_worse, kept_losses, mean_of
from common.instruction_updates.shares import next_shares, regrets_of, with_regrets, with_sizes
from common.instruction_updates.terms import Mixture, NextRound, Odds, Updates, UpdateState
from common.instructions import InstructionSet, Task, Template

_HISTORY: Final = 2


def next_round(
    before: NextRound, sums: RoundSums, *, settings: Updates, domains: tuple[PlanDomain, ...], evaluations: int
) -> NextRound:
    """The instruction set of the round after the one that used `before` and gave these sums.

    evaluations: how often templates are measured in the whole run. The same arguments give the same bytes, anywhere.
    """
    old = InstructionSet.from_json(before.instruction_set)
    with localcontext(ARITHMETIC):
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
    by_domain = cells_by_domain(sums, domains)
    means = {name: mean for name, cells in by_domain.items() if (mean := mean_of([cell.served for cell in cells]))}
    losses = kept_losses(state.losses, means)
    history = (*state.history, _mixture(old))[-_HISTORY:]
    sized = with_sizes(old, sums, domains, settings)
    if len(state.history) == _HISTORY and got_worse(state.losses, means):
        # These losses are of the adapter that the round before has made; what that was trained with is older still.
        restored = _restored(sized, state.history[0])
        return restored, replace(state, streaks=(), losses=losses, history=(), rollbacks=state.rollbacks + 1)
    regrets = regrets_of(means, by_domain, domains, settings)
    state = with_regrets(state, regrets)
    shares = next_shares(sized.shares, regrets, means, state, settings)
    templates, streaks = next_templates(sized, sums, domains, state.streaks, settings, evaluations)
    new = replace(sized, shares=shares, templates=templates)
    return new, replace(state, streaks=streaks, losses=losses, history=history)


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
    templates = [template for found in cells.values() for template in normalised(found)]
    if not old.shares:
        return replace(used, templates=tuple(templates))
    sizes = {share.domain: share.records for share in used.shares}
    shares = tuple(replace(share, records=sizes[share.domain]) for share in old.shares)
    return replace(used, templates=tuple(templates), shares=shares)
