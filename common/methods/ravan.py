"""RAVAN, W = W0 + alpha/rank * sum_j s_j B_j H_j A_j: frozen heads, orthogonal to each other, with a trained H_j each.

Raje et al. 2025 (Ravan: Multi-Head Low-Rank Adaptation for Federated Fine-Tuning, arXiv 2506.05568), section 3. A site
trains the H_j and the scalars s_j and sends s_j H_j, in which Delta W is linear: the mean of what is sent is the mean
of the updates, exactly. Sent apart, the mean of s_j times the mean of H_j would be something else. Every round begins
with s_j = 1, so that no s_j is stored: `ravan_H` holds s_j H_j.

A layer's heads lie side by side: ravan_A is [A_1; ...; A_h], ravan_B is [B_1 ... B_h], ravan_H is [H_1; ...; H_h].
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

RAVAN_A: Final = "ravan_A"
RAVAN_B: Final = "ravan_B"
RAVAN_H: Final = "ravan_H"
DEFAULT_HEADS: Final = 4
MOST_HEADS: Final = 64


@dataclass(frozen=True, slots=True)
class Ravan:
    """Heads of the spec's rank, their s_j H_j trained and averaged; heads * rank^2 numbers a layer."""

    spec: AdapterSpec
    heads: int = DEFAULT_HEADS

    @classmethod
    def of(cls, method: Method, spec: AdapterSpec) -> Self:
        """Raises PlanInvalid for a number of heads that is none."""
        heads = method.heads or DEFAULT_HEADS
        if not 1 <= heads <= MOST_HEADS:
            raise PlanInvalid(f"method.heads is {heads}, it must be 1 to {MOST_HEADS}")
        return cls(spec, heads)

    @property
    def schedule(self) -> tuple[int, ...]:
        return (0,)

    @property
    def width(self) -> int:
        """Rank of all heads together."""
        return self.heads * self.spec.rank

    def layout(self, layers: Iterable[LinearLayer]) -> AdapterLayout:
        """By layer as in the base model: ravan_A (width x in), ravan_B (out x width), ravan_H (width x rank).

        Raises PlanInvalid where a layer is narrower than all heads together.
        """
        adapted = self.spec.adapted(layers)
        for layer in adapted:
            if min(layer.in_features, layer.out_features) < self.width:
                raise PlanInvalid(
                    f"{self.heads} heads of rank {self.spec.rank} are {self.width} wide, more than the smaller side of "
                    f"{layer.name} ({layer.out_features} x {layer.in_features}): they cannot be orthogonal to each "
                    "other; take fewer heads or a smaller rank"
                )
        return laid_out(
            (tensor_name(layer, factor), shape)
            for layer in adapted
            for factor, shape in (
                (RAVAN_A, (self.width, layer.in_features)),
                (RAVAN_B, (layer.out_features, self.width)),
                (RAVAN_H, (self.width, self.spec.rank)),
            )
        )

    def initial(self, layers: Iterable[LinearLayer], *, seed: int) -> Iterator[tuple[TensorSlot, FlatVector]]:
        generator = np.random.Generator(np.random.PCG64(seed))
        for slot in self.layout(layers).slots:
            if f".{RAVAN_A}." in slot.name:
                yield slot, orthonormal_rows(generator, *slot.shape).reshape(-1)
            elif f".{RAVAN_B}." in slot.name:
                yield slot, orthonormal_columns(generator, *slot.shape).reshape(-1)
            else:
                yield slot, np.zeros(slot.size, dtype=np.float32)

    def is_sent(self, tensor: str, turn: int) -> bool:
        return f".{RAVAN_H}." in tensor

    @property
    def lora_spec(self) -> AdapterSpec:
        """All heads together; alpha grows with the rank, so that alpha/rank stays that of one head."""
        return AdapterSpec(rank=self.width, alpha=self.spec.alpha * self.heads, target_modules=self.spec.target_modules)

    def lora_factors(self, layer: LinearLayer, tensors: Mapping[str, Matrix]) -> LoraFactors:
        """(A, [B_1 s_1 H_1 ... B_h s_h H_h]) under `lora_spec`."""
        a, b, h = (tensors[tensor_name(layer, factor)] for factor in (RAVAN_A, RAVAN_B, RAVAN_H))
        rank = self.spec.rank
        heads = [slice(first, first + rank) for first in range(0, self.width, rank)]
        left = [b[:, head].astype(np.float64) @ h[head].astype(np.float64) for head in heads]
        return LoraFactors(a, np.asarray(np.concatenate(left, axis=1), dtype=np.float32))


def fold_scalars(h: Matrix, scalars: FlatVector) -> Matrix:
    """s_j H_j of every head: what a site stores and sends. h: float32[width, rank]; scalars: float32[heads]."""
    return np.asarray(h * np.repeat(scalars, h.shape[1])[:, None], dtype=np.float32)
