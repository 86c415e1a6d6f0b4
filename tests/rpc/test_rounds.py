"""Whole rounds against the real coordinator: what is published is the weighted mean, whoever drops out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from common.adapters import AdapterLayout, FlatVector
from tests.fakes import FakeClock
from tests.rpc.federation import Federation, MadeUpTrainer, now


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path, FakeClock(now()))
    made.start()
    yield made
    made.close()


def delta_of(seed: int):
    def delta(round_: int, layout: AdapterLayout) -> FlatVector:
        generator = np.random.default_rng([seed, round_])
        return generator.uniform(-0.3, 0.3, layout.parameters).astype(np.float32)

    return delta


def test_a_round_publishes_the_weighted_mean_of_the_deltas(federation: Federation) -> None:
    for index, name in enumerate(("bank", "clinic", "paper")):
        federation.add_site(name, MadeUpTrainer(delta_of(index), records=100 * (index + 1)))
    federation.create_run()
    federation.turn_until(lambda: federation.run()["state"] == "succeeded")
