"""policy.toml: what the site agrees to, as its people write it. Becomes a `Policy` before anything else sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal
from zoneinfo import ZoneInfo

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from common.errors import InvalidArgument
from common.identifiers import parse_id
from common.methods import METHODS
from participant.hours import Hours, parse_opening
from participant.policy import (
    PLACEHOLDERS,
    AdapterBounds,
    DailyLimits,
    InstructionSetBounds,
    MaskingBounds,
    Policy,
    PrivacyBounds,
    TrainingBounds,
)
from participant.toml_file import DigestText, StrictModel, load

_MEBIBYTE: Final = 1024 * 1024


def load_policy(file: Path) -> Policy:
    """Read policy.toml. Raises ConfigInvalid that lists every mistake with its path."""
    return load(file, PolicyFile).policy()


class _BaseModelsPolicy(StrictModel):
    allow: Literal["any"] | Annotated[tuple[DigestText, ...], Field(min_length=1)]


class _AdapterPolicy(StrictModel):
    most_rank: PositiveInt
    modules: Literal["any"] | Annotated[tuple[str, ...], Field(min_length=1)] = "any"
    most_parameters: PositiveInt | None = None
    domain_adapters: bool = True


class _MaskingPolicy(StrictModel):
    least_cohort: Annotated[int, Field(ge=3)]
    most_element_clip: PositiveFloat
    most_update_norm: PositiveFloat
    least_colluders: NonNegativeInt | None = None


class _TrainingPolicy(StrictModel):
    most_learning_rate: PositiveFloat
    most_steps_per_round: PositiveInt
    most_batch_size: PositiveInt
    most_length: Annotated[int, Field(ge=8)]


class _RoundsPolicy(StrictModel):
    most_in_a_run: PositiveInt
    most_in_a_day: PositiveInt | None = None


class _TransferPolicy(StrictModel):
    most_upload_mebibytes_a_day: PositiveInt | None = None
    most_download_mebibytes_a_day: PositiveInt | None = None


class _DataPolicy(StrictModel):
    most_records: PositiveInt | None = None


class _InstructionSetPolicy(StrictModel):
    most_template_characters: PositiveInt = 2000
    placeholders: tuple[str, ...] = PLACEHOLDERS

    @field_validator("placeholders")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(names) - set(PLACEHOLDERS))
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is no placeholder; there are {', '.join(PLACEHOLDERS)}")
        return names


class _HoursPolicy(StrictModel):
    time_zone: str = "UTC"
    allow: Annotated[tuple[str, ...], Field(min_length=1)] = ("mon-sun 00:00-24:00",)

    @field_validator("time_zone")
    @classmethod
    def _is_known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            raise ValueError(
                f"{name!r} is not a time zone that this system knows; use one like Europe/Zurich or UTC "
                "(on a minimal system, install the package tzdata)"
            ) from None
        return name

    @field_validator("allow")
    @classmethod
    def _can_be_read(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            parse_opening(text)
        return texts


class _PrivacyPolicy(StrictModel):
    epsilon: PositiveFloat
    delta: Annotated[float, Field(gt=0, le=1e-3)] | None = None
    unit: Literal["record"] = "record"
    figures_epsilon: PositiveFloat | None = None
    most_epsilon_in_a_run: PositiveFloat | None = None
    require: tuple[Literal["training", "figures"], ...] = ()
    data_set: str = "records"

    @field_validator("data_set")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        try:
            return parse_id(name, field="data_set")
        except InvalidArgument as error:
            raise ValueError(error.message) from error

    def bounds(self) -> PrivacyBounds:
        return PrivacyBounds(
            epsilon=self.epsilon,
            delta=self.delta,
            figures_epsilon=self.figures_epsilon,
            most_epsilon_in_a_run=self.most_epsilon_in_a_run,
            must_train_privately="training" in self.require,
            must_have_noisy_figures="figures" in self.require,
            data_set=self.data_set,
        )


class PolicyFile(StrictModel):
    """All of policy.toml, as written. What a site must decide has no default."""

    base_models: _BaseModelsPolicy
    adapter: _AdapterPolicy
    masking: _MaskingPolicy
    training: _TrainingPolicy
    rounds: _RoundsPolicy
    # All sum deltas of an adapter and nothing else, so a site need not choose among them.
    methods: Annotated[tuple[str, ...], Field(min_length=1)] = tuple(METHODS)
    instruction_set: _InstructionSetPolicy = _InstructionSetPolicy()
    data: _DataPolicy = _DataPolicy()
    transfer: _TransferPolicy = _TransferPolicy()
    hours: _HoursPolicy = _HoursPolicy()
    privacy: _PrivacyPolicy | None = None

    def policy(self) -> Policy:
        """The same for the guard."""
        return Policy(
            base_models=_set_or_any(self.base_models.allow),
            methods=frozenset(self.methods),
            adapter=AdapterBounds(
                most_rank=self.adapter.most_rank,
                modules=_set_or_any(self.adapter.modules),
                most_parameters=self.adapter.most_parameters,
                may_be_of_a_domain=self.adapter.domain_adapters,
            ),
            masking=MaskingBounds(
                least_cohort=self.masking.least_cohort,
                most_element_clip=self.masking.most_element_clip,
                most_update_norm=self.masking.most_update_norm,
                least_colluders=self.masking.least_colluders,
            ),
            training=TrainingBounds(
                most_learning_rate=self.training.most_learning_rate,
                most_steps_per_round=self.training.most_steps_per_round,
                most_batch_size=self.training.most_batch_size,
                most_length=self.training.most_length,
            ),
            most_rounds_in_a_run=self.rounds.most_in_a_run,
            instruction_set=InstructionSetBounds(
                most_template_characters=self.instruction_set.most_template_characters,
                placeholders=frozenset(self.instruction_set.placeholders),
            ),
            most_records=self.data.most_records,
            privacy=None if self.privacy is None else self.privacy.bounds(),
            daily=DailyLimits(
                rounds=self.rounds.most_in_a_day,
                upload_bytes=_bytes(self.transfer.most_upload_mebibytes_a_day),
                download_bytes=_bytes(self.transfer.most_download_mebibytes_a_day),
            ),
            hours=Hours(
                time_zone=ZoneInfo(self.hours.time_zone),
                openings=tuple(opening for text in self.hours.allow for opening in parse_opening(text)),
            ),
        )


def _set_or_any(allowed: Literal["any"] | tuple[str, ...]) -> frozenset[str] | None:
    return None if isinstance(allowed, str) else frozenset(allowed)


def _bytes(mebibytes: int | None) -> int | None:
    return None if mebibytes is None else mebibytes * _MEBIBYTE
