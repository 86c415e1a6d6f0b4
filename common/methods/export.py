"""A global adapter of any method as a plain PEFT folder, which `PeftModel.from_pretrained` loads.

An adapter whose stored tensors are LoRA's own is that already, byte for byte. Others are merged layer by layer into
LoRA factors, and the file that the coordinator has signed for lies beside them under a name of its own. Reads the
stored file's own header: no base model, no plan. Constant memory but for one layer.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np

from common.adapters import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    MAX_HEADER_BYTES,
    PEFT_PREFIX,
    AdapterLayout,
    AdapterSpec,
    FlatFile,
    LinearLayer,
    TensorSlot,
)
from common.durable import move_durably, write_durably
from common.errors import AccordError, ShapeMismatch
from common.methods import AdapterMethod, Matrix, Method, adapter_method
from common.methods.base import LORA_A, LORA_B
from common.methods.core import CORE_A, CORE_B
from common.methods.ravan import RAVAN_A, RAVAN_B, RAVAN_H

# The global adapter as it was summed and signed for, where that is not a LoRA itself.
GLOBAL_ADAPTER_FILE: Final = "global_adapter.safetensors"

# A layer's input width is that of the one, its output width that of the other.
_IN_SIDES: Final = (LORA_A, CORE_A, RAVAN_A)
_OUT_SIDES: Final = (LORA_B, CORE_B, RAVAN_B)


def export_adapter(stored: Path, folder: Path, *, method: str, spec: AdapterSpec, base_model_name: str) -> None:
    """Write model file and configuration into an existing folder.

    stored: the global adapter's model file, verified; one that lies in the folder gets the name that it has there.
    method, spec: as its manifest says. Raises ShapeMismatch if the file is not of that method and spec.
    """
    layout = read_layout(stored)
    layers = _layers(layout)
    try:
        kind = _kind(layout, method, spec)
        fits = kind.layout(layers) == layout
    except AccordError as error:
        raise ShapeMismatch(f"{stored} is no adapter of {method} with rank {spec.rank}: {error.message}") from error
    if not fits:
        raise ShapeMismatch(f"{stored} is no adapter of {method} with rank {spec.rank}; is its manifest another's?")
    if is_plain(kind, layers):
        _place(stored, folder / ADAPTER_FILE)
    else:
        partial = folder / f".{ADAPTER_FILE}.partial"
        _merge(FlatFile.open(stored, layout), layout, kind, layers, partial)
        _place(stored, folder / GLOBAL_ADAPTER_FILE)
        move_durably(partial, folder / ADAPTER_FILE)
    write_durably(folder / ADAPTER_CONFIG_FILE, kind.lora_spec.peft_config_json(base_model_name).encode())


def signed_file(folder: Path) -> Path:
    """The file of an exported folder, or of one of a site's own, whose digest the manifest names."""
    merged_from = folder / GLOBAL_ADAPTER_FILE
    return merged_from if merged_from.exists() else folder / ADAPTER_FILE


def is_plain(method: AdapterMethod, layers: Iterable[LinearLayer]) -> bool:
    """Whether a method's stored file is a LoRA as PEFT has it."""
    adapted = tuple(layers)
    return method.lora_spec.layout(adapted) == method.layout(adapted)


def read_layout(path: Path) -> AdapterLayout:
    """The layout of an adapter file, by its header. Raises ShapeMismatch if it is no adapter file."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError
            header = json.loads(file.read(length))
        slots = []
        for name, entry in header.items():
            if name != "__metadata__":
                rows, columns = (int(side) for side in entry["shape"])
                slots.append(TensorSlot(name, (rows, columns), int(entry["data_offsets"][0]) // 4))
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShapeMismatch(f"{path} is not an adapter file, or is cut short") from error
    layout = AdapterLayout(tuple(slots))
    FlatFile.open(path, layout)  # what was read above is all of it, and what an adapter file is
    return layout


def _kind(layout: AdapterLayout, method: str, spec: AdapterSpec) -> AdapterMethod:
    """The method with the settings that an adapter's shape tells."""
    heads = next((slot.shape[0] // slot.shape[1] for slot in layout.slots if f".{RAVAN_H}." in slot.name), 0)
    return adapter_method(Method(name=method, heads=heads), spec)


def _layers(layout: AdapterLayout) -> tuple[LinearLayer, ...]:
    """The adapted layers, in the layout's order."""
    sides: dict[str, dict[str, int]] = {}
    for slot in layout.slots:
        layer, factor = _parts(slot)
        side = sides.setdefault(layer, {})
        if factor in _IN_SIDES:
            side["in"] = slot.shape[1]
        elif factor in _OUT_SIDES:
            side["out"] = slot.shape[0]
    return tuple(LinearLayer(name, side.get("out", 0), side.get("in", 0)) for name, side in sides.items())


def _parts(slot: TensorSlot) -> tuple[str, str]:
    """Name of the layer, and of the factor in it."""
    layer, _, factor = slot.name.removeprefix(PEFT_PREFIX).removesuffix(".weight").rpartition(".")
    return layer, factor


def _merge(
    stored: FlatFile, layout: AdapterLayout, kind: AdapterMethod, layers: tuple[LinearLayer, ...], path: Path
) -> None:
    of_layer: dict[str, list[TensorSlot]] = {}
    for slot in layout.slots:
        of_layer.setdefault(_parts(slot)[0], []).append(slot)
    with path.open("wb") as file:
        file.write(kind.lora_spec.layout(layers).header())
        for layer in layers:
            factors = kind.lora_factors(layer, {slot.name: _read(stored, slot) for slot in of_layer[layer.name]})
            for values in (factors.a, factors.b):  # the order of a LoRA layout
                file.write(np.ascontiguousarray(values, dtype="<f4").data)
        file.flush()
        os.fsync(file.fileno())


def _read(stored: FlatFile, slot: TensorSlot) -> Matrix:
    return stored.read(slot.offset, slot.offset + slot.size).reshape(slot.shape)


def _place(stored: Path, target: Path) -> None:
    if stored.parent.resolve() == target.parent.resolve():
        move_durably(stored, target)
    else:
        shutil.copyfile(stored, target)
