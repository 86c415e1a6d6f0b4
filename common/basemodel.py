"""What a base model is to a federation: its digest and its linear layers, read from a local safetensors folder.

Reads headers and hashes bytes; never builds a model and knows nothing of torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common import jsonform
from common.adapters import MAX_HEADER_BYTES, LinearLayer, natural_order
from common.errors import BaseModelUnavailable

DIGEST_CACHE_FILE: Final = ".accord-digest.json"
_DIGEST_FORM: Final = "accord-base-model-v1"
_READ_BYTES: Final = 4 * 1024 * 1024

# Keys that name a place, a time or a version of a library: the same model has other values elsewhere.
_VOLATILE_CONFIG_KEYS: Final = frozenset(
    {
        "_name_or_path",
        "_model_name_or_path",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "use_cache",
        "_attn_implementation_autoset",
    }
)
# Where a call of the library last left its tokenizer: no part of the model.
_VOLATILE_TOKENIZER_KEYS: Final = frozenset({"truncation", "padding"})
_NOT_LINEAR: Final = ("embed", "lm_head", "wte", "wpe", "norm", "router", "rotary")
# How numpy reads what safetensors calls so.
_NUMBERS: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# These keep a linear layer's weight as (in, out); a layout made from their headers would be wrong.
_TRANSPOSED_MODEL_TYPES: Final = frozenset({"gpt2", "openai-gpt"})


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model as plans and participants name it.

    digest: hex SHA-256 of weights, tokenizer, configuration and chat template, whatever the file layout.
    architecture: the class name in config.json. layers: every linear layer, in natural order of their names.
    parameters: number of elements in all tensors. dtype: the one that most elements have, as safetensors names it.
    """

    name: str
    digest: str
    architecture: str
    layers: tuple[LinearLayer, ...]
    parameters: int
    dtype: str

    def to_json(self) -> str:
        """Canonical JSON; an operator hands it to the coordinator when creating a run."""
        return jsonform.encode(self, BaseModel)

    @classmethod
    def from_json(cls, text: str | bytes) -> BaseModel:
        """Raises InvalidArgument that lists every mistake."""
        return jsonform.decode(text, cls, what="base model description")


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor's place in one safetensors file; start and end are offsets in that file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def describe(folder: Path, *, name: str | None = None, cache_folder: Path | None = None) -> BaseModel:
    """Describe the base model in a local safetensors folder, sharded or not.

    name: how people call it; the folder's own name if left out.
    cache_folder: where digests are remembered by path, size and modification time of every file; without it, in the
    model's folder itself where that can be written. Raises BaseModelUnavailable if the folder is no such model.
    """
    folder = folder.resolve()
    config = _read_json(folder / "config.json", what="base model")
    if config.get("model_type") in _TRANSPOSED_MODEL_TYPES:
        raise BaseModelUnavailable(
            f"{folder}: models of type {config['model_type']} keep their linear layers transposed and are not supported"
        )
    tensors = _tensors(folder)
    elements_by_dtype: dict[str, int] = {}
    for tensor in tensors:
        elements_by_dtype[tensor.dtype] = elements_by_dtype.get(tensor.dtype, 0) + tensor.elements
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise BaseModelUnavailable(f"{folder / 'config.json'} names no architecture")
    return BaseModel(
        name=name or folder.name,
        digest=_cached_digest(folder, config, tensors, cache_folder),
        architecture=str(architectures[0]),
        layers=_linear_layers(tensors),
        parameters=sum(elements_by_dtype.values()),
        dtype=max(elements_by_dtype, key=lambda dtype: elements_by_dtype[dtype]),
    )


class LinearWeights:
    """The weights of a base model's linear layers, read one at a time from its files."""

    def __init__(self, folder: Path) -> None:
        """Raises BaseModelUnavailable if the folder is no base model."""
        self._tensors = {tensor.name: tensor for tensor in _tensors(folder.resolve())}

    def read(self, layer: LinearLayer) -> NDArray[np.float32]:
        """float32[out, in]. Raises BaseModelUnavailable for a layer that is not there, or is in another precision."""
        tensor = self._tensors.get(f"{layer.name}.weight")
        if tensor is None or tensor.shape != (layer.out_features, layer.in_features):
            raise BaseModelUnavailable(
                f"the base model has no linear layer {layer.name} of the shape that is asked for"
            )
        kind = _NUMBERS.get(tensor.dtype)
        if kind is None:
            raise BaseModelUnavailable(
                f"{tensor.file}: {tensor.name} is stored as {tensor.dtype}; weights are read from {', '.join(_NUMBERS)}"
            )
        values = np.fromfile(tensor.file, dtype=kind, count=tensor.elements, offset=tensor.start)
        if values.size != tensor.elements:
            raise BaseModelUnavailable(f"{tensor.file} is cut short at tensor {tensor.name}")
        if tensor.dtype == "BF16":  # the upper half of a float32, which numpy has no type for
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32, copy=False).reshape(tensor.shape)


