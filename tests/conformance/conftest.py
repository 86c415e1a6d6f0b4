"""The implementations that each suite runs on. Another database or object store is another entry of a dictionary."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from coordinator.store.blobs import BlobStore
from coordinator.store.interface import Store
from coordinator.store.opening import open_blobs, open_store
from coordinator.store.schema import migrate


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
        engine = create_engine(self.url)
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


DATABASES: dict[str, Callable[[pytest.FixtureRequest, Path], str]] = {"sqlite": sqlite_url}
BLOB_STORES: dict[str, Callable[[Path], str]] = {"file": lambda folder: f"file://{folder}/blobs"}


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
    return BLOB_STORES[request.param](tmp_path)


@pytest.fixture
def blobs(blobs_url) -> BlobStore:
    return open_blobs(blobs_url)
