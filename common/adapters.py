"""Adapters as files and as flat vectors: the adapter spec, its layout, and PEFT's own folder format.

A layout orders the LoRA tensors of an adapter; in `adapter_model.safetensors` the tensors lie in that order without
gaps, so that the data part of the file *is* the flat float32 vector and can be read and written by chunks.
Knows nothing of torch, of masking and of who sends what to whom.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from common.errors import DigestMismatch, InvalidArgument, ShapeMismatch

FlatVector = NDArray[np.float32]

ADAPTER_FILE: Final = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE: Final = "adapter_config.json"
MANIFEST_FILE: Final = "manifest.json"
FLOAT32_BYTES: Final = 4
MAX_HEADER_BYTES: Final = 64 * 1024 * 1024
PEFT_PREFIX: Final = "base_model.model."


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """One linear layer of a base model: module path, output and input width."""

    name: str
    out_features: int
    in_features: int


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """Where one LoRA tensor lies in the flat vector. `offset` and `size` count float32 elements."""

    name: str
    shape: tuple[int, int]
    offset: int

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True, slots=True)
class AdapterLayout:
    """The order of an adapter's tensors in its flat vector."""

    slots: tuple[TensorSlot, ...]

    @property
    def parameters(self) -> int:
        """d, the number of float32 elements."""
        return self.slots[-1].offset + self.slots[-1].size if self.slots else 0

    def header(self) -> bytes:
        """The safetensors header under which float32[d] in this order is a valid file."""
        return _header(self.slots)


