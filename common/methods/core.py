"""Core adapters, W = W0 + alpha/rank * B R A: B and A frozen, orthonormal; only the r x r core R is trained and sent.

LoRA-XS's form (Balazy et al. 2024, arXiv 2405.17604, eq. 2) in a federation, as Fed-SB does it (Singhal et al. 2025,
arXiv 2502.15436, section 4): Delta W is linear in R, so the mean of the cores is the mean of the updates, exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from common.adapters import AdapterLayout, AdapterSpec, FlatVector, LinearLayer, TensorSlot
from common.errors import PlanInvalid
from common.methods.base import LoraFactors, Matrix, Method, laid_out, tensor_name
from common.methods.orthonormal import orthonormal_columns, orthonormal_rows

CORE_A: Final = "core_A"
CORE_B: Final = "core_B"
CORE_R: Final = "core_R"


@dataclass(frozen=True, slots=True)
class Core:
    """The core R of every layer trained and averaged; rank^2 numbers a layer, whatever its width."""

    spec: AdapterSpec

    @classmethod
    def of(cls, method: Method, spec: AdapterSpec) -> Self:
        return cls(spec)

    @property
    def schedule(self) -> tuple[int, ...]:
        return (0,)

    def layout(self, layers: Iterable[LinearLayer]) -> AdapterLayout:
        """By layer as in the base model: core_A (rank x in), core_B (out x rank), core_R (rank x rank).

        Raises PlanInvalid where a layer is narrower than the rank.
        """
        rank, adapted = self.spec.rank, self.spec.adapted(layers)
        for layer in adapted:
            if min(layer.in_features, layer.out_features) < rank:
                raise PlanInvalid(
                    f"adapter rank {rank} is larger than the smaller side of {layer.name} "
                    f"({layer.out_features} x {layer.in_features}): its bases cannot be orthonormal; take a smaller one"
                )
        return laid_out(
            (tensor_name(layer, factor), shape)
            for layer in adapted
            for factor, shape in (
                (CORE_A, (rank, layer.in_features)),
                (CORE_B, (layer.out_features, rank)),
                (CORE_R, (rank, rank)),
            )
        )

    def initial(self, layers: Iterable[LinearLayer], *, seed: int) -> Iterator[tuple[TensorSlot, FlatVector]]:
        generator = np.random.Generator(np.random.PCG64(seed))
        for slot in self.layout(layers).slots:
            if f".{CORE_A}." in slot.name:
                yield slot, orthonormal_rows(generator, *slot.shape).reshape(-1)
            elif f".{CORE_B}." in slot.name:
                yield slot, orthonormal_columns(generator, *slot.shape).reshape(-1)
            else:
                yield slot, np.zeros(slot.size, dtype=np.float32)

    def is_sent(self, tensor: str, turn: int) -> bool:
        return f".{CORE_R}." in tensor

    @property
    def lora_spec(self) -> AdapterSpec:
        return self.spec

    def lora_factors(self, layer: LinearLayer, tensors: Mapping[str, Matrix]) -> LoraFactors:
        """(A, B R): of the same rank, under the same alpha."""
        a, b, r = (tensors[tensor_name(layer, factor)] for factor in (CORE_A, CORE_B, CORE_R))
        return LoraFactors(a, np.asarray(b.astype(np.float64) @ r.astype(np.float64), dtype=np.float32))
