"""A GGUF file becomes a local safetensors folder, once: bfloat16 weights, tokenizer, chat template.

Knows one file format. torch is imported only once there is something to convert.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from common.adapters import file_digest
from common.errors import BaseModelUnavailable, StorageFailed

_STAGES: Final = 4
_MAGIC: Final = b"GGUF"


def convert_gguf(file: Path, *, cache_folder: Path, on_stage: Callable[[int, int, str], None]) -> Path:
    """The safetensors folder of a GGUF file, named by the file's stem and digest; made if it is not there.

    A folder under its final name is complete: it is written beside and renamed, so a kill leaves nothing half.
    Several processes may call at once; one converts, the others wait. Raises BaseModelUnavailable, StorageFailed.
    """
    on_stage(1, _STAGES, f"hash {file.name}")
    folder = cache_folder / f"{file.stem}-{_digest(file)[:16]}-bf16"
    if folder.is_dir():
        return folder.resolve()
    try:
        cache_folder.mkdir(parents=True, exist_ok=True)
        with _locked(cache_folder / f"{folder.name}.lock"):
            if not folder.is_dir():
                partial = cache_folder / f"{folder.name}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                _convert(file, partial, on_stage)
                _sync(partial)
                partial.rename(folder)
    except OSError as error:
        raise StorageFailed(f"cannot write the converted base model to {cache_folder}: {error}") from error
    return folder.resolve()


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            magic = stream.read(len(_MAGIC))
        if magic != _MAGIC:
            raise BaseModelUnavailable(f"{file} is not a GGUF file")
        return file_digest(file)
    except OSError as error:
        raise BaseModelUnavailable(f"cannot read the base model {file}: {error.strerror}") from error


def _convert(file: Path, folder: Path, on_stage: Callable[[int, int, str], None]) -> None:
    import torch
    import transformers

    on_stage(2, _STAGES, "read and unpack the weights")
    # Newer libraries keep the weights packed unless told not to; older ones know only how to unpack.
    packed = getattr(transformers, "GgufConfig", None)
    options = {} if packed is None else {"quantization_config": packed(dequantize=True)}
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.bfloat16, **options
        )
        on_stage(3, _STAGES, "read the tokenizer")
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except (ValueError, KeyError, NotImplementedError, RuntimeError, IndexError) as error:
        raise BaseModelUnavailable(
            f"{file} cannot be converted ({type(error).__name__}: {error}); use a safetensors folder of the model"
        ) from error
    on_stage(4, _STAGES, "write the safetensors folder")
    # What is left of how the weights were packed and of where they lay is no part of the model.
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _sync(folder: Path) -> None:
    """Weights on disk before the name that says they are."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # released with the process, however it ends
        yield