@lru_cache(maxsize=4)
def _header(slots: tuple[TensorSlot, ...]) -> bytes:
    """Asked for with every file that is opened; a large adapter has thousands of tensors."""
    entries = {
        slot.name: {
            "dtype": "F32",
            "shape": list(slot.shape),
            "data_offsets": [slot.offset * FLOAT32_BYTES, (slot.offset + slot.size) * FLOAT32_BYTES],
        }
        for slot in slots
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """A LoRA adapter's shape (Hu et al. 2021, arXiv 2106.09685): W = W0 + alpha/rank * B A.

    target_modules: last parts of module paths, as in PEFT ("q_proj", ...); every linear layer so named is adapted.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]

    def adapted(self, layers: Iterable[LinearLayer]) -> tuple[LinearLayer, ...]:
        """The layers that this spec adapts, in the base model's order. Raises InvalidArgument if a target has none."""
        chosen = tuple(layer for layer in layers if layer.name.rsplit(".", 1)[-1] in self.target_modules)
        missing = set(self.target_modules) - {layer.name.rsplit(".", 1)[-1] for layer in chosen}
        if missing:
            raise InvalidArgument(f"the base model has no linear layer named {', '.join(sorted(missing))}")
        return chosen

    def layout(self, layers: Iterable[LinearLayer]) -> AdapterLayout:
        """Order of tensors: by layer as in the base model, lora_A (rank x in) before lora_B (out x rank)."""
        slots: list[TensorSlot] = []
        offset = 0
        for layer in self.adapted(layers):
            for factor, shape in (
                ("lora_A", (self.rank, layer.in_features)),
                ("lora_B", (layer.out_features, self.rank)),
            ):
                slot = TensorSlot(f"{PEFT_PREFIX}{layer.name}.{factor}.weight", shape, offset)
                slots.append(slot)
                offset += slot.size
        return AdapterLayout(tuple(slots))

    def peft_config(self, base_model_name: str) -> dict[str, Any]:
        """What `adapter_config.json` says, so that `PeftModel.from_pretrained(folder)` just works."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model_name,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "target_modules": sorted(self.target_modules),
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "inference_mode": True,
            "modules_to_save": None,
            "use_rslora": False,
            "use_dora": False,
        }

    def peft_config_json(self, base_model_name: str) -> str:
        """Content of `adapter_config.json`."""
        return config_text(self.peft_config(base_model_name))


def _check_flat(path: Path, layout: AdapterLayout) -> None:
    header = layout.header()
    with path.open("rb") as file:
        found = file.read(len(header))
    if found != header or path.stat().st_size != len(header) + layout.parameters * FLOAT32_BYTES:
        raise ShapeMismatch(f"{path} is not an adapter of {layout.parameters} parameters in the plan's layout")


def config_text(config: Mapping[str, Any]) -> str:
    """How this project writes `adapter_config.json`."""
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def natural_order(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key under which layer 2 comes before layer 10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name))


def initial_tensors(layout: AdapterLayout, *, seed: int) -> Iterator[tuple[TensorSlot, FlatVector]]:
    """The tensors of a new adapter, float32[size] each, in the layout's order, one at a time.

    lora_A uniform in ±1/sqrt(in) as PEFT's kaiming_uniform(a=sqrt 5), lora_B zero, so BA = 0.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    for slot in layout.slots:
        if ".lora_A." in slot.name:
            bound = 1.0 / math.sqrt(slot.shape[1])
            yield slot, generator.uniform(-bound, bound, slot.size).astype(np.float32)
        else:
            yield slot, np.zeros(slot.size, dtype=np.float32)


def square_norm(values: FlatVector) -> float:
    """Sum of squares in float64. Not by BLAS, whose threads would spin on every core for a sum of one chunk."""
    wide = values.astype(np.float64)
    return float(np.einsum("i,i->", wide, wide))


def flatten(tensors: Mapping[str, NDArray[Any]], layout: AdapterLayout) -> FlatVector:
    """Lay named tensors into float32[d]. Raises ShapeMismatch for a missing, extra or wrong-shaped tensor."""
    extra = sorted(set(tensors) - {slot.name for slot in layout.slots})
    if extra:
        raise ShapeMismatch(f"{len(extra)} tensors are not in the adapter spec, first {extra[0]}")
    flat = np.empty(layout.parameters, dtype=np.float32)
    for slot in layout.slots:
        tensor = tensors.get(slot.name)
        if tensor is None:
            raise ShapeMismatch(f"tensor {slot.name} is missing")
        if tensor.shape != slot.shape:
            raise ShapeMismatch(f"tensor {slot.name} has shape {tensor.shape}, the adapter spec says {slot.shape}")
        flat[slot.offset : slot.offset + slot.size] = tensor.reshape(-1)
    return flat


def unflatten(flat: FlatVector, layout: AdapterLayout) -> dict[str, FlatVector]:
    """Views of float32[d] by tensor name. Raises ShapeMismatch on a wrong length."""
    if flat.shape != (layout.parameters,):
        raise ShapeMismatch(f"flat vector has shape {flat.shape}, the adapter spec says ({layout.parameters},)")
    return {slot.name: flat[slot.offset : slot.offset + slot.size].reshape(slot.shape) for slot in layout.slots}


def open_flat(path: Path, layout: AdapterLayout, *, writable: bool = False) -> np.memmap[Any, np.dtype[np.float32]]:
    """The data part of an adapter file as a memory map float32[d].

    Raises ShapeMismatch unless the file's header is this layout's, byte for byte, and its length fits.
    """
    _check_flat(path, layout)
    return np.memmap(
        path,
        dtype=np.float32,
        mode="r+" if writable else "r",
        offset=len(layout.header()),
        shape=(layout.parameters,),
    )


@dataclass(frozen=True, slots=True)
class FlatFile:
    """The data part of an adapter file, read piece by piece: what is mapped counts as memory of who maps it."""

    path: Path
    offset_bytes: int
    parameters: int

    @classmethod
    def open(cls, path: Path, layout: AdapterLayout) -> Self:
        """Raises ShapeMismatch unless the file's header is this layout's, byte for byte, and its length fits."""
        _check_flat(path, layout)
        return cls(path, len(layout.header()), layout.parameters)

    def read(self, start: int, stop: int) -> FlatVector:
        """float32[stop - start]. Raises ShapeMismatch if the file has become shorter, or for elements outside."""
        values = np.empty(stop - start, dtype=np.float32)
        self.read_into(start, values)
        return values

    def read_into(self, start: int, values: FlatVector) -> None:
        """Fill contiguous float32[n] with the elements from `start` on. Raises ShapeMismatch as `read` does."""
        # Not numpy.fromfile: it takes twice as long for pieces that stay in a core's cache.
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            size = os.preadv(descriptor, [values.data], self.offset_bytes + start * FLOAT32_BYTES)
        finally:
            os.close(descriptor)
        if size != values.nbytes:
            raise ShapeMismatch(f"{self.path} ends before element {start + values.size}")


def create_adapter_file(path: Path, layout: AdapterLayout) -> np.memmap[Any, np.dtype[np.float32]]:
    """A new adapter file of zeros, mapped for writing; the caller flushes."""
    header = layout.header()
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + layout.parameters * FLOAT32_BYTES)
    return open_flat(path, layout, writable=True)


def write_adapter_folder(folder: Path, flat: FlatVector, layout: AdapterLayout, config: Mapping[str, Any]) -> str:
    """Write a PEFT folder (model and config) and return the digest of the model file."""
    folder.mkdir(parents=True, exist_ok=True)
    mapped = create_adapter_file(folder / ADAPTER_FILE, layout)
    mapped[:] = flat
    mapped.flush()
    (folder / ADAPTER_CONFIG_FILE).write_text(config_text(config))
    return file_digest(folder / ADAPTER_FILE)


def write_initial_folder(
    folder: Path, layers: Iterable[LinearLayer], spec: AdapterSpec, *, seed: int, base_model_name: str
) -> str:
    """Write a new LoRA, as `initial_tensors` begins it, as a PEFT folder; the digest of its model file."""
    layout = spec.layout(layers)
    flat = np.concatenate([values for _, values in initial_tensors(layout, seed=seed)])
    return write_adapter_folder(folder, flat, layout, spec.peft_config(base_model_name))


def file_digest(path: Path) -> str:
    """SHA-256 of a file, lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file_digest(path: Path, digest: str) -> None:
    """Raises DigestMismatch unless the file has this SHA-256."""
    found = file_digest(path)
    if found != digest:
        raise DigestMismatch(f"{path} has digest {found}, expected {digest}")
