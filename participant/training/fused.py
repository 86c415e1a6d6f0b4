"""Layers of the adapted model in fewer and cheaper steps; the same functions, to rounding.

A LoRA layer (or a core's) is two products more than its frozen layer, added in place, in the precision of the base
model, with gradients only for what is trained. Knows modules and tensors, and nothing of records and steps.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional
from transformers.activations import SiLUActivation

from participant.training.adapted_layers import CoreLinear


class _LowRankLinear(torch.autograd.Function):
    """x W^T + bias + (x A^T) B^T for frozen W; A, B as they are handed in, the scale folded into B."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ a.t()
        ctx.save_for_backward(rows, weight, a, b, inner)
        found = functional.linear(rows, weight, bias)
        return found.addmm_(inner, b.t()).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, inner = ctx.saved_tensors
        outer = gradients[0].reshape(-1, weight.shape[0])
        needs_x, _, _, needs_a, needs_b = ctx.needs_input_grad
        by_x = by_a = by_b = None
        if needs_x or needs_a:
            by_inner = outer @ b
        if needs_x:
            by_x = (outer @ weight).addmm_(by_inner, a).view(*gradients[0].shape[:-1], -1)
        if needs_a:
            by_a = by_inner.t() @ rows
        if needs_b:
            by_b = (inner.t() @ outer).t()
        return by_x, None, None, by_a, by_b


def low_rank_linear(x: Tensor, base: nn.Linear, a: Tensor, b: Tensor, *, scale: float) -> Tensor:
    """base(x) + scale (x A^T) B^T in x's precision; base's own parameters are frozen.

    x: [..., in]; a: float32[rank, in]; b: float32[out, rank].
    """
    found: Tensor = _LowRankLinear.apply(  # type: ignore[no-untyped-call]
        x, base.weight, base.bias, a.to(x.dtype), (b * scale).to(x.dtype)
    )
    return found


class _RmsNorm(torch.autograd.Function):
    """x / rms(x) * weight for a frozen weight; keeps x and its rms and no float32 copy."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(epsilon))
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        outer = gradients[0] * weight
        unit = x * inverse
        mean = (outer * unit).mean(-1, keepdim=True)
        return ((outer - unit.mul_(mean)).mul_(inverse)).to(x.dtype), None, None


class _GatedSilu(torch.autograd.Function):
    """silu(gate) * up; computes silu again for the backward pass instead of keeping it."""

    @staticmethod
    def forward(ctx: FunctionCtx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        slope = torch.sigmoid(gate)
        silu = gate * slope
        by_up = gradients[0] * silu
        # d silu / d gate = slope (1 + gate (1 - slope)) = slope + silu - silu slope
        by_gate = torch.addcmul(slope + silu, silu, slope, value=-1.0)
        return by_gate.mul_(gradients[0]).mul_(up), by_up


@contextlib.contextmanager
def fused_layers(causal: nn.Module) -> Iterator[None]:
    """Within, layers that are known here take their cheaper way; after, everything is as it was.

    Hooks on a LoRA layer's own parts (per-record gradients, say) do not run within.
    """
    ways = [(module, way) for module in causal.modules() if (way := _way(module)) is not None]
    for module, way in ways:
        module.forward = functools.partial(way, module)
    try:
        yield
    finally:
        for module, _ in ways:
            del module.forward  # the instance's; the class's comes to light again


def _way(module: nn.Module) -> Callable[..., Tensor] | None:
    """The cheaper forward of a module, by what it has; who fuses a model compares the outcome with the plain one."""
    if isinstance(module, LoraLinear) and type(module.get_base_layer()) is nn.Linear:
        return _lora
    if isinstance(module, CoreLinear):
        return _core
    if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
        return _rms_norm
    is_gated = all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn"))
    return _gated if is_gated and isinstance(module.act_fn, (nn.SiLU, SiLUActivation)) else None


def _lora(module: Any, x: Tensor) -> Tensor:
    base: nn.Linear = module.get_base_layer()
    if module.disable_adapters:
        return functional.linear(x, base.weight, base.bias)
    [name] = module.active_adapters
    return low_rank_linear(x, base, module.lora_A[name].weight, module.lora_B[name].weight, scale=module.scaling[name])


def _core(module: CoreLinear, x: Tensor) -> Tensor:
    return low_rank_linear(x, module.base, module.core_R @ module.core_A, module.core_B, scale=module.scale)


def _rms_norm(module: Any, x: Tensor) -> Tensor:
    found: Tensor = _RmsNorm.apply(x, module.weight, module.variance_epsilon)  # type: ignore[no-untyped-call]
    return found


def _gated(module: Any, x: Tensor) -> Tensor:
    inner = _GatedSilu.apply(module.gate_proj(x), module.up_proj(x))  # type: ignore[no-untyped-call]
    found: Tensor = module.down_proj(inner)
    return found
