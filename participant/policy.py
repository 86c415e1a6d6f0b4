"""The site's policy: what this site agrees to, as values.

`config` reads them from policy.toml, `guard` holds everything that a coordinator asks for against them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from participant.hours import Hours

PLACEHOLDERS: Final = ("instruction", "input", "output", "domain")


@dataclass(frozen=True, slots=True)
class AdapterBounds:
    """modules: last parts of module paths that may be adapted, None for any. may_be_of_a_domain: whether this site
    trains domain adapters, whose sums are of the domain's sites alone.
    """

    most_rank: int
    modules: frozenset[str] | None = None
    most_parameters: int | None = None
    may_be_of_a_domain: bool = True


@dataclass(frozen=True, slots=True)
class MaskingBounds:
    """least_cohort: fewest sites whose sum may be opened. most_element_clip, most_update_norm: how much of this site's
    delta may get into it. least_colluders: how many sites must be assumed to work with the coordinator, None for any.
    """

    least_cohort: int
    most_element_clip: float
    most_update_norm: float
    least_colluders: int | None = None


@dataclass(frozen=True, slots=True)
class TrainingBounds:
    """Work of one round. Steps are optimiser steps, most_length is in tokens."""

    most_learning_rate: float
    most_steps_per_round: int
    most_batch_size: int
    most_length: int


@dataclass(frozen=True, slots=True)
class InstructionSetBounds:
    """What templates may hold: how many characters each, and which fields of a record."""

    most_template_characters: int
    placeholders: frozenset[str] = frozenset(PLACEHOLDERS)


@dataclass(frozen=True, slots=True)
class PrivacyBounds:
    """What may be told of single records, over all runs for ever; the unit is one record (one row of the data file).

    epsilon, delta: of all private training on the data set; delta None is 1 / (10 n). figures_epsilon: of all noisy
    figures about held-out records, None for any. most_epsilon_in_a_run: a plan that asks for more gets this much.
    must_train_privately, must_have_noisy_figures: a plan without is refused. data_set: whose ledger it is; a new name
    begins a new budget, which is right for new records alone.
    """

    epsilon: float
    delta: float | None = None
    figures_epsilon: float | None = None
    most_epsilon_in_a_run: float | None = None
    must_train_privately: bool = False
    must_have_noisy_figures: bool = False
    data_set: str = "records"


@dataclass(frozen=True, slots=True)
class DailyLimits:
    """In one calendar day of the site's time zone. None: no limit."""

    rounds: int | None = None
    upload_bytes: int | None = None
    download_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """What the site agrees to. base_models: digests, None for any. most_records: for training to see, None for all.

    privacy: None for no budget; what private training spends is counted all the same.
    """

    base_models: frozenset[str] | None
    methods: frozenset[str]
    adapter: AdapterBounds
    masking: MaskingBounds
    training: TrainingBounds
    most_rounds_in_a_run: int
    instruction_set: InstructionSetBounds
    daily: DailyLimits
    hours: Hours
    most_records: int | None = None
    privacy: PrivacyBounds | None = None
