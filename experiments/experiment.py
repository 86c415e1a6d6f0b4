"""The experiment from start to end: rates chosen on validation, every arm of every seed, and the outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from experiments.arms import Arms, best_rate, side_by_side
from experiments.federation import FederatedResult
from experiments.judging import Judgement
from experiments.outcome import Goal, RareJudgements, SeedJudgements, SeedOutcome, goals_of, outcome_of
from experiments.presets import FederatedMethod
from experiments.sites import Site, rare_domain_of
from experiments.statistics import macro

CENTRAL: Final = "central"
CENTRAL_WIDE: Final = "central-wide"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The whole experiment. rates: what validation chose for each arm, on the first seed."""

    preset: str
    base_model: str
    base_model_digest: str
    sites: tuple[tuple[str, str, int], ...]
    rates: dict[str, float]
    seeds: tuple[SeedOutcome, ...]
    goals: tuple[Goal, ...]
    seconds: float


def run_experiment(arms: Arms) -> Outcome:
    """Everything that is not done yet; what lies finished in the arms' folders is taken as it is."""
    began, preset = time.monotonic(), arms.preset
    arms.prepare()
    rates = _chosen_rates(arms)
    seeds: list[SeedOutcome] = []
    for seed in preset.seeds:
        judged = _judge_seed(arms, seed, rates)
        seeds.append(outcome_of(seed, judged, arms.sites, resamples=preset.resamples))
        last = seeds[-1]
        gap = "none" if last.gap_closed is None else f"{last.gap_closed:.2f}"
        arms.say(f"seed {seed}: federated macro loss {last.methods[0].scores.macro_loss:.3f}, gap closed {gap}")
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


def _chosen_rates(arms: Arms) -> dict[str, float]:
    """For each arm the rate of its grid with the lowest macro loss on everybody's validation records, first seed."""
    seed, preset = arms.preset.seeds[0], arms.preset

    def alone(rate: float) -> float:
        trained = side_by_side(lambda site: arms.alone(site, seed=seed, rate=rate), arms.sites)
        own = [
            arms.validated(one, [site]).of_site(site.name).mean for one, site in zip(trained, arms.sites, strict=True)
        ]
        return sum(own) / len(own)

    def central(rate: float, *, is_wide: bool) -> float:
        return _macro(arms.validated(arms.central(seed=seed, rate=rate, is_wide=is_wide), arms.sites))

    def federated(method: FederatedMethod, rate: float) -> float:
        return _macro(arms.validated(arms.federated(method, seed=seed, rate=rate)[0], arms.sites))

    trials: dict[str, Callable[[float], float]] = {
        "alone": alone,
        CENTRAL: partial(central, is_wide=False),
        CENTRAL_WIDE: partial(central, is_wide=True),
    }
    grid = preset.alone_learning_rates
    # All at once: the last job of one rate would leave cores without work.
    pairs = [(arm, rate) for arm in trials for rate in grid] if len(grid) > 1 else []
    losses = dict(zip(pairs, side_by_side(lambda pair: trials[pair[0]](pair[1]), pairs), strict=True))

    def found(arm: str, rate: float) -> float:
        return losses[arm, rate]

    chosen = {arm: _chosen(arms, arm, grid, partial(found, arm)) for arm in trials}
    for method in preset.methods:
        chosen[method.name] = _chosen(arms, method.name, method.learning_rates, partial(federated, method))
    return chosen


def _chosen(arms: Arms, arm: str, grid: Sequence[float], loss_at: Callable[[float], float]) -> float:
    if len(grid) == 1:
        return grid[0]
    losses = {rate: loss_at(rate) for rate in grid}
    rate = best_rate(losses)
    table = ", ".join(f"{one:g}: {loss:.3f}" for one, loss in losses.items())
    arms.say(f"{arm}: learning rate {rate:g} of validation losses {table}")
    return rate


def _judge_seed(arms: Arms, seed: int, rates: Mapping[str, float]) -> SeedJudgements:
    """Train and judge every arm of a seed. What can be done side by side is."""
    preset, sites = arms.preset, arms.sites

    def alone(site: Site) -> Judgement:
        return arms.tested(arms.alone(site, seed=seed, rate=rates["alone"]), is_answered=False)

    def alone_full(site: Site) -> Judgement:
        return arms.tested(arms.alone_full(site, seed=seed, rate=rates["alone"]), is_answered=False)

    def central(name: str) -> Judgement:
        return arms.tested(arms.central(seed=seed, rate=rates[name], is_wide=name == CENTRAL_WIDE))

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
    methods: dict[str, tuple[float, Judgement, FederatedResult]] = {}
    for method in preset.methods:
        rate = rates[method.name]
        arms.say(
            f"seed {seed}: federation of {len(sites)} sites, {preset.budget.rounds} masked rounds of {method.name}"
        )
        trained, result = arms.federated(method, seed=seed, rate=rate)
        methods[method.name] = (rate, arms.tested(trained), result)
    own_models: dict[str, Judgement] = {}
    if preset.has_adapters:
        first = preset.methods[0]
        rate, _, result = methods[first.name]
        arms.say(f"seed {seed}: an adapter for each domain, and one for each site, on top of {first.name}'s")
        models = arms.with_adapters(first, beneath=result.digest, seed=seed, rate=rate)
        own_models = _by_site(sites, side_by_side(lambda site: arms.tested_at_home(models[site.name], site), sites))
    rare: RareJudgements | None = None
    if preset.rare_share is not None:
        rare = _judge_rare(arms, seed, rates[preset.methods[0].name], share=preset.rare_share)
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


def _judge_rare(arms: Arms, seed: int, rate: float, *, share: float) -> RareJudgements:
    """Two federations in which one domain has few records: sites weigh by their rows, or by updated shares."""
    domain = rare_domain_of(arms.sites)
    own = arms.with_rare(domain, share=share)

    def judged(method: FederatedMethod) -> tuple[Judgement, FederatedResult]:
        arms.say(f"seed {seed}: federation with {share:.0%} of all records in {domain}, weights {method.name}")
        trained, result = own.federated(method, seed=seed, rate=rate)
        return own.tested(trained, is_answered=False), result

    return RareJudgements(
        domain=domain, sites=own.sites, by_rows=judged(own.by_rows()), by_updates=judged(own.by_updates())
    )


def _by_site(sites: Sequence[Site], judged: Sequence[Judgement]) -> dict[str, Judgement]:
    return {site.name: one for site, one in zip(sites, judged, strict=True)}


def _macro(judged: Judgement) -> float:
    return macro(judged.of_domains())
