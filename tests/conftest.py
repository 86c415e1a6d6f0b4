"""A coordinator that the cases of a module share, and one site of it: configured, and enrolled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rpc.background import BackgroundCoordinator, coordinator_in_background
from tests.site_files import write_site


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundCoordinator]:
    with coordinator_in_background(tmp_path_factory.mktemp("coordinator")) as made:
        made.publish(made.charter())
        yield made


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The participant.toml of a site that has not enrolled."""
    return write_site(tmp_path / "site")


@pytest.fixture
def enrolled(config: Path, coordinator: BackgroundCoordinator) -> Path:
    """The same file, once the site has enrolled."""
    coordinator.enroll(config.parent / "state" / "identity")
    return config
