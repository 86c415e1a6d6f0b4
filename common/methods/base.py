"""A federated method, seen from outside training: its settings in the plan, and the adapter whose update is summed.

Words. **Stored** tensors are all tensors of a method, frozen ones too, in the global adapter's file. **Sent** tensors
are those that move in a round: their deltas, in the stored order, and behind them **extras** (what else a method wants
summed) are the round's vector. A **turn** says which tensors those are; `schedule` says which turn a round has, by the
round's number alone, so that every site and the coordinator know it and every mask is bound to it.
A method is exact when each layer's update Delta W is affine in what is sent, with the same coefficients at all sites:
then the mean of what is sent is the mean of the updates.
Knows nothing of torch, of how a site trains and of how sums are masked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from common.adapters import PEFT_PREFIX, AdapterLayout, AdapterSpec, FlatVector, LinearLayer, TensorSlot

Matrix = NDArray[np.float32]
"""Of float32, two dimensions."""

LORA_A: Final = "lora_A"
LORA_B: Final = "lora_B"


@dataclass(frozen=True, slots=True)
class Method:
    """Which federated method a run has: what is trained and sent, and how the server uses the mean delta.

    schedule: RoLoRA's turns, such as ("B", "A") or ("B", "B", "A"), each `phase_rounds` rounds long, over and over.
    beta1, beta2, tau: of the server optimiser, 0 for those that it has not (`common.strategies`).
    product_probes: random pairs a layer of FedIT's product monitor (`common.methods.probes`); 0 is off.
    heads: RAVAN's, each of the adapter's rank; 0 for those of a method that has none, and for ravan's usual number.
    proximal_weight: FedProx's mu, 0 is off. alignment: FedRot-LoRA's lambda, 0 is off.
    control_variates: whether SCAFFOLD corrects the sites' drift (`participant.control`).
    """

    name: str = "fedit"
    server_optimizer: str = "fedavg"
    server_learning_rate: float = 1.0
    schedule: tuple[str, ...] = ()
    phase_rounds: int = 1
    beta1: float = 0.0
    beta2: float = 0.0
    tau: float = 0.0
    product_probes: int = 0
    heads: int = 0
    proximal_weight: float = 0.0
    alignment: float = 0.0
    control_variates: bool = False


@dataclass(frozen=True, slots=True)
class LoraFactors:
    """Plain LoRA of one layer, float32: a [rank, in], b [out, rank]; Delta W = alpha / rank * b @ a of its spec."""

    a: Matrix
    b: Matrix


class AdapterMethod(Protocol):
    """One method with its settings, for one adapter spec. Make it with `common.methods.adapter_method`."""

    @property
    def schedule(self) -> tuple[int, ...]:
        """Turns of rounds 1, 2, ... over and over; (0,) where all rounds send the same tensors. Turns count from 0."""
        ...

    def layout(self, layers: Iterable[LinearLayer]) -> AdapterLayout:
        """The stored tensors. Raises InvalidArgument if the base model's layers do not fit the spec."""
        ...

    def initial(self, layers: Iterable[LinearLayer], *, seed: int) -> Iterator[tuple[TensorSlot, FlatVector]]:
        """The stored tensors of a new adapter, float32[size] each, in the layout's order, one at a time; Delta W = 0.

        Made once, by the coordinator, and given to all sites by digest: random numbers and factorisations need not be
        the same bits on two machines.
        """
        ...

    def is_sent(self, tensor: str, turn: int) -> bool:
        """Whether the delta of a stored tensor (by its full name) is sent in rounds of a turn. Others do not move."""
        ...

    @property
    def lora_spec(self) -> AdapterSpec:
        """Shape of the plain LoRA adapter that is the same Delta W; the stored spec where the file is one already."""
        ...

    def lora_factors(self, layer: LinearLayer, tensors: Mapping[str, Matrix]) -> LoraFactors:
        """Plain LoRA of one layer under `lora_spec`. tensors: at least the layer's, by full name."""
        ...


def tensor_name(layer: LinearLayer, factor: str) -> str:
    """Full name of a stored tensor, as in the adapter file; PEFT's own for lora_A and lora_B."""
    return f"{PEFT_PREFIX}{layer.name}.{factor}.weight"


def turn_of(schedule: tuple[int, ...], round_: int) -> int:
    """Turn of a round. Rounds count from 1, failed ones too."""
    return schedule[(round_ - 1) % len(schedule)]


def laid_out(shapes: Iterable[tuple[str, tuple[int, int]]]) -> AdapterLayout:
    """A layout of these tensors, one behind the other."""
    slots: list[TensorSlot] = []
    offset = 0
    for name, shape in shapes:
        slots.append(TensorSlot(name, shape, offset))
        offset += slots[-1].size
    return AdapterLayout(tuple(slots))
