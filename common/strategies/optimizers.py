"""Server optimisers: how the mean delta moves the global adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from common.adapters import FlatVector
from common.errors import PlanInvalid


class ServerOptimizer(Protocol):
    """Works element by element, so a chunk of the vectors is as good as the whole."""

    def step(
        self, adapter: FlatVector, mean_delta: FlatVector, state: tuple[FlatVector, ...]
    ) -> tuple[FlatVector, tuple[FlatVector, ...]]:
        """The next global adapter and the next state; all float32 of one length, inputs unchanged."""


@dataclass(frozen=True, slots=True)
class FedAvg:
    """theta + eta * mean delta (McMahan et al. 2017, arXiv 1602.05629, algorithm 1 in pseudo-gradient form).

    With LoRA factors as theta and eta = 1 this is FedIT's aggregation (arXiv 2305.05644): A and B averaged separately,
    weighted by each participant's number of records.
    """

    learning_rate: float = 1.0

    def step(
        self, adapter: FlatVector, mean_delta: FlatVector, state: tuple[FlatVector, ...]
    ) -> tuple[FlatVector, tuple[FlatVector, ...]]:
        return adapter + self.learning_rate * mean_delta, state


METHODS: Final = ("fedit",)
SERVER_OPTIMIZERS: Final = ("fedavg",)


def server_optimizer(name: str, learning_rate: float) -> ServerOptimizer:
    """The optimiser that a plan names. Raises PlanInvalid for one that this version does not know."""
    if name == "fedavg":
        return FedAvg(learning_rate)
    raise PlanInvalid(f"server optimiser {name!r} is not known; known: {', '.join(SERVER_OPTIMIZERS)}")
