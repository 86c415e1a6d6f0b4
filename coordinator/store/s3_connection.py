"""The way to one bucket: which service, with which credentials, and calls whose failures are errors of ours.

Knows nothing of blobs. Secrets are handed to the client library and kept nowhere else.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Final, Protocol, TypedDict, TypeVar
from urllib.parse import urlsplit

import botocore.loaders
import botocore.session
from botocore.config import Config
from botocore.credentials import SharedCredentialProvider
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from common.errors import ConfigInvalid, StorageDenied
from common.log import get_logger
from coordinator.store.s3_errors import CREDENTIAL_CODES, code_of, failure, refusal
from coordinator.store.s3_settings import S3Place, S3Settings

# A region has to be in every signature; services of one's own mostly do not look at it.
DEFAULT_REGION: Final = "us-east-1"
CONNECT_SECONDS: Final = 5
READ_SECONDS: Final = 60
ATTEMPTS: Final = 3
LOCAL_HOSTS: Final = ("127.0.0.1", "::1", "localhost")
_CONNECTIONS: Final = 32
_PROFILE: Final = "default"

_Answer = TypeVar("_Answer")

log = get_logger(__name__)


class ListedObject(TypedDict):
    Key: str


class ObjectPage(TypedDict, total=False):
    Contents: Sequence[ListedObject]
    IsTruncated: bool
    NextContinuationToken: str


class ListedUpload(TypedDict):
    Key: str
    UploadId: str
    Initiated: datetime


class UploadPage(TypedDict, total=False):
    Uploads: Sequence[ListedUpload]
    IsTruncated: bool
    NextKeyMarker: str
    NextUploadIdMarker: str


class ListedPart(TypedDict):
    PartNumber: int
    ETag: str
    Size: int


class PartPage(TypedDict, total=False):
    Parts: Sequence[ListedPart]
    IsTruncated: bool
    NextPartNumberMarker: int


class Stream(Protocol):
    """The body of an answer. `read` raises IncompleteReadError if it ends early."""

    def read(self, amount: int | None = None) -> bytes: ...

    def close(self) -> None: ...


class Found(TypedDict):
    """Answer to a GET."""

    Body: Stream
    ETag: str
    ContentLength: int


class Stored(TypedDict):
    """Answer to what has stored bytes."""

    ETag: str


class Deleted(TypedDict, total=False):
    Errors: Sequence[Mapping[str, str]]


class S3Client(Protocol):
    """The calls of S3 that are used; parameters are S3's own."""

    def put_object(self, **parameters: object) -> Stored: ...

    def get_object(self, **parameters: object) -> Found: ...

    def head_object(self, **parameters: object) -> Found: ...

    def head_bucket(self, **parameters: object) -> object: ...

    def list_objects_v2(self, **parameters: object) -> ObjectPage: ...

    def delete_objects(self, **parameters: object) -> Deleted: ...

    def create_multipart_upload(self, **parameters: object) -> ListedUpload: ...

    def upload_part(self, **parameters: object) -> Stored: ...

    def complete_multipart_upload(self, **parameters: object) -> object: ...

    def abort_multipart_upload(self, **parameters: object) -> object: ...

    def list_multipart_uploads(self, **parameters: object) -> UploadPage: ...

    def list_parts(self, **parameters: object) -> PartPage: ...


