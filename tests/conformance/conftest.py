"""The implementations that each suite runs on. Another database or object store is another entry of a dictionary."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from coordinator.store import blobs_s3, s3_parts
from coordinator.store.blobs import BlobStore
from coordinator.store.engine import parse_url
from coordinator.store.interface import Store
from coordinator.store.opening import open_blobs, open_store
from coordinator.store.schema import migrate
from coordinator.store.tables import METADATA
from tests.postgresql import postgres_server
from tests.seaweedfs import SeaweedFS, seaweedfs_in

PART = 5 << 20  # the least that S3 takes
ONE_CALL = 6 << 20
DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}


@dataclass
class Stores:
    """One database of a test, and everything that the test has opened on it."""

    url: str
    opened: list[Store] = field(default_factory=list)

    def open(self) -> Store:
        self.opened.append(open_store(self.url))
        return self.opened[-1]

    def tamper(self, statement: str, **values: object) -> int:
        """Change rows behind the store's back; returns how many."""
        engine = create_engine(parse_url(self.url).set(drivername=DRIVERS[self.url.partition(":")[0]]))
        try:
            with engine.begin() as connection:
                return connection.execute(text(statement), values).rowcount
        finally:
            engine.dispose()


@pytest.fixture(scope="session")
def empty_sqlite(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("template") / "empty.db"
    migrate(f"sqlite:///{path}")
    return path


def sqlite_url(request: pytest.FixtureRequest, folder: Path) -> str:
    shutil.copy(request.getfixturevalue("empty_sqlite"), folder / "coordinator.db")
    return f"sqlite:///{folder}/coordinator.db"


@pytest.fixture(scope="session")
def migrated_postgres() -> Iterator[str]:
    """The URL of a database with this version's schema, which tests empty and share: making one takes as long as many
    tests."""
    with postgres_server() as server:
        url = server.create("shared")
        migrate(url)
        yield url


def postgres_url(request: pytest.FixtureRequest, folder: Path) -> str:
    url: str = request.getfixturevalue("migrated_postgres")
    Stores(url).tamper("; ".join(f"DELETE FROM {table.name}" for table in reversed(METADATA.sorted_tables)))
    return url


DATABASES: dict[str, Callable[[pytest.FixtureRequest, Path], str]] = {"sqlite": sqlite_url, "postgresql": postgres_url}


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory) -> Iterator[SeaweedFS]:
    with seaweedfs_in(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


def file_url(request: pytest.FixtureRequest, folder: Path) -> str:
    return f"file://{folder}/blobs"


@pytest.fixture
def bucket(seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> SeaweedFS:
    """A bucket; how to reach it is in the environment."""
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    return seaweedfs


@pytest.fixture
def url(bucket: SeaweedFS) -> str:
    """A prefix of the test's own in it."""
    return bucket.url(uuid.uuid4().hex)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few MiB are large already."""
    monkeypatch.setattr(s3_parts, "PART_BYTES", PART)
    monkeypatch.setattr(blobs_s3, "ONE_CALL_BYTES", ONE_CALL)


def s3_url(request: pytest.FixtureRequest, folder: Path) -> str:
    found: str = request.getfixturevalue("url")
    return found


BLOB_STORES: dict[str, Callable[[pytest.FixtureRequest, Path], str]] = {"file": file_url, "s3": s3_url}


@pytest.fixture(params=DATABASES)
def stores(request, tmp_path) -> Iterator[Stores]:
    stores = Stores(DATABASES[request.param](request, tmp_path))
    yield stores
    for store in stores.opened:
        store.close()


@pytest.fixture
def store(stores) -> Store:
    return stores.open()


@pytest.fixture(params=BLOB_STORES)
def blobs_url(request, tmp_path) -> str:
    return BLOB_STORES[request.param](request, tmp_path)


@pytest.fixture
def blobs(blobs_url) -> BlobStore:
    return open_blobs(blobs_url)
