"""The participant's configuration: two TOML files, each read into one frozen value before anything starts.

`participant.toml` says where things are and what this machine gives; `policy.toml` says what the site agrees to and
becomes a `Policy`. Checks form and contradictions alone: whether files exist and hosts answer is preflight's.
"""

from __future__ import annotations

import difflib
import logging
import re
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from common.errors import ConfigInvalid
from common.log import LogForm
from participant.hours import Hours, parse_opening
from participant.policy import (
    PLACEHOLDERS,
    AdapterBounds,
    DailyLimits,
    InstructionSetBounds,
    MaskingBounds,
    Policy,
    TrainingBounds,
)
from participant.training.job import DataFormat, DataSettings, Device, EvaluationSettings, Precision, Resources

HUB_PREFIX: Final = "hub:"
_MEBIBYTE: Final = 1024 * 1024
_ADDRESS: Final = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class CharterMode(StrEnum):
    """Whom the site believes about who takes part: its own pinned copy of the charter, or the coordinator."""

    PINNED = "pinned"
    COORDINATOR = "coordinator"


# --- kinds of value ------------------------------------------------------------------------------------------------


def _path(value: Path, info: ValidationInfo) -> Path:
    """Relative paths are relative to the file that names them, wherever the command is run."""
    folder: Path = (info.context or {}).get("folder", Path.cwd())
    return folder / value.expanduser()


def _source(value: str, info: ValidationInfo) -> str:
    if not value.strip():
        raise ValueError("is empty; name a folder, a .gguf file, or hub:owner/name")
    return value if value.startswith(HUB_PREFIX) else str(_path(Path(value), info))


def _address(value: str) -> str:
    match = _ADDRESS.fullmatch(value)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise ValueError(f"{value!r} is not host:port, such as accord.example.org:7443")
    return value


def _digest(value: str) -> str:
    if not _DIGEST.fullmatch(value):
        raise ValueError("is not a digest; it has 64 lower-case hex digits (SHA-256)")
    return value


