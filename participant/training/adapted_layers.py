"""Linear layers with a core or a RAVAN adapter: a frozen layer, frozen bases, and the small matrices that are trained.

LoRA's own layers are PEFT's. Parameters are float32 and are computed with in the precision of what comes in. The bases
cost their products and no gradients; between them a state is no wider than the rank.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.adapters import AdapterLayout, LinearLayer
from common.errors import ShapeMismatch
from common.methods import tensor_name
from common.methods.core import CORE_A, CORE_B, CORE_R, Core
from common.methods.ravan import RAVAN_A, RAVAN_B, RAVAN_H, Ravan


class AdaptedLinear(nn.Module):
    """base(x) + what the adapter adds. stored: the adapter's tensors by their names in the layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)

    @property
    @abstractmethod
    def stored(self) -> Mapping[str, nn.Parameter]: ...

    @abstractmethod
    def added(self, x: Tensor) -> Tensor:
        """[..., out] for [..., in], in x's precision."""

    def forward(self, x: Tensor) -> Tensor:
        below: Tensor = self.base(x)
        return below + self.added(x)


class CoreLinear(AdaptedLinear):
    """base(x) + s B R A x, computed as ((x A^T) R^T) B^T. core_R: float32[rank, rank]."""

    def __init__(self, base: nn.Linear, *, rank: int, scale: float) -> None:
        super().__init__(base)
        self.core_A = _frozen(rank, base.in_features)
        self.core_B = _frozen(base.out_features, rank)
        self.core_R = nn.Parameter(torch.zeros(rank, rank))
        self.scale = scale

    @property
    def stored(self) -> Mapping[str, nn.Parameter]:
        return {CORE_A: self.core_A, CORE_B: self.core_B, CORE_R: self.core_R}

    def added(self, x: Tensor) -> Tensor:
        core = (self.scale * self.core_R).to(x.dtype)
        inner = functional.linear(functional.linear(x, self.core_A.to(x.dtype)), core)
        return functional.linear(inner, self.core_B.to(x.dtype))


class RavanLinear(AdaptedLinear):
    """base(x) + s sum_j s_j B_j H_j A_j x, the heads side by side.

    ravan_H: float32[heads * rank, rank]. ravan_s: float32[heads], the s_j: 1 at a round's start, trained, not stored.
    """

    def __init__(self, base: nn.Linear, *, heads: int, rank: int, scale: float) -> None:
        super().__init__(base)
        self.ravan_A = _frozen(heads * rank, base.in_features)
        self.ravan_B = _frozen(base.out_features, heads * rank)
        self.ravan_H = nn.Parameter(torch.zeros(heads * rank, rank))
        self.ravan_s = nn.Parameter(torch.ones(heads))
        self.heads = heads
        self.scale = scale

    @property
    def stored(self) -> Mapping[str, nn.Parameter]:
        return {RAVAN_A: self.ravan_A, RAVAN_B: self.ravan_B, RAVAN_H: self.ravan_H}

    def added(self, x: Tensor) -> Tensor:
        inner = functional.linear(x, self.ravan_A.to(x.dtype)).unflatten(-1, (self.heads, -1))
        heads = (self.scale * self.ravan_s[:, None, None] * self.ravan_H.unflatten(0, (self.heads, -1))).to(x.dtype)
        outer = torch.einsum("...hi,hoi->...ho", inner, heads)
        return functional.linear(outer.flatten(-2), self.ravan_B.to(x.dtype))


@dataclass(frozen=True, slots=True)
class Adapted:
    """What an adapter put on a model: its stored tensors by their names in the adapter file, and RAVAN's scalars by the
    name of the tensor that they are folded into."""

    factors: Mapping[str, nn.Parameter]
    scalars: Mapping[str, nn.Parameter]


def adapt(model: nn.Module, method: Core | Ravan, layout: AdapterLayout) -> Adapted:
    """Put the adapter of a layout on the model's linear layers, in their places; all its tensors are zero.

    Raises ShapeMismatch if the model's linear layers are not the layout's.
    """
    factors: dict[str, nn.Parameter] = {}
    scalars: dict[str, nn.Parameter] = {}
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or name.rsplit(".", 1)[-1] not in method.spec.target_modules:
            continue
        adapted = _adapted(module, method)
        layer = LinearLayer(name, module.out_features, module.in_features)
        for factor, parameter in adapted.stored.items():
            factors[tensor_name(layer, factor)] = parameter
        if isinstance(adapted, RavanLinear):
            scalars[tensor_name(layer, RAVAN_H)] = adapted.ravan_s
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, adapted)
    check_shapes(factors, layout)
    return Adapted({slot.name: factors[slot.name] for slot in layout.slots}, scalars)


def check_shapes(factors: Mapping[str, nn.Parameter], layout: AdapterLayout) -> None:
    """Raises ShapeMismatch unless these are the layout's tensors: module paths must be those of the weight files."""
    found = {name: tuple(factor.shape) for name, factor in factors.items()}
    wanted = {slot.name: slot.shape for slot in layout.slots}
    if found != wanted:
        odd = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise ShapeMismatch(
            f"the loaded model's linear layers differ from those in its weight files, first at {odd[0]}; this "
            "architecture cannot be adapted yet"
        )


def _adapted(base: nn.Linear, method: Core | Ravan) -> AdaptedLinear:
    rank, scale = method.spec.rank, method.spec.alpha / method.spec.rank
    if isinstance(method, Core):
        return CoreLinear(base, rank=rank, scale=scale)
    return RavanLinear(base, heads=method.heads, rank=rank, scale=scale)


def _frozen(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(rows, columns), requires_grad=False)
