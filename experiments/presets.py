"""How large an experiment is: sites, budget, seeds, arms. The equal-token protocol's numbers are all here.

Every arm of one seed sees records of the same sites; N sites, R rounds, K steps of b records: a site's own share is
R K b records, the full budget N times that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from common.errors import InvalidArgument
from common.plan import CONSTANT_RATE, COSINE_RATE

ALL_RECORDS: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """One federated run's training. batch_size: records; max_length: tokens of a record."""

    rounds: int
    steps: int
    batch_size: int
    max_length: int

    @property
    def own_steps(self) -> int:
        """Optimiser steps of one site in a whole run: R K."""
        return self.rounds * self.steps


@dataclass(frozen=True, slots=True, kw_only=True)
class FederatedMethod:
    """A federated arm. learning_rates: the sites' grid; on the first seed's validation records the best is chosen.

    settings: further fields of the plan (method, server optimiser, ...), as the admin API takes them. from_base: the
    first adapter has bases from the base model's weights, by `accord-participant initial-adapter`.
    """

    name: str
    learning_rates: tuple[float, ...]
    settings: tuple[tuple[str, object], ...] = ()
    from_base: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """How many records a site trains on, keeps for validation, and is tested on; and which are too long to be used."""

    train: int
    validation: int
    test: int
    characters: int
    none_share: float = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """Of each site's test records: so many answered freely (dear: a pass for every token), instructions among them only
    where a text to answer from is given.

    round_records: of a site's validation records, so many judge the adapter of each round (as dear as a step's).
    """

    ner_records: int
    instruction_records: int
    max_new_tokens: int
    round_records: int = ALL_RECORDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One size of the experiment. sites: of each domain, at most so many; the first domains have the most.

    schedules: of a method's rate over the rounds; it is chosen with each of them, with the first from its whole grid.

    patience: of a site alone with the full budget: so many own shares without a better validation loss, and it stops.
    resamples: of the bootstrap. rare_share: of all training records, what one domain is left with where two ways of
    weighting sites are compared; None where they are not.
    """

    name: str
    sites: tuple[int, ...]
    seeds: tuple[int, ...]
    budget: Budget
    records: Records
    judging: Judging
    rank: int
    alpha: float
    server_learning_rate: float
    schedules: tuple[str, ...]
    methods: tuple[FederatedMethod, ...]
    alone_learning_rates: tuple[float, ...]
    has_full_budget_alone: bool
    has_adapters: bool
    rare_share: float | None = None
    patience: int = 2
    resamples: int = 2000

    def __post_init__(self) -> None:
        if not self.methods or self.methods[0].name != "fedit":
            raise InvalidArgument("the first method of a preset is fedit: the others are compared with it")
        if max(self.sites) < 3:
            raise InvalidArgument("a domain that gets an adapter needs at least 3 sites")
        if self.rare_share is not None and not 0.0 < self.rare_share < 1.0:
            raise InvalidArgument("rare_share must be over 0 and below 1")


_JUDGING: Final = Judging(ner_records=16, instruction_records=8, max_new_tokens=40)

TINY: Final = Preset(
    name="tiny",
    sites=(3, 1, 1),
    seeds=(1,),
    budget=Budget(rounds=2, steps=2, batch_size=2, max_length=384),
    records=Records(train=24, validation=6, test=6, characters=160),
    judging=Judging(ner_records=2, instruction_records=2, max_new_tokens=8),
    rank=4,
    alpha=8.0,
    server_learning_rate=1.0,
    schedules=(CONSTANT_RATE,),
    methods=(
        FederatedMethod(name="fedit", learning_rates=(5e-3,)),
        FederatedMethod(name="core", learning_rates=(5e-3,), settings=(("method", "core"),), from_base=True),
    ),
    alone_learning_rates=(5e-3,),
    has_full_budget_alone=True,
    has_adapters=True,
    rare_share=0.05,
    patience=1,
    resamples=200,
)

SMALL: Final = Preset(
    name="small",
    sites=(3, 3, 1, 1),
    seeds=(1,),
    budget=Budget(rounds=4, steps=6, batch_size=4, max_length=96),
    records=Records(train=240, validation=20, test=24, characters=240),
    judging=_JUDGING,
    rank=8,
    alpha=16.0,
    server_learning_rate=2.0,
    schedules=(CONSTANT_RATE,),
    methods=(FederatedMethod(name="fedit", learning_rates=(2e-3,)),),
    alone_learning_rates=(2e-3,),
    has_full_budget_alone=False,
    has_adapters=True,
)

FULL: Final = Preset(
    name="full",
    sites=(3, 3, 3, 3),
    seeds=(1, 2, 3),
    budget=Budget(rounds=10, steps=5, batch_size=4, max_length=128),
    records=Records(train=200, validation=30, test=50, characters=420),
    judging=Judging(ner_records=50, instruction_records=50, max_new_tokens=60, round_records=8),
    rank=8,
    alpha=16.0,
    server_learning_rate=2.0,
    schedules=(CONSTANT_RATE, COSINE_RATE),
    methods=(
        FederatedMethod(name="fedit", learning_rates=(1e-3, 2e-3, 4e-3)),
        FederatedMethod(name="ffa_lora", learning_rates=(2e-3, 4e-3, 8e-3), settings=(("method", "ffa_lora"),)),
        FederatedMethod(name="rolora", learning_rates=(2e-3, 4e-3, 8e-3), settings=(("method", "rolora"),)),
        FederatedMethod(
            name="core",
            learning_rates=(3e-3, 6e-3, 1e-2),
            settings=(("method", "core"), ("rank", 32), ("alpha", 64.0)),
            from_base=True,
        ),
    ),
    alone_learning_rates=(5e-4, 1e-3, 2e-3),
    has_full_budget_alone=True,
    has_adapters=True,
    rare_share=0.05,
)

PRESETS: Final = {preset.name: preset for preset in (TINY, SMALL, FULL)}


def preset_named(name: str) -> Preset:
    """Raises InvalidArgument with the names that there are."""
    try:
        return PRESETS[name]
    except KeyError:
        raise InvalidArgument(f"no preset is called {name!r}; there are {', '.join(PRESETS)}") from None
