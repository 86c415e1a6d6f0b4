"""Methods whose stored tensors are plain LoRA factors: FedIT, FFA-LoRA and RoLoRA; W = W0 + alpha/rank * B A.

They differ in which factors move, and in how A begins. Orthonormal A: its rows span the subspace in which B is trained,
and no direction of it is weaker than another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from common.adapters import AdapterLayout, AdapterSpec, FlatVector, LinearLayer, TensorSlot, initial_tensors
from common.errors import PlanInvalid
from common.methods.base import LORA_A, LORA_B, LoraFactors, Matrix, Method, tensor_name
from common.methods.orthonormal import orthonormal_rows

DEFAULT_SCHEDULE: Final = ("B", "A")
MOST_TURNS: Final = 64
MOST_PHASE_ROUNDS: Final = 64


@dataclass(frozen=True, slots=True)
class _Stored:
    """What stores A and B as they are, and by itself has one turn."""

    spec: AdapterSpec

    @classmethod
    def of(cls, method: Method, spec: AdapterSpec) -> Self:
        return cls(spec)

    @property
    def schedule(self) -> tuple[int, ...]:
        return (0,)

    @property
    def lora_spec(self) -> AdapterSpec:
        return self.spec

    def lora_factors(self, layer: LinearLayer, tensors: Mapping[str, Matrix]) -> LoraFactors:
        return LoraFactors(tensors[tensor_name(layer, LORA_A)], tensors[tensor_name(layer, LORA_B)])


@dataclass(frozen=True, slots=True)
class _Orthonormal(_Stored):
    """A begins with orthonormal rows by a QR factorisation, B with zeros."""

    def layout(self, layers: Iterable[LinearLayer]) -> AdapterLayout:
        """Raises PlanInvalid where a layer is narrower than the rank."""
        adapted = self.spec.adapted(layers)
        narrow = next((layer for layer in adapted if layer.in_features < self.spec.rank), None)
        if narrow is not None:
            raise PlanInvalid(
                f"adapter rank {self.spec.rank} is larger than the width {narrow.in_features} of {narrow.name}: A "
                "cannot have orthonormal rows; take a smaller rank"
            )
        return self.spec.layout(adapted)

    def initial(self, layers: Iterable[LinearLayer], *, seed: int) -> Iterator[tuple[TensorSlot, FlatVector]]:
        generator = np.random.Generator(np.random.PCG64(seed))
        for slot in self.layout(layers).slots:
            if f".{LORA_A}." in slot.name:
                yield slot, orthonormal_rows(generator, *slot.shape).reshape(-1)
            else:
                yield slot, np.zeros(slot.size, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class FedIT(_Stored):
    """A and B trained and averaged, each for itself (Zhang et al. 2023, arXiv 2305.05644).

    Not exact: mean(BA) - mean(B) mean(A) = sum p_i (B_i - mean B)(A_i - mean A), second order in the sites' drift.
    """

    def layout(self, layers: Iterable[LinearLayer]) -> AdapterLayout:
        return self.spec.layout(layers)

    def initial(self, layers: Iterable[LinearLayer], *, seed: int) -> Iterator[tuple[TensorSlot, FlatVector]]:
        return initial_tensors(self.layout(layers), seed=seed)

    def is_sent(self, tensor: str, turn: int) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class FfaLora(_Orthonormal):
    """A frozen as the coordinator drew it, B trained and averaged (Sun et al., ICLR 2024, arXiv 2403.12313, FFA-LoRA).

    Exact: mean(B_i A) = mean(B_i) A. About half of FedIT's bytes. A has orthonormal rows by a QR factorisation.
    """

    def is_sent(self, tensor: str, turn: int) -> bool:
        return f".{LORA_B}." in tensor


@dataclass(frozen=True, slots=True)
class RoLora(_Orthonormal):
    """B and A take turns, one trained while the other is frozen (Chen et al., NeurIPS 2025, arXiv 2409.02346, RoLoRA).

    Exact in every round, as one factor is common to all sites; about half of FedIT's bytes. `turns`: the factor of each
    round, over and over; a schedule with more B than A, and phases longer than a round, are settings of the plan.
    """

    turns: tuple[str, ...] = DEFAULT_SCHEDULE

    @classmethod
    def of(cls, method: Method, spec: AdapterSpec) -> Self:
        """Raises PlanInvalid for a schedule that is none."""
        letters = method.schedule or DEFAULT_SCHEDULE
        if set(letters) != {"A", "B"}:
            raise PlanInvalid(
                f"method.schedule {','.join(letters)[:40]!r}: RoLoRA's turns are A and B, both at least once, such as "
                "B,A or B,B,A; for B alone take the method ffa_lora"
            )
        if not 1 <= method.phase_rounds <= MOST_PHASE_ROUNDS or len(letters) * method.phase_rounds > MOST_TURNS:
            raise PlanInvalid(f"method.schedule times method.phase_rounds must be 2 to {MOST_TURNS} rounds")
        return cls(spec, tuple(letter for letter in letters for _ in range(method.phase_rounds)))

    @property
    def schedule(self) -> tuple[int, ...]:
        return tuple(0 if letter == "B" else 1 for letter in self.turns)

    def is_sent(self, tensor: str, turn: int) -> bool:
        return f".{LORA_A if turn else LORA_B}." in tensor
