"""Several adapters as one: each as plain LoRA factors with a scale of its own, one behind the other in one PEFT folder.

sum_k s_k B_k A_k is [s_1 B_1, s_2 B_2, ...] times A_1, A_2, ... stacked, so the ranks add up and nothing is rounded.
Knows nothing of torch and of how scales are found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from common.adapters import (
    ADAPTER_FILE,
    AdapterSpec,
    LinearLayer,
    check_file_digest,
    flatten,
    open_flat,
    unflatten,
    write_adapter_folder,
)
from common.errors import ShapeMismatch
from common.methods import LoraFactors, adapter_method, tensor_name
from common.methods.base import LORA_A, LORA_B
from participant.training.job import FrozenAdapter


def factors_of(layers: Iterable[LinearLayer], adapter: FrozenAdapter) -> Iterator[tuple[LinearLayer, LoraFactors]]:
    """Each adapted layer with its plain LoRA factors, alpha / rank folded into b: Delta W = b @ a.

    Raises DigestMismatch or ShapeMismatch for a file that is not what it should be.
    """
    kind = adapter_method(adapter.method, adapter.spec)
    adapted = adapter.spec.adapted(layers)
    layout = kind.layout(adapted)
    file = adapter.folder / ADAPTER_FILE
    try:
        check_file_digest(file, adapter.digest)
        flat = np.array(open_flat(file, layout))
    except OSError as error:
        raise ShapeMismatch(f"cannot read the adapter {file}: {error.strerror}") from error
    if not np.isfinite(flat).all():
        raise ShapeMismatch(f"the adapter {file} holds a NaN or an infinity")
    tensors = unflatten(flat, layout)
    factor = np.float32(kind.lora_spec.alpha / kind.lora_spec.rank)
    for layer in adapted:
        found = kind.lora_factors(layer, tensors)
        yield layer, LoraFactors(found.a, factor * found.b)


def write_merged(
    folder: Path,
    layers: Sequence[LinearLayer],
    parts: Sequence[tuple[FrozenAdapter, float]],
    *,
    base_model_name: str,
) -> AdapterSpec:
    """Write the scaled sum of adapters as a PEFT folder that must not exist yet; its shape.

    parts: adapters with their scales; one of scale 0 is left out. Raises what `factors_of` raises.
    """
    used = [(adapter, scale) for adapter, scale in parts if scale] or list(parts[:1])
    ranks = [adapter_method(adapter.method, adapter.spec).lora_spec.rank for adapter, _ in used]
    modules = sorted({name for adapter, _ in used for name in adapter.spec.target_modules})
    rank = sum(ranks)
    spec = AdapterSpec(rank=rank, alpha=float(rank), target_modules=tuple(modules))
    layout = spec.layout(layers)
    shapes = {slot.name: slot.shape for slot in layout.slots}
    tensors = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
    at = 0
    for (adapter, scale), own in zip(used, ranks, strict=True):
        for layer, found in factors_of(layers, adapter):
            tensors[tensor_name(layer, LORA_A)][at : at + own] = found.a
            tensors[tensor_name(layer, LORA_B)][:, at : at + own] = np.float32(scale) * found.b
        at += own
    write_adapter_folder(folder, flatten(tensors, layout), layout, spec.peft_config(base_model_name))
    return spec
