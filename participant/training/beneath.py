"""A frozen adapter beneath the trained one: part of the base model's weights, so that it costs no step anything.

Its Delta W is added to each adapted layer in float32 and rounded to the weights' own precision; in bfloat16 that loses
the bits below a 256th of a weight, as it would wherever the merged model is served.
Knows nothing of what is trained on top.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from common.adapters import LinearLayer
from participant.merged import factors_of
from participant.training.job import FrozenAdapter
from participant.training.model import LoadBase

Delta = NDArray[np.float32]


def over(base_from: LoadBase, layers: Sequence[LinearLayer], frozen: Iterable[FrozenAdapter]) -> LoadBase:
    """Gives the base model with these adapters in its weights, in their order.

    Whatever `base_from` gives is changed. Raises DigestMismatch or ShapeMismatch for a file that is not what it should
    be.
    """
    listed = tuple(frozen)

    def load(folder: Path, precision: torch.dtype) -> PreTrainedModel:
        base = base_from(folder, precision)
        for adapter in listed:
            merge(base, layers, adapter)
        return base

    return load


def merge(base: PreTrainedModel, layers: Sequence[LinearLayer], adapter: FrozenAdapter) -> None:
    """Add an adapter's Delta W to the model's weights, in place."""
    for layer, found in factors_of(layers, adapter):
        _add(base.get_submodule(layer.name), found.b @ found.a)


def _add(module: nn.Module, delta: Delta) -> None:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)  # noqa: S101  (for mypy)
    with torch.no_grad():
        moved = weight.to(torch.float32) + torch.from_numpy(np.ascontiguousarray(delta)).to(weight.device)
        weight.copy_(moved.to(weight.dtype))
