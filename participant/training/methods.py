"""The client side of a federated method: what is trained, and what is added to the loss.

Knows nothing of data, optimisers and rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from torch import Tensor

from participant.training.job import Method

NamedTensors = Mapping[str, Tensor]


class ClientMethod(Protocol):
    """One method's part in local training. Names are those of the adapter file."""

    def is_trained(self, name: str) -> bool:
        """Whether this factor moves; the others keep the global adapter's values, bit for bit."""
        ...

    def penalty(self, local: NamedTensors, start: NamedTensors) -> Tensor | None:
        """What is added to the mean loss of a step, a scalar; None for nothing. start: the global adapter's values."""
        ...


class FedIT:
    """Train A and B of every adapted layer; the coordinator averages each (arXiv 2305.05644)."""

    def is_trained(self, name: str) -> bool:
        return True

    def penalty(self, local: NamedTensors, start: NamedTensors) -> Tensor | None:
        return None


METHODS: Final[Mapping[Method, ClientMethod]] = {Method.FEDIT: FedIT()}
