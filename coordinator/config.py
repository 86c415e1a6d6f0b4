"""The coordinator's configuration: one TOML file, read once into one frozen object.

Every mistake is reported at once, with its path. Code gets the values it needs from here, never the whole object.
"""

from __future__ import annotations

import logging
import re
import tomllib
from enum import Enum
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from common.credentials import read_secret, with_credentials
from common.errors import ConfigInvalid, InvalidArgument
from common.http_listener import HttpTls
from common.identifiers import parse_federation_id
from common.log import LogForm
from common.seeing import TLS_FILES, check_tls_files, checked_endpoint, http_tls
from coordinator.store.s3_settings import S3Settings
from coordinator.uploads import MOST_KEPT_ROUNDS

MEBIBYTE: Final = 1024 * 1024
LISTENERS_FILE: Final = "listeners.json"
# Whose credentials commands look for that are typed beside the running service.
UNIT: Final = "accord-coordinator.service"
CERTIFICATE_FILES: Final = ("certificate", "key", "participant_cas", "operator_cas")
LOCAL_NAMES: Final = ("localhost", "127.0.0.1")
_ADDRESS: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/]+):(?P<port>\d{1,5})")


class StrictModel(BaseModel):
    """Frozen; an unknown key is a mistake, because it is most often a misspelt one."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, hide_input_in_errors=True)


def _federation(text: str) -> str:
    try:
        return parse_federation_id(text)
    except InvalidArgument as error:
        raise ValueError(error.message) from None


def _address(text: str) -> str:
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        raise ValueError('write HOST:PORT, such as "0.0.0.0:8443" or "[::]:8443"; port 0 takes any free port')
    return text


def _address_or_empty(text: str) -> str:
    return _address(text) if text else text


def _url(text: str) -> str:
    if text and "://" not in text:
        raise ValueError('write a URL, such as "sqlite:////folder/file" or "file:///folder"; a path alone is not one')
    return text


Address = Annotated[str, AfterValidator(_address)]
OptionalAddress = Annotated[str, AfterValidator(_address_or_empty)]
Days = Annotated[int, Field(ge=1, le=3650)]


class DatabaseConfig(StrictModel):
    """Where rows lie; which URLs there are is known to the store. An empty one is SQLite in the data folder.

    url_file: a file with the URL on its first line, instead: a credential of the service, say.
    """

    url: Annotated[str, AfterValidator(_url)] = Field(default="", repr=False)  # may hold a password
    url_file: Path | None = None
    migrate_on_start: bool = True

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        if self.url and self.url_file is not None:
            raise ValueError("url and url_file are two answers to one question; leave out one")
        return self


class BlobsConfig(StrictModel):
    """Where masked uploads and adapters lie. An empty url is a folder in the data folder.

    kept_rounds: uploads of so many newest rounds of a run are kept, the open one among them, so that its members can
    audit what was summed. Each takes the size of an upload for every member on disk.
    The rest is for s3:// (docs/operations-blobs.md). credentials_file: in the form of AWS's; without one the
    environment has the keys, or the host's role. ca_file: PEM bundle of the CAs that may certify the endpoint.
    """

    url: Annotated[str, AfterValidator(_url)] = ""
    endpoint: Annotated[str, AfterValidator(_url)] = Field(default="", repr=False)  # someone may put keys into it
    region: str = ""
    credentials_file: Path | None = None
    ca_file: Path | None = None
    addressing: Literal["", "path", "virtual"] = ""
    kept_rounds: Annotated[int, Field(ge=2, le=MOST_KEPT_ROUNDS)] = 3


class PublicListenerConfig(StrictModel):
    """A listener that partners dial; `public_address` is what join tokens tell them to dial."""

    listen: Address
    public_address: OptionalAddress = ""


class AdminConfig(StrictModel):
    """The operators' listener: mTLS with operator certificates, reflection on."""

    listen: Address = "127.0.0.1:8445"
    reflection: bool = True


class HealthConfig(StrictModel):
    """Plaintext listeners for probes and Prometheus; keep them inside the host or the cluster. Empty turns one off."""

    http: OptionalAddress = "127.0.0.1:8080"
    grpc: OptionalAddress = "127.0.0.1:8081"


class WebConfig(StrictModel):
    """The web page: HTTPS for browsers, read-only. Empty turns it off.

    tokens: whether web tokens let people in beside operators' certificates.
    """

    listen: OptionalAddress = ""
    tokens: bool = True


class MetricsConfig(StrictModel):
    """A listener for /metrics alone. Where it is set, the plaintext health listener shows no metrics any more.

    certificate, key, client_ca: PEM files for mutual TLS, all three or none; then who scrapes shows a certificate of
    that CA.
    """

    listen: OptionalAddress = ""
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None

    @model_validator(mode="after")
    def _files_are_complete(self) -> Self:
        check_tls_files(self.certificate, self.key, self.client_ca)
        if self.certificate is not None and not self.listen:
            raise ValueError("certificate, key and client_ca are for a listener of its own; set metrics.listen, too")
        return self

    @property
    def tls(self) -> HttpTls | None:
        return http_tls(self.certificate, self.key, self.client_ca)