FilePath = Annotated[Path, AfterValidator(_path)]
Source = Annotated[str, AfterValidator(_source)]
Address = Annotated[str, AfterValidator(_address)]
DigestText = Annotated[str, AfterValidator(_digest)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class StrictModel(BaseModel):
    """Frozen, and a key that nobody reads is a mistake: most are misspelled."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


# --- participant.toml ----------------------------------------------------------------------------------------------


class CoordinatorConfig(StrictModel):
    """Where the coordinator is, if not where the join token said."""

    address: Address | None = None


class CharterConfig(StrictModel):
    """Which charter holds."""

    mode: CharterMode = CharterMode.PINNED
    file: FilePath | None = None
    digest: DigestText | None = None

    @model_validator(mode="after")
    def _pinned_is_complete(self) -> Self:
        if self.mode is CharterMode.PINNED and (self.file is None or self.digest is None):
            raise ValueError(
                "mode is pinned, which needs file and digest; `accord-participant charter pin` writes the file and "
                'prints the digest. (mode = "coordinator" trusts the coordinator about who takes part: for trials only)'
            )
        if self.mode is CharterMode.COORDINATOR and self.digest is not None:
            raise ValueError('digest is only compared with mode = "pinned"; remove the one or change the other')
        return self


class BaseModelConfig(StrictModel):
    """One base model that this site can train.

    source: a folder of safetensors, a .gguf file, or hub:owner/name[@revision]. digest: what it must come to.
    """

    source: Source
    digest: DigestText | None = None


class DataConfig(StrictModel):
    """This site's records."""

    train_file: FilePath
    train_format: DataFormat = DataFormat.AUTO
    held_out_file: FilePath | None = None
    held_out_format: DataFormat = DataFormat.AUTO
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    default_domain: Annotated[str, Field(min_length=1, max_length=200)] = "general"
    most_train_records: NonNegativeInt = 0
    most_none_fraction: Fraction = 1.0

    def settings(self, policy: Policy) -> DataSettings:
        """What the training process reads; the policy's limit on records counts too."""
        limits = [limit for limit in (self.most_train_records, policy.most_records or 0) if limit]
        return DataSettings(
            train_path=self.train_file,
            train_format=self.train_format,
            held_out_path=self.held_out_file,
            held_out_format=self.held_out_format,
            held_out_fraction=self.held_out_fraction,
            train_limit=min(limits, default=0),
            max_none_fraction=self.most_none_fraction,
            default_domain=self.default_domain,
        )


class TrainingConfig(StrictModel):
    """What this machine gives to training.

    memory_mebibytes: what `check` compares the base model's needs with, where it should be less than the machine has.
    nice: added to the daemon's niceness, and so to the training process's.
    """

    threads: PositiveInt = 1
    device: Device = Device.AUTO
    precision: Precision = Precision.AUTO
    micro_batch_size: PositiveInt = 8
    evaluation_batch_size: PositiveInt = 16
    checkpoint_every_steps: NonNegativeInt = 10
    memory_mebibytes: PositiveInt | None = None
    nice: Annotated[int, Field(ge=0, le=19)] = 0

    def resources(self) -> Resources:
        """The same for the training process."""
        return Resources(
            threads=self.threads,
            device=self.device,
            precision=self.precision,
            micro_batch_size=self.micro_batch_size,
            evaluation_batch_size=self.evaluation_batch_size,
            checkpoint_every_steps=self.checkpoint_every_steps,
        )


class EvaluationConfig(StrictModel):
    """How much of the held-out records is used, per domain and task; 0: none."""

    loss_records: NonNegativeInt = 200
    ner_records: NonNegativeInt = 100
    instruction_records: NonNegativeInt = 0
    max_new_tokens: PositiveInt = 96

    def settings(self) -> EvaluationSettings:
        """The same for the training process."""
        return EvaluationSettings(
            loss_records=self.loss_records,
            ner_records=self.ner_records,
            instruction_records=self.instruction_records,
            max_new_tokens=self.max_new_tokens,
        )


class MetricsConfig(StrictModel):
    """Where /metrics and /health are served. Port 0: nowhere."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 0

    @property
    def is_served(self) -> bool:
        return self.port != 0


class LogConfig(StrictModel):
    """How the log looks."""

    form: LogForm = LogForm.JSON
    level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def level_number(self) -> int:
        """As the standard library counts levels."""
        return logging.getLevelNamesMapping()[self.level.upper()]


class ParticipantConfig(StrictModel):
    """All of participant.toml. least_free_mebibytes: below it `check` fails, and no round is begun."""

    state_directory: FilePath
    policy_file: FilePath
    base_models: Annotated[tuple[BaseModelConfig, ...], Field(min_length=1)]
    data: DataConfig
    charter: CharterConfig
    base_model_cache: FilePath | None = None
    least_free_mebibytes: NonNegativeInt = 1024
    coordinator: CoordinatorConfig = CoordinatorConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    metrics: MetricsConfig = MetricsConfig()
    log: LogConfig = LogConfig()

    @field_validator("base_models")
    @classmethod
    def _named_once(cls, models: tuple[BaseModelConfig, ...]) -> tuple[BaseModelConfig, ...]:
        sources = [model.source for model in models]
        twice = sorted({source for source in sources if sources.count(source) > 1})
        if twice:
            raise ValueError(f"names {', '.join(twice)} twice")
        return models

    @property
    def identity_directory(self) -> Path:
        """Key, certificate, trust bundle and address, as `accord-participant enroll` writes them."""
        return self.state_directory / "identity"

    @property
    def journal_file(self) -> Path:
        """What this site has done, as the daemon writes it."""
        return self.state_directory / "journal.sqlite"

    @property
    def cache_directory(self) -> Path:
        """Where converted and downloaded base models lie."""
        return self.base_model_cache or self.state_directory / "base-models"


# --- policy.toml ---------------------------------------------------------------------------------------------------


class _BaseModelsPolicy(StrictModel):
    allow: Literal["any"] | Annotated[tuple[DigestText, ...], Field(min_length=1)]


class _AdapterPolicy(StrictModel):
    most_rank: PositiveInt
    modules: Literal["any"] | Annotated[tuple[str, ...], Field(min_length=1)] = "any"
    most_parameters: PositiveInt | None = None


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


class PolicyFile(StrictModel):
    """All of policy.toml, as written. What a site must decide has no default."""

    base_models: _BaseModelsPolicy
    adapter: _AdapterPolicy
    masking: _MaskingPolicy
    training: _TrainingPolicy
    rounds: _RoundsPolicy
    methods: Annotated[tuple[str, ...], Field(min_length=1)] = ("fedit",)
    instruction_set: _InstructionSetPolicy = _InstructionSetPolicy()
    data: _DataPolicy = _DataPolicy()
    transfer: _TransferPolicy = _TransferPolicy()
    hours: _HoursPolicy = _HoursPolicy()

    def policy(self) -> Policy:
        """The same for the guard."""
        return Policy(
            base_models=_set_or_any(self.base_models.allow),
            methods=frozenset(self.methods),
            adapter=AdapterBounds(
                most_rank=self.adapter.most_rank,
                modules=_set_or_any(self.adapter.modules),
                most_parameters=self.adapter.most_parameters,
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


# --- reading -------------------------------------------------------------------------------------------------------

M = TypeVar("M", bound=StrictModel)


def load_config(file: Path) -> ParticipantConfig:
    """Read participant.toml. Raises ConfigInvalid that lists every mistake with its path."""
    return _load(file, ParticipantConfig)


def load_policy(file: Path) -> Policy:
    """Read policy.toml. Raises ConfigInvalid that lists every mistake with its path."""
    return _load(file, PolicyFile).policy()


def _load(file: Path, model: type[M]) -> M:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigInvalid(f"cannot read {file}: {error.strerror}") from error
    try:
        values = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{file} is not TOML: {error}") from error
    try:
        return model.model_validate(values, context={"folder": file.resolve().parent})
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        lines = "\n".join(f"  {_told(mistake, values, model)}" for mistake in mistakes)
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise ConfigInvalid(f"{file} has {count}:\n{lines}") from error


def _told(mistake: ErrorDetails, values: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One mistake in a person's words: where, and what to write instead."""
    # A union names its branches in the location; only what stands in the file helps to find it.
    where = [part for part in mistake["loc"] if isinstance(part, int) or not re.search(r"[\[\]()-]", part)]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")
    match mistake["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(str(where[-1]), _settings_beside(where, model), n=1)
            return f"{path}: there is no such setting" + (f"; did you mean {near[0]}?" if near else "")
        case "missing":
            return f"{path}: is missing"
        case "value_error":
            return f"{path or 'file'}: {mistake['ctx']['error']}"
        case _:
            return f"{path}: {mistake['msg']}"


def _settings_beside(where: list[int | str], model: type[BaseModel]) -> list[str]:
    """Names that the section of a misspelled one has."""
    for part in where[:-1]:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            inner = [annotation, *getattr(annotation, "__args__", ())]
            model = next((kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return list(model.model_fields)
