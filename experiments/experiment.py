"""The experiment from start to end: rates chosen on validation, every arm of every seed, and the outcome."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from common import jsonform
from common.durable import write_durably
from common.errors import InvalidArgument
from experiments.arms import Arms, side_by_side
from experiments.federation import FederatedResult, RunOver
from experiments.judging import Judgement
from experiments.outcome import Goal, RareJudgements, SeedJudgements, SeedOutcome, goals_of, outcome_of
from experiments.presets import FederatedMethod, Preset
from experiments.rates import ChosenRates, Rates, best_rate, searched, searched_with_schedules
from experiments.sites import Site, rare_domain_of
from experiments.statistics import macro

ALONE: Final = "alone"
CENTRAL: Final = "central"
CENTRAL_WIDE: Final = "central-wide"
RATES_FILE: Final = "rates.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The whole experiment, or some of its seeds. rates: what validation chose for each arm, on the first seed."""

    preset: str
    base_model: str
    base_model_digest: str
    sites: tuple[tuple[str, str, int], ...]
    rates: ChosenRates
    seeds: tuple[SeedOutcome, ...]
    goals: tuple[Goal, ...]
    seconds: float


def run_experiment(arms: Arms, *, numbers: Sequence[int] = (), chosen: ChosenRates | None = None) -> Outcome:
    """Everything that is not done yet; what lies finished in the arms' folders is taken as it is.

    numbers: of the preset's seeds, only these. chosen: rates that another run has found, in place of a search.
    Raises InvalidArgument for a seed that the preset does not have, and for rates of other arms than its own.
    """
    began, preset = time.monotonic(), arms.preset
    if strange := sorted(set(numbers) - set(preset.seeds)):
        raise InvalidArgument(f"the preset {preset.name} has the seeds {list(preset.seeds)}, not {strange}")
    if chosen is not None:
        _require_rates_of(preset, chosen)
    arms.prepare()
    rates = chosen or _chosen_rates(arms)
    write_durably(arms.place / RATES_FILE, jsonform.encode(rates, ChosenRates).encode() + b"\n")
    seeds: list[SeedOutcome] = []
    for seed in numbers or preset.seeds:
        judged = _judge_seed(arms, seed, rates)
        seeds.append(outcome_of(seed, judged, arms.sites, resamples=preset.resamples))
        first = seeds[-1].methods[0]
        gap = "none" if first.gap_closed is None else f"{first.gap_closed:.2f}"
        arms.say(f"seed {seed}: federated macro loss {first.scores.macro_loss:.3f}, gap closed {gap}")
    return Outcome(
        preset=preset.name,
        base_model=arms.model.name,
        base_model_digest=arms.model.digest,
        sites=tuple((site.name, site.domain, site.train_records) for site in arms.sites),
        rates=rates,
        seeds=tuple(seeds),
        goals=goals_of(seeds),
        seconds=time.monotonic() - began,
    )


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    """One outcome of several that have judged different seeds of the same experiment, on other machines perhaps.

    Raises InvalidArgument where they differ in anything but seeds, or have judged the same seed twice.
    """
    first = outcomes[0]
    for other in outcomes[1:]:
        for name in ("preset", "base_model_digest", "sites", "rates"):
            if getattr(other, name) != getattr(first, name):
                raise InvalidArgument(f"these are results of different experiments: they differ in {name}")
    seeds = sorted((seed for one in outcomes for seed in one.seeds), key=lambda seed: seed.seed)
    numbers = [seed.seed for seed in seeds]
    if len(set(numbers)) < len(numbers):
        raise InvalidArgument(f"a seed is there twice: {numbers}")
    return replace(first, seeds=tuple(seeds), goals=goals_of(seeds), seconds=sum(one.seconds for one in outcomes))


def _require_rates_of(preset: Preset, chosen: ChosenRates) -> None:
    wanted = ({ALONE, CENTRAL, CENTRAL_WIDE}, {method.name for method in preset.methods})
    found = (set(chosen.local), set(chosen.federated))
    if found != wanted:
        raise InvalidArgument(
            f"the rates are of other arms than the preset {preset.name} has: {sorted(found[0] | found[1])}, "
            f"and not {sorted(wanted[0] | wanted[1])}"
        )


def _chosen_rates(arms: Arms) -> ChosenRates:
    """For each arm the rates with the lowest macro loss on everybody's validation records, first seed."""
    seed, preset = arms.preset.seeds[0], arms.preset

    def alone(rate: float) -> float:
        trained = side_by_side(lambda site: arms.alone(site, seed=seed, rate=rate), arms.sites)
        own = [
            arms.validated(one, [site]).of_site(site.name).mean for one, site in zip(trained, arms.sites, strict=True)
        ]
        return sum(own) / len(own)

    def central(rate: float, *, is_wide: bool) -> float:
        return _macro(arms.validated(arms.central(seed=seed, rate=rate, is_wide=is_wide), arms.sites))

    def federated(method: FederatedMethod, rates: Rates) -> float:
        try:
            trained, _ = arms.federated(method, seed=seed, rates=rates)
        except RunOver as error:
            arms.say(f"{method.name}: {_said(rates)} is too large: {error.message}")
            return math.inf
        return _macro(arms.validated(trained, arms.sites))

    trials: dict[str, Callable[[float], float]] = {
        ALONE: alone,
        CENTRAL: partial(central, is_wide=False),
        CENTRAL_WIDE: partial(central, is_wide=True),
    }
    grid = preset.alone_learning_rates
    if len(grid) > 1:
        # All at once, to be found done below: the last job of one rate would leave cores without work.
        side_by_side(lambda pair: trials[pair[0]](pair[1]), [(arm, rate) for arm in trials for rate in grid])
    found = side_by_side(lambda arm: _chosen(arms, arm, grid, trials[arm]), tuple(trials))
    return ChosenRates(
        local=dict(zip(trials, found, strict=True)),
        federated={method.name: _chosen_of(arms, method, partial(federated, method)) for method in preset.methods},
    )