class TracingConfig(StrictModel):
    """Where spans go (OpenTelemetry, OTLP over gRPC); without an endpoint nothing is traced and nothing loaded for it.

    ca: whom the collector's certificate must come from, where not from the system's.
    """

    endpoint: Annotated[str, AfterValidator(checked_endpoint)] = ""
    ca: Path | None = None


class PkiMode(Enum):
    """Who signs certificates."""

    OWN = "own"
    FILES = "files"


class CertificatesConfig(StrictModel):
    """The coordinator's own small CA (`own`), or files of an organisation's PKI (`files`).

    host_names: DNS names and IP addresses in the coordinator's certificate; what partners dial must be among them.
    participant_cas, operator_cas: PEM bundles of the CAs whose certificates count on one listener and on the other.
    They are apart because a partner's CA must not be able to make an operator.
    """

    mode: PkiMode = PkiMode.OWN
    host_names: tuple[Annotated[str, Field(min_length=1, max_length=253)], ...] = LOCAL_NAMES
    participant_days: Days = 30
    operator_days: Days = 90
    certificate: Path | None = None
    key: Path | None = None
    participant_cas: Path | None = None
    operator_cas: Path | None = None

    @model_validator(mode="after")
    def _files_go_with_their_mode(self) -> Self:
        files = {name: getattr(self, name) for name in CERTIFICATE_FILES}
        if self.mode is PkiMode.FILES:
            missing = [name for name, path in files.items() if path is None]
            if missing:
                raise ValueError(f'mode = "files" also needs {", ".join(missing)}')
        else:
            given = [name for name, path in files.items() if path is not None]
            if given:
                raise ValueError(f'{", ".join(given)}: only with mode = "files"; leave out, or set the mode')
        return self


class KeysConfig(StrictModel):
    """The keys that all replicas of a coordinator share, in one folder: signing-key.pem and, with the own CA, ca.pem,
    ca.key, trusted/ and revoked.txt. While the coordinator serves it may be read-only, a mounted secret, say.

    Without one a coordinator has its keys in its data folder.
    """

    folder: Path | None = None


class LogConfig(StrictModel):
    """How much is logged, and how it looks."""

    format: Literal["json", "console"] = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def form(self) -> LogForm:
        return LogForm(self.format)

    @property
    def level_number(self) -> int:
        return logging.getLevelNamesMapping()[self.level.upper()]


class LimitsConfig(StrictModel):
    """Bounds on what one caller can make the coordinator hold or do.

    open_calls: of one caller at once, on one listener. connections: of all callers on one listener;
    connections_per_address: of one network address on all of them, 0 for any number (behind a balancer all come from
    its address, so limit them there). connections_per_caller: of one certificate's name on all of them.
    recorded_calls_per_minute, recorded_burst: calls that each leave a line in the audit log.
    """

    message_bytes: Annotated[int, Field(ge=2 * MEBIBYTE, le=64 * MEBIBYTE)] = 4 * MEBIBYTE
    streams_per_connection: Annotated[int, Field(ge=4, le=10_000)] = 100
    upload_bytes: Annotated[int, Field(ge=MEBIBYTE)] = 8 * 1024 * MEBIBYTE
    calls_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 50.0
    calls_burst: Annotated[int, Field(ge=1)] = 200
    recorded_calls_per_minute: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0
    recorded_burst: Annotated[int, Field(ge=1)] = 100
    open_calls: Annotated[int, Field(ge=8, le=10_000)] = 64
    connections: Annotated[int, Field(ge=16, le=1_000_000)] = 4096
    connections_per_address: Annotated[int, Field(ge=0, le=1_000_000)] = 256
    connections_per_caller: Annotated[int, Field(ge=4, le=10_000)] = 32
    stop_grace_seconds: Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)] = 10.0