def _linear_layers(tensors: tuple[_Tensor, ...]) -> tuple[LinearLayer, ...]:
    return tuple(
        LinearLayer(tensor.name.removesuffix(".weight"), tensor.shape[0], tensor.shape[1])
        for tensor in sorted(tensors, key=lambda tensor: natural_order(tensor.name))
        if len(tensor.shape) == 2
        and tensor.name.endswith(".weight")
        and not any(part in tensor.name for part in _NOT_LINEAR)
    )


def _tensors(folder: Path) -> tuple[_Tensor, ...]:
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(_read_json(index, what="shard index").get("weight_map", {}).values())
        files = [folder / str(file) for file in sorted(named)]
    elif (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    if not files:
        raise BaseModelUnavailable(f"{folder} holds no *.safetensors file; convert the model to safetensors first")
    tensors = tuple(tensor for file in files for tensor in _read_header(file))
    if not tensors:
        raise BaseModelUnavailable(f"{folder} holds no tensors")
    return tensors


def _read_header(file: Path) -> Iterator[_Tensor]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(MAX_HEADER_BYTES, size):
                raise BaseModelUnavailable(f"{file} is not a safetensors file, or is cut short")
            header = json.loads(stream.read(length))
        data = 8 + length
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = (data + int(offset) for offset in entry["data_offsets"])
            if not data <= start <= end <= size:
                raise BaseModelUnavailable(f"{file} is cut short at tensor {name}; copy or download it again")
            yield _Tensor(name, str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), file, start, end)
    except OSError as error:
        raise BaseModelUnavailable(f"cannot read {file}: {error.strerror}") from error
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelUnavailable(f"{file} is not a safetensors file, or is cut short") from error


def _digest(folder: Path, config: dict[str, Any], tensors: tuple[_Tensor, ...]) -> str:
    """Over content only: file names, sharding and the order of tensors in a file leave it alone."""
    total = hashlib.sha256(_DIGEST_FORM.encode())
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        line = json.dumps([tensor.name, tensor.dtype, list(tensor.shape), _tensor_digest(tensor)])
        total.update(line.encode() + b"\n")
    total.update(_canonical(_without(config, _VOLATILE_CONFIG_KEYS)))
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise BaseModelUnavailable(f"{folder} holds no tokenizer.json; save the fast tokenizer beside the weights")
    total.update(_canonical(_without(_read_json(tokenizer, what="tokenizer"), _VOLATILE_TOKENIZER_KEYS)))
    total.update(_canonical(_chat_template(folder)))
    return total.hexdigest()


def _tensor_digest(tensor: _Tensor) -> str:
    digest = hashlib.sha256()
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        left = tensor.end - tensor.start
        while left:
            block = stream.read(min(left, _READ_BYTES))
            if not block:
                raise BaseModelUnavailable(f"{tensor.file} is cut short at tensor {tensor.name}")
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def _chat_template(folder: Path) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    configuration = folder / "tokenizer_config.json"
    if not configuration.is_file():
        return ""
    template = _read_json(configuration, what="tokenizer configuration").get("chat_template") or ""
    return template if isinstance(template, str) else json.dumps(template, sort_keys=True)


def _cached_digest(
    folder: Path, config: dict[str, Any], tensors: tuple[_Tensor, ...], cache_folder: Path | None
) -> str:
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name != DIGEST_CACHE_FILE)
    # A snapshot from a hub's cache is a folder of links: stat() looks at what they point to.
    stamps = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    key = [_DIGEST_FORM, str(folder), stamps]
    file = folder / DIGEST_CACHE_FILE
    if cache_folder is not None:
        file = cache_folder / f"digest-{hashlib.sha256(str(folder).encode()).hexdigest()[:24]}.json"
    remembered = _read_cache(file)
    if remembered is not None and remembered.get("key") == key:
        return str(remembered["digest"])
    digest = _digest(folder, config, tensors)
    _write_cache(file, {"key": key, "digest": digest})
    return digest


def _read_cache(file: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _write_cache(file: Path, value: dict[str, Any]) -> None:
    """The cache only saves time: a folder that cannot be written is no error, the next caller hashes again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".accord-digest-")
    except OSError:
        return
    try:
        with os.fdopen(handle, "w") as stream:
            json.dump(value, stream)
        os.replace(temporary, file)
    except OSError:
        Path(temporary).unlink(missing_ok=True)


def _read_json(file: Path, *, what: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise BaseModelUnavailable(f"{what}: cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise BaseModelUnavailable(f"{what}: {file} is not JSON") from error
    if not isinstance(value, dict):
        raise BaseModelUnavailable(f"{what}: {file} is not a JSON object")
    return value


def _without(value: dict[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in keys}


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"
