"""Federations that the cases of a module share: one long run, paused between the cases, each of which plays a round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.rpc.federation import Federation, federation_in


class Lab:
    """Makes a federation when it is first asked for by its number of sites."""

    def __init__(self, make: Callable[[int], Federation]) -> None:
        self._make = make
        self._made: dict[int, Federation] = {}

    def of(self, sites: int) -> Federation:
        if sites not in self._made:
            self._made[sites] = self._make(sites)
        return self._made[sites]


@contextmanager
def lab_in(
    folders: pytest.TempPathFactory,
    *,
    rounds_per_epoch: int = 1,
    federation_in: Callable[[Path], AbstractContextManager[Federation]] = federation_in,
    **settings: Any,
) -> Iterator[Lab]:
    """Every federation has a run of many rounds that all sites have joined; it is paused, and no round is open."""
    with ExitStack() as open_ones:

        def make(sites: int) -> Federation:
            federation = open_ones.enter_context(federation_in(folders.mktemp(f"sites-{sites}")))
            federation.add_sites(sites)
            federation.create_run(
                rounds=1000,
                most_failed_rounds=1000,
                rounds_per_epoch=rounds_per_epoch,
                is_started=False,
                **settings,
            )
            federation.join_all()
            assert federation.driver is not None
            with federation.driver.turn:  # it opens no round in between
                federation.admin.start_run("runs/run")
                federation.admin.pause_run("runs/run")
            return federation

        yield Lab(make)


def open_round(federation: Federation) -> int:
    """Begin one round of the paused run, and no other after it; its number."""
    federation.admin.resume_run("runs/run")
    federation.settle()
    number = int(federation.run()["round"])
    federation.admin.pause_run("runs/run")
    return number
