"""From judgements to results: the comparisons of the protocol, and whether what is claimed was reached. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from experiments.federation import FederatedResult
from experiments.judging import Judgement
from experiments.rates import Rates
from experiments.sites import Site
from experiments.statistics import Difference, gap_closed, macro, paired_difference, worst

GAP_WANTED: Final = 0.8
SITES_WANTED: Final = 0.8
NO_WORSE: Final = 1.0
METHOD_LOSS: Final = 1.01
RARE_LOSS: Final = 0.95
RARE_MACRO_LOSS: Final = 1.01
# To two digits: words of metrics and the evaluation round cost as much for each, and half of FedIT is exactly half.
METHOD_BYTES: Final[Mapping[str, float]] = {"ffa_lora": 0.51, "rolora": 0.50, "core": 0.09}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelScores:
    """One model on the union test. Losses in nats per answer token; by_domain: loss, and the task's own metric."""

    macro_loss: float
    worst_domain: str
    worst_loss: float
    loss: dict[str, float]
    accuracy: dict[str, float]
    f1: dict[str, float]
    rouge_l: dict[str, float]

    @classmethod
    def of(cls, judged: Judgement) -> ModelScores:
        losses = judged.of_domains()
        domain, loss = worst(losses)
        scores = {name: judged.scores_of(name) for name in losses}
        return cls(
            macro_loss=macro(losses),
            worst_domain=domain,
            worst_loss=loss,
            loss={name: one.mean for name, one in losses.items()},
            accuracy={name: one.accuracy for name, one in scores.items() if one.accuracy is not None},
            f1={name: one.f1 for name, one in scores.items() if one.f1 is not None},
            rouge_l={name: one.rouge_l for name, one in scores.items() if one.rouge_l is not None},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOutcome:
    """One federated method of one seed. ratios: to FedIT's macro loss and uploaded bytes.

    gap_closed: of that between the sites' own models and all records in one place; None where there is none.
    """

    name: str
    learning_rate: float
    schedule: str
    scores: ModelScores
    uploaded_bytes: int
    loss_ratio: float
    bytes_ratio: float
    gap_closed: float | None
    curve: tuple[tuple[int, int, dict[str, float]], ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteOutcome:
    """Is joining worth it for one site: losses on its own test records.

    alone_full: with everybody's budget and early stopping, None where that was not run.
    """

    site: str
    domain: str
    alone: float
    alone_full: float | None
    federated: float
    with_adapters: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RareOutcome:
    """A domain with few records, where sites weigh by their rows and where they weigh by updated shares.

    records: its part of all training records. last_share: what the updates have made of it, None where they had no
    sums of the domain. Ratios are of updated to rows: of the domain's loss, and of the macro loss.
    """

    domain: str
    records: float
    last_share: float | None
    by_rows: ModelScores
    by_updates: ModelScores
    loss_ratio: float
    macro_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedOutcome:
    """Everything of one seed. methods: the first is the federated model that others are compared with."""

    seed: int
    zero_shot: ModelScores
    alone: dict[str, ModelScores]
    alone_full: dict[str, ModelScores]
    central: ModelScores
    central_wide: ModelScores
    methods: tuple[MethodOutcome, ...]
    sites: tuple[SiteOutcome, ...]
    against_alone: dict[str, Difference]
    against_central: Difference
    rare: RareOutcome | None
    worst_masking_error: float

    @property
    def alone_macro_loss(self) -> float:
        """Mean over the sites' own models, each trained with its own share."""
        return sum(model.macro_loss for model in self.alone.values()) / len(self.alone)

    @property
    def arms(self) -> dict[str, list[ModelScores]]:
        """The models of each arm that was run: one, or one a site."""
        found = {
            "zero-shot": [self.zero_shot],
            "alone, own share": list(self.alone.values()),
            "alone, full budget": list(self.alone_full.values()),
            "central, small batches": [self.central],
            "central, large batches": [self.central_wide],
        }
        found |= {f"federated, {method.name}": [method.scores] for method in self.methods}
        return {name: models for name, models in found.items() if models}


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One of the numbers to be reached: what was wanted, what was found, and whether it was reached (None: not run)."""

    name: str
    wanted: str
    found: str
    is_reached: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RareJudgements:
    """The two runs of a federation whose `domain` has few records. sites: as they were there."""

    domain: str
    sites: tuple[Site, ...]
    by_rows: tuple[Judgement, FederatedResult]
    by_updates: tuple[Judgement, FederatedResult]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedJudgements:
    """The judgements of one seed, from which its outcome follows; by site where each site has a model of its own."""

    zero_shot: Judgement
    alone: Mapping[str, Judgement]
    alone_full: Mapping[str, Judgement]
    central: Judgement
    central_wide: Judgement
    methods: Mapping[str, tuple[Rates, Judgement, FederatedResult]]
    with_adapters: Mapping[str, Judgement]
    rare: RareJudgements | None
    worst_masking_error: float


def outcome_of(seed: int, judged: SeedJudgements, sites: Sequence[Site], *, resamples: int) -> SeedOutcome:
    """The comparisons of one seed. The federated model is the first method's."""
    _, federated, baseline = next(iter(judged.methods.values()))
    union = federated.of_domains()
    everyone_alone = {**judged.alone, **{f"{name} (full budget)": one for name, one in judged.alone_full.items()}}
    alone = sum(macro(one.of_domains()) for one in judged.alone.values()) / len(judged.alone)
    return SeedOutcome(
        seed=seed,
        zero_shot=ModelScores.of(judged.zero_shot),
        alone={name: ModelScores.of(one) for name, one in judged.alone.items()},
        alone_full={name: ModelScores.of(one) for name, one in judged.alone_full.items()},
        central=ModelScores.of(judged.central),
        central_wide=ModelScores.of(judged.central_wide),
        methods=tuple(
            MethodOutcome(
                name=name,
                learning_rate=rates.first,
                schedule=rates.schedule,
                scores=ModelScores.of(one),
                uploaded_bytes=result.uploaded_bytes,
                loss_ratio=macro(one.of_domains()) / macro(union),
                bytes_ratio=result.uploaded_bytes / baseline.uploaded_bytes,
                gap_closed=gap_closed(
                    alone=alone, federated=macro(one.of_domains()), central=macro(judged.central.of_domains())
                ),
                curve=_curve(result),
                seconds=result.seconds,
            )
            for name, (rates, one, result) in judged.methods.items()
        ),
        sites=tuple(
            SiteOutcome(
                site=site.name,
                domain=site.domain,
                alone=judged.alone[site.name].of_site(site.name).mean,
                alone_full=judged.alone_full[site.name].of_site(site.name).mean
                if site.name in judged.alone_full
                else None,
                federated=federated.of_site(site.name).mean,
                with_adapters=judged.with_adapters[site.name].of_site(site.name).mean
                if site.name in judged.with_adapters
                else None,
            )
            for site in sites
        ),
        against_alone={
            name: paired_difference(union, one.of_domains(), resamples=resamples, seed=seed)
            for name, one in everyone_alone.items()
        },
        against_central=paired_difference(union, judged.central.of_domains(), resamples=resamples, seed=seed),
        rare=_rare(judged.rare) if judged.rare is not None else None,
        worst_masking_error=judged.worst_masking_error,
    )


def _rare(judged: RareJudgements) -> RareOutcome:
    by_rows, by_updates = ModelScores.of(judged.by_rows[0]), ModelScores.of(judged.by_updates[0])
    own = sum(site.train_records for site in judged.sites if site.domain == judged.domain)
    return RareOutcome(
        domain=judged.domain,
        records=own / sum(site.train_records for site in judged.sites),
        last_share=judged.by_updates[1].rounds[-1].metrics.get(f"share/{judged.domain}"),
        by_rows=by_rows,
        by_updates=by_updates,
        loss_ratio=by_updates.loss[judged.domain] / by_rows.loss[judged.domain],
        macro_ratio=by_updates.macro_loss / by_rows.macro_loss,
    )


def _curve(result: FederatedResult) -> tuple[tuple[int, int, dict[str, float]], ...]:
    """(training rounds before, bytes uploaded before, validation loss by domain) of every adapter that was judged."""
    points: list[tuple[int, int, dict[str, float]]] = []
    trained = sent = 0
    for one in result.rounds:
        points.append((trained, sent, one.validation_loss))
        sent += one.uploaded_bytes
        trained += int(one.kind == "train")
    return tuple(points)


def goals_of(seeds: Sequence[SeedOutcome]) -> tuple[Goal, ...]:
    """What the experiment set out to reach. A comparison counts where all seeds are on the same side."""
    gaps = [seed.methods[0].gap_closed for seed in seeds]
    beaten = [difference.is_better for seed in seeds for difference in seed.against_alone.values()]
    known = [gap for gap in gaps if gap is not None]
    found = [
        Goal(
            name="(i) the global adapter beats every local-only model on the union test",
            wanted="the paired difference is below 0 with its whole 95 % interval, for every model and seed",
            found=f"{sum(beaten)} of {len(beaten)} models beaten",
            is_reached=all(beaten),
        ),
        Goal(
            name="(i) gap closed between local-only and centralised",
            wanted=f"at least {GAP_WANTED}",
            found=", ".join("no gap" if gap is None else f"{gap:.2f}" for gap in gaps),
            is_reached=len(known) == len(gaps) and all(gap >= GAP_WANTED for gap in known),
        ),
        _own_domain(seeds),
        Goal(
            name="(iii) masking changes nothing beyond the fixed point's bound",
            wanted="largest error of an element at most 1.0 of its bound",
            found=f"{max(seed.worst_masking_error for seed in seeds):.2f}",
            is_reached=max(seed.worst_masking_error for seed in seeds) <= NO_WORSE,
        ),
    ]
    methods = (_method(name, bytes_wanted, seeds) for name, bytes_wanted in METHOD_BYTES.items())
    return (*found, *methods, _rare_domain(seeds))


def _own_domain(seeds: Sequence[SeedOutcome]) -> Goal:
    sites = [site for seed in seeds for site in seed.sites]
    known = [site for site in sites if site.with_adapters is not None]
    good = [site for site in known if site.with_adapters is not None and site.with_adapters <= site.alone * NO_WORSE]
    plain = [site for site in sites if site.federated <= site.alone * NO_WORSE]
    return Goal(
        name="(ii) with domain and site adapters, own-domain loss no worse than local-only",
        wanted=f"at {SITES_WANTED:.0%} of sites or more",
        found=f"{len(good)} of {len(known)} with adapters, {len(plain)} of {len(sites)} with the global adapter alone",
        is_reached=len(good) >= SITES_WANTED * len(known) if known else None,
    )


def _method(name: str, most_bytes: float, seeds: Sequence[SeedOutcome]) -> Goal:
    found = [method for seed in seeds for method in seed.methods if method.name == name]
    return Goal(
        name=f"(iv) {name} against FedIT",
        wanted=f"loss at most {METHOD_LOSS:.2f}, bytes at most {most_bytes:.2f} of FedIT's",
        found=", ".join(f"loss {one.loss_ratio:.3f}, bytes {one.bytes_ratio:.3f}" for one in found) or "not run",
        is_reached=all(one.loss_ratio <= METHOD_LOSS and round(one.bytes_ratio, 2) <= most_bytes for one in found)
        if found
        else None,
    )


def _rare_domain(seeds: Sequence[SeedOutcome]) -> Goal:
    found = [seed.rare for seed in seeds if seed.rare is not None]
    return Goal(
        name="(v) a domain with few records gains by updated weights",
        wanted=f"loss at most {RARE_LOSS:.2f}, macro loss at most {RARE_MACRO_LOSS:.2f} of those by row-count weights",
        found=", ".join(f"{one.domain}: loss {one.loss_ratio:.3f}, macro loss {one.macro_ratio:.3f}" for one in found)
        or "not run",
        is_reached=all(one.loss_ratio <= RARE_LOSS and one.macro_ratio <= RARE_MACRO_LOSS for one in found)
        if found
        else None,
    )
