"""Gradients of single records: by Opacus's hooks where every trained tensor has a rule, else one record at a time.

A record is one row of a batch, and never more than one row. Knows nothing of clipping, noise and budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from opacus.grad_sample import GradSampleHooks, register_grad_sampler
from torch import Tensor, nn

from participant.training.adapted_layers import CoreLinear, RavanLinear

PerRecord = Mapping[str, Tensor]  # by parameter: float32[records, *shape]
# Mean answer loss of each of these records, float32[records], as a function of the parameters.
RecordLosses = Callable[[Sequence[int]], Tensor]


def per_record_gradients(
    model: nn.Module, trained: Mapping[str, nn.Parameter], losses: RecordLosses, rows: Sequence[int]
) -> tuple[PerRecord, Tensor]:
    """Gradients of every record's own loss, and these losses, float32[records].

    Leaves no gradient on the parameters. losses: called with all rows at once, or with one at a time where a layer is
    of a kind that Opacus and this module have no rule for: slower, and the same.
    """
    if all(type(module) in GradSampleHooks.GRAD_SAMPLERS for module in _owners(model, trained)):
        return _hooked(model, trained, losses, rows)
    return _one_by_one(trained, losses, rows)


def _hooked(
    model: nn.Module, trained: Mapping[str, nn.Parameter], losses: RecordLosses, rows: Sequence[int]
) -> tuple[PerRecord, Tensor]:
    with _hooks(model, trained):
        found = losses(rows)
        found.sum().backward()
        gradients = {name: _sample_of(name, parameter, len(rows)) for name, parameter in trained.items()}
    return gradients, found.detach()


def _one_by_one(
    trained: Mapping[str, nn.Parameter], losses: RecordLosses, rows: Sequence[int]
) -> tuple[PerRecord, Tensor]:
    gradients: dict[str, list[Tensor]] = {name: [] for name in trained}
    values: list[Tensor] = []
    for row in rows:
        loss = losses([row])
        parts = torch.autograd.grad(loss.sum(), list(trained.values()), allow_unused=True, materialize_grads=True)
        for name, part in zip(trained, parts, strict=True):
            gradients[name].append(part.float())
        values.append(loss.detach())
    return {name: torch.stack(parts) for name, parts in gradients.items()}, torch.cat(values)


def _owners(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> Iterator[nn.Module]:
    wanted = {id(parameter) for parameter in trained.values()}
    for module in model.modules():
        if any(id(parameter) in wanted for parameter in module.parameters(recurse=False)):
            yield module


@contextmanager
def _hooks(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Opacus listens to modules in training mode alone; those that own a trained tensor behave the same in both."""
    owners = tuple(_owners(model, trained))
    modes = [owner.training for owner in owners]
    hooks = GradSampleHooks(model, batch_first=True, loss_reduction="sum", strict=False)
    try:
        for owner in owners:
            owner.training = True
        yield
    finally:
        for owner, mode in zip(owners, modes, strict=True):
            owner.training = mode
        hooks.cleanup()
        for parameter in trained.values():
            parameter.grad = None


def _sample_of(name: str, parameter: nn.Parameter, records: int) -> Tensor:
    found = getattr(parameter, "grad_sample", None)
    if not isinstance(found, Tensor) or found.shape != (records, *parameter.shape):
        # A gradient that is not a single record's must never be taken for one.
        raise RuntimeError(
            f"{name} has no gradient for each of {records} records: its layer mixes records or ran twice"
        )
    return found.float()


# --- rules for layers that Opacus does not know ----------------------------------------------------------------------

Rule = Callable[[nn.Module, list[Tensor], Tensor], dict[nn.Parameter, Tensor]]


def _core_rule(layer: CoreLinear, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """d loss / d R = s sum_t (B^T g_t) (A x_t)^T."""
    inner = activations[0].float() @ layer.core_A.T
    outer = backprops.float() @ layer.core_B
    return {layer.core_R: layer.scale * torch.einsum("n...o,n...i->noi", outer, inner)}


def _ravan_rule(layer: RavanLinear, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """d loss / d H_j = s s_j M_j and d loss / d s_j = s <M_j, H_j>, with M_j = sum_t (B_j^T g_t) (A_j x_t)^T."""
    heads = layer.heads
    inner = (activations[0].float() @ layer.ravan_A.T).unflatten(-1, (heads, -1))
    outer = (backprops.float() @ layer.ravan_B).unflatten(-1, (heads, -1))
    products = layer.scale * torch.einsum("n...ho,n...hi->nhoi", outer, inner)
    found = {layer.ravan_H: (layer.ravan_s[:, None, None] * products).flatten(1, 2)}
    if layer.ravan_s.requires_grad:
        found[layer.ravan_s] = (products * layer.ravan_H.unflatten(0, (heads, -1))).sum(dim=(2, 3))
    return {parameter: gradient.detach() for parameter, gradient in found.items()}


_RULES: Final = ((CoreLinear, _core_rule), (RavanLinear, _ravan_rule))
for _kind, _rule in _RULES:
    register_grad_sampler(_kind)(_rule)