class Config(StrictModel):
    """All of `coordinator.toml`. Relative paths are relative to the file's folder."""

    federation: Annotated[str, AfterValidator(_federation)]
    data_folder: Path
    database: DatabaseConfig = DatabaseConfig()
    blobs: BlobsConfig = BlobsConfig()
    participants: PublicListenerConfig = PublicListenerConfig(listen="0.0.0.0:8443")
    enrollment: PublicListenerConfig = PublicListenerConfig(listen="0.0.0.0:8444")
    admin: AdminConfig = AdminConfig()
    health: HealthConfig = HealthConfig()
    web: WebConfig = WebConfig()
    metrics: MetricsConfig = MetricsConfig()
    tracing: TracingConfig = TracingConfig()
    certificates: CertificatesConfig = CertificatesConfig()
    keys: KeysConfig = KeysConfig()
    log: LogConfig = LogConfig()
    limits: LimitsConfig = LimitsConfig()

    @model_validator(mode="after")
    def _listeners_are_distinct(self) -> Self:
        addresses = [
            address
            for address in (
                self.participants.listen,
                self.enrollment.listen,
                self.admin.listen,
                self.health.http,
                self.health.grpc,
                self.web.listen,
                self.metrics.listen,
            )
            if address and not address.endswith(":0")
        ]
        doubled = sorted({address for address in addresses if addresses.count(address) > 1})
        if doubled:
            raise ValueError(f"two listeners share {', '.join(doubled)}; each needs a port of its own")
        return self

    @property
    def database_url(self) -> str:
        """Raises ConfigInvalid if it lies in a file that cannot be read."""
        if self.database.url_file is not None:
            url = read_secret(self.database.url_file, key="database.url_file")
            if "://" not in url:
                raise ConfigInvalid(f"database.url_file: what {self.database.url_file} holds is not a URL")
            return url
        return self.database.url or f"sqlite:///{self.data_folder / 'coordinator.sqlite'}"

    @property
    def blobs_url(self) -> str:
        return self.blobs.url or (self.data_folder / "blobs").as_uri()

    @property
    def s3(self) -> S3Settings:
        """How the bucket is reached, where blobs_url is one."""
        blobs = self.blobs
        return S3Settings(blobs.endpoint, blobs.region, blobs.credentials_file, blobs.ca_file, blobs.addressing)

    @property
    def scratch_folder(self) -> Path:
        """Files that may vanish when the process does."""
        return self.data_folder / "scratch"

    @property
    def host_names(self) -> tuple[str, ...]:
        """Names for the coordinator's certificate. Tools on its own host dial it by the local ones."""
        return tuple(dict.fromkeys((*self.certificates.host_names, *LOCAL_NAMES)))

    @property
    def pki_folder(self) -> Path:
        """The CA, and whose certificates count."""
        return self.keys.folder or self.server_folder

    @property
    def server_folder(self) -> Path:
        """The listeners' own certificate: each replica issues itself one."""
        return self.data_folder / "pki"

    @property
    def signing_key_file(self) -> Path:
        """The Ed25519 key that signs manifests and the masked part's start messages."""
        return (self.keys.folder or self.data_folder) / "signing-key.pem"

    @property
    def operators_folder(self) -> Path:
        return self.data_folder / "operators"

    @property
    def listeners_file(self) -> Path:
        """Where `serve` writes the addresses that it really listens on."""
        return self.data_folder / LISTENERS_FILE


def load_config(path: Path) -> Config:
    """Read and check a configuration file. Raises ConfigInvalid that lists every mistake with its path."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigInvalid(
            f"cannot read {path}: {error.strerror}; `accord-coordinator init` writes an example"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigInvalid(f"{path} is not UTF-8 text") from error
    return parse_config(text, folder=path.resolve().parent, name=str(path))


def parse_config(text: str, *, folder: Path, name: str = "configuration") -> Config:
    """Check the text of a configuration file; `folder` is what relative paths are relative to. Raises ConfigInvalid."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid(f"{name} is not TOML: {error}") from error
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        mistakes = "\n".join(f"  {_mistake(entry)}" for entry in error.errors(include_url=False, include_input=False))
        raise ConfigInvalid(f"{name} has mistakes:\n{mistakes}") from error
    return _with_absolute_paths(config, folder)


def split_address(address: str) -> tuple[str, int]:
    """Host (without brackets) and port of an address that the configuration has accepted."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _with_absolute_paths(config: Config, folder: Path) -> Config:
    certificates = config.certificates
    given = {name: getattr(certificates, name) for name in CERTIFICATE_FILES}
    files = {name: folder / with_credentials(path, unit=UNIT) for name, path in given.items() if path is not None}
    metrics = {name: getattr(config.metrics, name) for name in TLS_FILES}
    shown = {name: folder / with_credentials(path, unit=UNIT) for name, path in metrics.items() if path is not None}
    keys = {"folder": folder / config.keys.folder.expanduser()} if config.keys.folder is not None else {}
    named = config.database.url_file
    url_file = {"url_file": folder / with_credentials(named, unit=UNIT)} if named is not None else {}
    return config.model_copy(
        update={
            "data_folder": (folder / config.data_folder.expanduser()).resolve(),
            "keys": config.keys.model_copy(update=keys),
            "certificates": certificates.model_copy(update=files),
            "metrics": config.metrics.model_copy(update=shown),
            "tracing": config.tracing.model_copy(
                update={"ca": folder / config.tracing.ca} if config.tracing.ca is not None else {}
            ),
            "database": config.database.model_copy(update=url_file),
            "blobs": config.blobs.model_copy(update=_absolute(config.blobs, folder, "credentials_file", "ca_file")),
        }
    )


def _absolute(section: StrictModel, folder: Path, *names: str) -> dict[str, Path]:
    """Of these keys those that are set, relative to the file's folder."""
    given = {name: getattr(section, name) for name in names}
    return {name: folder / with_credentials(path, unit=UNIT) for name, path in given.items() if path is not None}


def _mistake(entry: ErrorDetails) -> str:
    path = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == "extra_forbidden":
        return f"{path}: no such key"
    text = entry["msg"].removeprefix("Value error, ")
    return f"{path}: {text}" if path else text
