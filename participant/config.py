"""participant.toml: where things are and what this machine gives, as one frozen value before anything starts.

Checks form and contradictions alone: whether files exist and hosts answer is preflight's. What the site agrees to is
in another file, which other people may own: `policy_file`.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from common.credentials import read_secret, with_credentials
from common.errors import ConfigInvalid, InvalidArgument
from common.http_listener import HttpTls
from common.log import LogForm
from common.rpc.channels import CLIENT_PING_SECONDS, LEAST_CLIENT_PING_SECONDS
from common.seeing import TLS_FILES, check_tls_files, checked_endpoint, http_tls
from participant.identity import IdentityFiles, IdentityFolder, OwnPki
from participant.network.dialling import POLL_SECONDS, Line
from participant.network.route import Route, by_environment, parse_proxy, straight_to
from participant.policy import Policy
from participant.toml_file import Address, DigestText, FilePath, Fraction, Source, StrictModel, load
from participant.training.job import (
    MAX_PROCESSES,
    DataFormat,
    DataSettings,
    Device,
    EvaluationSettings,
    Precision,
    Resources,
    Sharding,
)

# Whose credentials commands look for that are typed beside the running service.
UNIT: Final = "accord-participant.service"
# Values of coordinator.proxy that are no address: what the environment's variables say, and never one.
ENVIRONMENT: Final = "environment"
NO_PROXY: Final = "none"
# Firewalls and balancers commonly forget a connection that was quiet for a minute.
MOST_QUIET_SECONDS: Final = 55


def load_config(file: Path) -> ParticipantConfig:
    """Read participant.toml. Raises ConfigInvalid that lists every mistake with its path."""
    return load(file, ParticipantConfig)


def load_unpinned_config(file: Path) -> ParticipantConfig:
    """The same for what comes before the charter is pinned: enrolling, and fetching the charter to be pinned."""
    return load(file, ParticipantConfig, may_be_unpinned=True)


class CharterMode(StrEnum):
    """Whom the site believes about who takes part: its own pinned copy of the charter, or the coordinator."""

    PINNED = "pinned"
    COORDINATOR = "coordinator"


def _proxy(text: str) -> str:
    if text in (ENVIRONMENT, NO_PROXY):
        return text
    try:
        has_password = bool(parse_proxy(text).password)
    except InvalidArgument as error:
        raise ValueError(error.message) from None
    if has_password:
        raise ValueError("has a password in it; put that into a file of its own, which proxy_password_file names")
    return text


class CoordinatorConfig(StrictModel):
    """Where the coordinator is, if not where the join token said, and how it is dialled.

    proxy: "environment" (https_proxy, no_proxy), "none", or the URL of one that always counts. keepalive_seconds: how
    long a connection is left quiet; poll_seconds: how long the coordinator may leave a question open.
    """

    address: Address | None = None
    proxy: Annotated[str, AfterValidator(_proxy)] = ENVIRONMENT
    proxy_password_file: FilePath | None = None
    poll_seconds: Annotated[int, Field(ge=1, le=MOST_QUIET_SECONDS)] = POLL_SECONDS
    keepalive_seconds: Annotated[int, Field(ge=LEAST_CLIENT_PING_SECONDS, le=MOST_QUIET_SECONDS)] = CLIENT_PING_SECONDS

    @field_validator("proxy_password_file", mode="before")
    @classmethod
    def _credential(cls, value: object) -> object:
        return with_credentials(Path(value), unit=UNIT) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _password_has_a_user(self) -> Self:
        is_named = self.proxy not in (ENVIRONMENT, NO_PROXY)
        if self.proxy_password_file is not None and not (is_named and parse_proxy(self.proxy).user):
            raise ValueError('proxy_password_file needs a user in proxy, as in "http://user@proxy.example.org:3128"')
        return self

    def line(self, address: str) -> Line:
        """How the coordinator is dialled, of which the join token said that it is at `address`.

        Reads the proxy's password and the environment at this moment. Raises ConfigInvalid if either is of no use.
        """
        return self.line_to(self.address or address)

    def line_to(self, address: str) -> Line:
        """The same for exactly that address, as the first call at an enrolment's takes."""
        return Line(self._route(address), ping_seconds=self.keepalive_seconds, poll_seconds=self.poll_seconds)

    def _route(self, address: str) -> Route:
        if self.proxy == ENVIRONMENT:
            try:
                return by_environment(address)
            except InvalidArgument as error:
                raise ConfigInvalid(error.message) from error
        direct = straight_to(address)
        if self.proxy == NO_PROXY:
            return direct
        proxy = parse_proxy(self.proxy)
        if self.proxy_password_file is not None:
            password = read_secret(self.proxy_password_file, key="coordinator.proxy_password_file")
            proxy = replace(proxy, password=password)
        return replace(direct, proxy=proxy)


class CertificatesConfig(StrictModel):
    """Files of the site's own PKI, PEM, where sites do not enrol. They are read anew when they change.

    certificate: chain, leaf first, for accord://FEDERATION/participants/NAME. trust: CAs of the coordinator's. None of
    them is a credential of systemd's: those are copies of the service's start, and a renewed one would not be seen.
    """

    certificate: FilePath
    key: FilePath
    trust: FilePath


