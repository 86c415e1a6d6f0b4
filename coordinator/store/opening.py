"""Which store a URL of the configuration means. The only place outside tests that picks an implementation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from common.clock import Clock, SystemClock
from common.errors import ConfigInvalid
from coordinator.store.blobs import BlobStore
from coordinator.store.blobs_file import FileBlobStore
from coordinator.store.engine import is_sqlite
from coordinator.store.interface import Store
from coordinator.store.s3_settings import S3Settings
from coordinator.store.sql import SqlStore

if TYPE_CHECKING:
    from coordinator.store.blobs_s3 import S3BlobStore
    from coordinator.store.signals import Signals

SYSTEM_CLOCK: Final = SystemClock()
DEFAULT_S3: Final = S3Settings()


def open_store(url: str, *, clock: Clock = SYSTEM_CLOCK) -> Store:
    """The database at `url`: "sqlite:////var/lib/accord/coordinator.db" (four slashes: an absolute path), or
    "postgresql://accord@db.example.org/accord".

    Raises ConfigInvalid for a URL that names no supported database, and StorageFailed if the database does not answer
    or its schema is not this version's (see `coordinator.store.schema`).
    """
    return SqlStore(url, clock=clock)


def open_signals(url: str, *, name: str) -> Signals | None:
    """What the coordinators on one database tell each other by; None where there can be one alone.

    name: this one's, which no other living one has. Raises ConfigInvalid as `open_store` does.
    """
    if is_sqlite(url):
        return None
    # Here and not above: the driver is an extra.
    from coordinator.store.signals import PostgresSignals

    return PostgresSignals(url, name=name)


def open_blobs(url: str, s3: S3Settings = DEFAULT_S3, *, owner: str | None = None) -> BlobStore:
    """The blob store at `url`: "file:///absolute/folder", which is made if it is not there, or "s3://bucket/prefix".

    s3: how the bucket is reached. owner: the federation, to which the prefix must belong or not belong yet.
    Raises ConfigInvalid for any other kind, StorageFailed if the folder or the bucket cannot be used.
    """
    if _is_s3(url):
        return _open_bucket(url, s3, owner=owner)
    return FileBlobStore(_blobs_folder(url))


def check_blobs(url: str, s3: S3Settings) -> None:
    """Raises ConfigInvalid for a URL that names no supported blob store. Makes no folder.

    A bucket is tried with an object that is stored, read and deleted again; raises StorageFailed if that fails.
    """
    if _is_s3(url):
        _open_bucket(url, s3, owner=None).probe()
    else:
        _blobs_folder(url)


def _is_s3(url: str) -> bool:
    return urlsplit(url).scheme == "s3"


def _open_bucket(url: str, s3: S3Settings, *, owner: str | None) -> S3BlobStore:
    try:
        # Here and not above: the client library is an extra, and takes a while to load.
        from coordinator.store.blobs_s3 import S3BlobStore
    except ModuleNotFoundError as error:
        raise ConfigInvalid(f"S3 needs the extra accord[s3] ({error.name} is not installed)") from error
    return S3BlobStore(url, s3, owner=owner)


def _blobs_folder(url: str) -> Path:
    parts = urlsplit(url)
    if parts.scheme != "file":
        raise ConfigInvalid(
            "a blob store is named by file:///absolute/folder or s3://bucket/prefix, "
            f"not by {parts.scheme or url[:40]!r}"
        )
    path = Path(unquote(parts.path))
    if parts.netloc not in ("", "localhost") or not path.is_absolute() or path == Path("/"):
        raise ConfigInvalid("file:// needs three slashes and an absolute folder, such as file:///var/lib/accord/blobs")
    if parts.query or parts.fragment:
        raise ConfigInvalid("a folder with ? or # in its name is written with %3F or %23 in a file:// URL")
    return path