def _chosen(arms: Arms, arm: str, grid: Sequence[float], loss_at: Callable[[float], float]) -> float:
    if len(grid) == 1:
        return grid[0]
    losses = searched(grid, loss_at)
    rate = best_rate(losses)
    table = ", ".join(f"{one:g}: {loss:.3f}" for one, loss in losses.items())
    arms.say(f"{arm}: learning rate {rate:g} of validation losses {table}")
    return rate


def _chosen_of(arms: Arms, method: FederatedMethod, loss_at: Callable[[Rates], float]) -> Rates:
    grid, schedules = method.learning_rates, arms.preset.schedules
    if len(grid) == len(schedules) == 1:
        return Rates(grid[0], schedules[0])
    losses = searched_with_schedules(grid, schedules, loss_at)
    rates = best_rate(losses)
    table = ", ".join(f"{_said(one)}: {loss:.3f}" for one, loss in losses.items())
    arms.say(f"{method.name}: {_said(rates)} of validation losses {table}")
    return rates


def _said(rates: Rates) -> str:
    return f"{rates.schedule} learning rate {rates.first:g}"


def _judge_seed(arms: Arms, seed: int, rates: ChosenRates) -> SeedJudgements:
    """Train and judge every arm of a seed. What can be done side by side is."""
    preset, sites = arms.preset, arms.sites

    def alone(site: Site) -> Judgement:
        return arms.tested(arms.alone(site, seed=seed, rate=rates.local[ALONE]), is_answered=False)

    def alone_full(site: Site) -> Judgement:
        return arms.tested(arms.alone_full(site, seed=seed, rate=rates.local[ALONE]), is_answered=False)

    def central(name: str) -> Judgement:
        return arms.tested(arms.central(seed=seed, rate=rates.local[name], is_wide=name == CENTRAL_WIDE))

    arms.say(f"seed {seed}: the base model as it is")
    zero_shot = arms.tested(None)
    arms.say(f"seed {seed}: {len(sites)} sites alone, each with its own share")
    own = _by_site(sites, side_by_side(alone, sites))
    full: dict[str, Judgement] = {}
    if preset.has_full_budget_alone:
        arms.say(f"seed {seed}: {len(sites)} sites alone with everybody's budget, stopped early")
        full = _by_site(sites, side_by_side(alone_full, sites))
    arms.say(f"seed {seed}: all records in one place, small batches and large")
    together = side_by_side(central, (CENTRAL, CENTRAL_WIDE))
    methods: dict[str, tuple[Rates, Judgement, FederatedResult]] = {}
    for method in preset.methods:
        own_rates = rates.federated[method.name]
        arms.say(
            f"seed {seed}: federation of {len(sites)} sites, {preset.budget.rounds} masked rounds of {method.name}"
        )
        trained, result = arms.federated(method, seed=seed, rates=own_rates)
        methods[method.name] = (own_rates, arms.tested(trained), result)
    own_models: dict[str, Judgement] = {}
    if preset.has_adapters:
        first = preset.methods[0]
        own_rates, _, result = methods[first.name]
        arms.say(f"seed {seed}: an adapter for each domain, and one for each site, on top of {first.name}'s")
        models = arms.with_adapters(
            first, beneath=result.digest, seed=seed, rates=own_rates, own_rate=rates.local[ALONE]
        )
        own_models = _by_site(sites, side_by_side(lambda site: arms.tested_at_home(models[site.name], site), sites))
    rare: RareJudgements | None = None
    if preset.rare_share is not None:
        rare = _judge_rare(arms, seed, rates.federated[preset.methods[0].name], share=preset.rare_share)
    runs = [result for _, _, result in methods.values()]
    if rare is not None:
        runs += [rare.by_rows[1], rare.by_updates[1]]
    return SeedJudgements(
        zero_shot=zero_shot,
        alone=own,
        alone_full=full,
        central=together[0],
        central_wide=together[1],
        methods=methods,
        with_adapters=own_models,
        rare=rare,
        worst_masking_error=max(run.masking_error for run in runs),
    )


def _judge_rare(arms: Arms, seed: int, rates: Rates, *, share: float) -> RareJudgements:
    """Two federations in which one domain has few records: sites weigh by their rows, or by updated shares."""
    domain = rare_domain_of(arms.sites)
    own = arms.with_rare(domain, share=share)

    def judged(method: FederatedMethod) -> tuple[Judgement, FederatedResult]:
        arms.say(f"seed {seed}: federation with {share:.0%} of all records in {domain}, weights {method.name}")
        trained, result = own.federated(method, seed=seed, rates=rates)
        return own.tested(trained, is_answered=False), result

    return RareJudgements(
        domain=domain, sites=own.sites, by_rows=judged(own.by_rows()), by_updates=judged(own.by_updates())
    )


def _by_site(sites: Sequence[Site], judged: Sequence[Judgement]) -> dict[str, Judgement]:
    return {site.name: one for site, one in zip(sites, judged, strict=True)}


def _macro(judged: Judgement) -> float:
    return macro(judged.of_domains())