class CharterConfig(StrictModel):
    """Which charter holds."""

    mode: CharterMode = CharterMode.PINNED
    file: FilePath | None = None
    digest: DigestText | None = None

    @model_validator(mode="after")
    def _pinned_is_complete(self, info: ValidationInfo) -> Self:
        must_be_pinned = not (info.context or {}).get("may_be_unpinned", False)
        if must_be_pinned and self.mode is CharterMode.PINNED and (self.file is None or self.digest is None):
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
    nice: added to the daemon's niceness, and so to the training process's. processes: that a training job takes, one a
    device; sharding: "fsdp" for a base model that does not fit one device.
    """

    threads: PositiveInt = 1
    device: Device = Device.AUTO
    precision: Precision = Precision.AUTO
    micro_batch_size: PositiveInt = 8
    evaluation_batch_size: PositiveInt = 16
    checkpoint_every_steps: NonNegativeInt = 10
    memory_mebibytes: PositiveInt | None = None
    nice: Annotated[int, Field(ge=0, le=19)] = 0
    processes: Annotated[int, Field(ge=1, le=MAX_PROCESSES)] = 1
    sharding: Sharding = Sharding.NONE

    @model_validator(mode="after")
    def _shared_by_several(self) -> Self:
        if self.sharding is Sharding.FSDP and self.processes == 1:
            raise ValueError('sharding = "fsdp" shares the base model between processes; set processes over 1')
        return self

    def resources(self) -> Resources:
        """The same for the training process."""
        return Resources(
            threads=self.threads,
            device=self.device,
            precision=self.precision,
            micro_batch_size=self.micro_batch_size,
            evaluation_batch_size=self.evaluation_batch_size,
            checkpoint_every_steps=self.checkpoint_every_steps,
            processes=self.processes,
            sharding=self.sharding,
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
    """Where /metrics and /health are served. Port 0: nowhere.

    certificate, key, client_ca: PEM files for mutual TLS, all three or none; then /metrics is for who shows a
    certificate of that CA, and /health for everybody, as probes have none.
    """

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    certificate: FilePath | None = None
    key: FilePath | None = None
    client_ca: FilePath | None = None

    @field_validator(*TLS_FILES, mode="before")
    @classmethod
    def _credential(cls, value: object) -> object:
        return with_credentials(Path(value), unit=UNIT) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _files_are_complete(self) -> Self:
        check_tls_files(self.certificate, self.key, self.client_ca)
        return self

    @property
    def is_served(self) -> bool:
        return self.port != 0

    @property
    def tls(self) -> HttpTls | None:
        return http_tls(self.certificate, self.key, self.client_ca)


class TracingConfig(StrictModel):
    """Where spans go (OpenTelemetry, OTLP over gRPC); without an endpoint nothing is traced and nothing loaded for it.

    ca: whom the collector's certificate must come from, where not from the system's.
    """

    endpoint: Annotated[str, AfterValidator(checked_endpoint)] = ""
    ca: FilePath | None = None


class LogConfig(StrictModel):
    """How the log looks."""

    form: LogForm = LogForm.JSON
    level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def level_number(self) -> int:
        """As the standard library counts levels."""
        return logging.getLevelNamesMapping()[self.level.upper()]


class ParticipantConfig(StrictModel):
    """All of participant.toml. least_free_mebibytes: below it `check` fails, and no round is begun.

    journal_counter: a file where no backup of the state directory comes, so that a restored journal is told from the
    one that went on; in the state directory where it is not named.
    """

    state_directory: FilePath
    policy_file: FilePath
    base_models: Annotated[tuple[BaseModelConfig, ...], Field(min_length=1)]
    data: DataConfig
    charter: CharterConfig
    base_model_cache: FilePath | None = None
    journal_counter: FilePath | None = None
    least_free_mebibytes: NonNegativeInt = 1024
    coordinator: CoordinatorConfig = CoordinatorConfig()
    certificates: CertificatesConfig | None = None
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    metrics: MetricsConfig = MetricsConfig()
    tracing: TracingConfig = TracingConfig()
    log: LogConfig = LogConfig()

    @field_validator("base_models")
    @classmethod
    def _named_once(cls, models: tuple[BaseModelConfig, ...]) -> tuple[BaseModelConfig, ...]:
        sources = [model.source for model in models]
        twice = sorted({source for source in sources if sources.count(source) > 1})
        if twice:
            raise ValueError(f"names {', '.join(twice)} twice")
        return models

    @model_validator(mode="after")
    def _address_is_known(self) -> Self:
        if self.certificates is not None and self.coordinator.address is None:
            raise ValueError("certificates needs coordinator.address: without a join token nothing says whom to dial")
        return self

    @property
    def identity_directory(self) -> Path:
        """Key, certificate, trust bundle and address, as `accord-participant enroll` writes them."""
        return self.state_directory / "identity"

    @property
    def identity(self) -> IdentityFiles:
        """Where this site's identity is read: its own PKI's files, or what it was enrolled with."""
        files, address = self.certificates, self.coordinator.address
        if files is None or address is None:
            return IdentityFolder(self.identity_directory)
        return OwnPki(files.certificate, files.key, files.trust, address)

    @property
    def journal_file(self) -> Path:
        """What this site has done, as the daemon writes it."""
        return self.state_directory / "journal.sqlite"

    @property
    def counter_file(self) -> Path:
        """How far the journal is: what tells one that comes from a backup."""
        return self.journal_counter or self.state_directory / "journal.counter"

    @property
    def privacy_directory(self) -> Path:
        """Ledgers of what was told of single records, one a data set; the site's memory of its privacy budget."""
        return self.state_directory / "privacy"

    @property
    def lock_file(self) -> Path:
        """Held by the one daemon that may work in this state directory."""
        return self.state_directory / "lock"

    @property
    def adapters_directory(self) -> Path:
        """Global adapters as PEFT folders, one a digest."""
        return self.state_directory / "adapters"

    @property
    def cache_directory(self) -> Path:
        """Where converted and downloaded base models lie."""
        return self.base_model_cache or self.state_directory / "base-models"
