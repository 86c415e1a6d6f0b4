"""Federations of a test's own, and labs that the cases of a module share; a module that needs others makes them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.log import LogForm, configure
from tests.rpc.federation import Federation, federation_in
from tests.rpc.lab import Lab, lab_in


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    with federation_in(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab_in(tmp_path_factory) as made:
        yield made


@pytest.fixture(autouse=True)
def _logs_beside_results() -> None:
    """A coordinator in the test's own process logs as a service does: not among what a command prints.

    Before each test, as other tests of the process configure the log too.
    """
    configure(form=LogForm.CONSOLE, stream=sys.__stderr__)
