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

from common.adapters import ADAPTER_FILE, LinearLayer, check_file_digest, open_flat, unflatten
from common.errors import ShapeMismatch
from common.methods import adapter_method
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


def merge(base: PreTrainedModel, layers: Sequence[LinearLayer], adapter: FrozenAdapter, *, scale: float = 1.0) -> None:
    """Add scale times an adapter's Delta W to the model's weights, in place."""
    kind = adapter_method(adapter.method, adapter.spec)
    layout = kind.layout(layers)
    file = adapter.folder / ADAPTER_FILE
    try:
        check_file_digest(file, adapter.digest)
        flat = np.array(open_flat(file, layout))
    except OSError as error:
        raise ShapeMismatch(f"cannot read the adapter beneath, {file}: {error.strerror}") from error
    if not np.isfinite(flat).all():
        raise ShapeMismatch(f"the adapter beneath, {file}, holds a NaN or an infinity")
    tensors = unflatten(flat, layout)
    factor = scale * kind.lora_spec.alpha / kind.lora_spec.rank
    for layer in layers:
        if layer.name.rsplit(".", 1)[-1] not in adapter.spec.target_modules:
            continue
        found = kind.lora_factors(layer, tensors)
        _add(base.get_submodule(layer.name), np.float32(factor) * (found.b @ found.a))


def _add(module: nn.Module, delta: Delta) -> None:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)  # noqa: S101  (for mypy)
    with torch.no_grad():
        moved = weight.to(torch.float32) + torch.from_numpy(np.ascontiguousarray(delta)).to(weight.device)
        weight.copy_(moved.to(weight.dtype))