class S3Connection:
    """Calls to one bucket. Safe to use from several threads."""

    def __init__(self, place: S3Place, settings: S3Settings) -> None:
        """Connects to nothing yet. Raises ConfigInvalid for files that cannot be read, StorageDenied without keys."""
        self.place = place
        self._settings = settings
        self._endpoint = _endpoint(settings)
        if settings.ca_file is not None:
            _read(settings.ca_file, key="blobs.ca_file")
        if self._endpoint.startswith("http://") and urlsplit(self._endpoint).hostname not in LOCAL_HOSTS:
            log.warning("blobs_without_tls", place=str(place), endpoint=self._endpoint)
        self._renewing = threading.Lock()
        self._used: bytes | None = None
        self._client = self._make_client()

    @property
    def bucket(self) -> str:
        return self.place.bucket

    def call(self, use: Callable[[S3Client], _Answer]) -> _Answer:
        """What `use` gets from the service. Called once more if a credentials file has other keys by now.

        Raises StorageFailed, by its subclass of what kind (see `coordinator.store.s3_errors`).
        """
        client = self._client
        try:
            try:
                return use(client)
            except ClientError as error:
                if code_of(error) not in CREDENTIAL_CODES or not self._renew(client):
                    raise
            return use(self._client)
        except ClientError as error:
            raise refusal(error, str(self.place)) from error
        except (BotoCoreError, HTTPClientError) as error:
            raise failure(error, str(self.place), self._endpoint or "the service") from error

    def _renew(self, refused: S3Client) -> bool:
        """Whether there are other credentials than those that were refused; the client has them then."""
        path = self._settings.credentials_file
        if path is None:
            return False
        with self._renewing:
            if self._client is not refused:
                return True
            try:
                if _read(path, key="blobs.credentials_file") == self._used:
                    return False
                self._client = self._make_client()
            except (ConfigInvalid, StorageDenied) as error:  # Half written, say: the next call looks again.
                log.warning("blob_credentials_unusable", place=str(self.place), why=error.message)
                return False
        log.info("blob_credentials_renewed", place=str(self.place))
        return True

    def _make_client(self) -> S3Client:
        settings = self._settings
        # What it logs below warnings has the headers of calls, and a session's token is one of them.
        logging.getLogger("botocore").setLevel(logging.WARNING)
        session = botocore.session.Session()
        session.register_component("data_loader", _descriptions())
        if settings.credentials_file is not None:
            self._used = _read(settings.credentials_file, key="blobs.credentials_file")
            _use_file(session, settings.credentials_file)
        style = settings.addressing or ("path" if self._endpoint else "auto")
        try:
            client: S3Client = session.create_client(
                "s3",
                endpoint_url=self._endpoint or None,
                region_name=settings.region or session.get_config_variable("region") or DEFAULT_REGION,
                verify=str(settings.ca_file) if settings.ca_file is not None else None,
                config=Config(
                    s3={"addressing_style": style},
                    # Checksums in trailers are AWS's own; what we send has a digest that every service checks.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=READ_SECONDS,
                    max_pool_connections=_CONNECTIONS,
                    tcp_keepalive=True,
                ),
            )
        except ValueError as error:  # its own word for an endpoint or region that is none
            raise ConfigInvalid(f"blobs.endpoint or blobs.region: {error}") from error
        except BotoCoreError as error:
            raise failure(error, str(self.place), self._endpoint) from error
        return client


@cache
def _descriptions() -> botocore.loaders.Loader:
    """The library's description of S3's calls, read once."""
    return botocore.loaders.create_loader()


def _endpoint(settings: S3Settings) -> str:
    endpoint = settings.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if not endpoint:
        return ""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ConfigInvalid("blobs.endpoint is a URL without keys, such as https://s3.example.org:9000")
    return endpoint


def _use_file(session: botocore.session.Session, path: Path) -> None:
    """Give the session what the file holds, and nothing that the environment has besides."""
    try:
        found = SharedCredentialProvider(creds_filename=str(path), profile_name=_PROFILE).load()
    except BotoCoreError:
        # Without its cause: the library's text may quote the file, and so a secret.
        raise ConfigInvalid(f"blobs.credentials_file: {path} is not an AWS credentials file") from None
    if found is None:
        raise StorageDenied(
            f"blobs.credentials_file: {path} has no section [{_PROFILE}] with aws_access_key_id and "
            "aws_secret_access_key"
        )
    session.set_credentials(found.access_key, found.secret_key, found.token)


def _read(path: Path, *, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigInvalid(f"{key}: cannot read {path}: {error.strerror}") from error
