"""Preflight checks of the machine: software, disk, memory, processor and GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from common.basemodel import BaseModel
from common.errors import StorageFailed
from common.version import UNINSTALLED, software_version
from participant.config import TrainingConfig
from participant.preflight.report import Result, failed, ok, warning
from participant.training.job import Device, Precision, Sharding

TRAINING_STACK: Final = ("torch", "transformers", "peft", "gguf", "pyarrow", "dp_accounting", "opacus")

_MEBIBYTE: Final = 1024 * 1024
_DEVICE_SECONDS: Final = 180
# Beside the weights: torch itself, and the activations of one micro batch of a small model. Less cannot work.
_TRAINING_OVERHEAD_BYTES: Final = 600 * _MEBIBYTE
_CGROUP_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_CGROUP_NO_LIMIT: Final = 2**60

# Runs in a child: torch is heavy, and a broken driver may take its process along.
_DEVICE_SCRIPT: Final = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
gpus = [torch.cuda.get_device_properties(i) for i in range(count)]
print(json.dumps({"torch": torch.__version__, "gpus": [[gpu.name, gpu.total_memory] for gpu in gpus],
                  "gpu_bf16": bool(gpus) and torch.cuda.is_bf16_supported(including_emulation=False),
                  "cpu_bf16": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())}))
"""


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Processors:
    """What torch finds on this machine."""

    torch: str
    gpus: tuple[Gpu, ...]
    gpu_has_bfloat16: bool
    cpu_has_bfloat16: bool


def software(stack: Sequence[str] = TRAINING_STACK) -> Result:
    """The training stack is installed beside the daemon."""
    missing = [name for name in stack if importlib.util.find_spec(name) is None]
    if missing:
        return failed(
            f"accord {software_version()} without {', '.join(missing)}",
            'install the participant\'s extra into this environment: pip install "accord[participant]"',
        )
    python = ".".join(str(part) for part in sys.version_info[:3])
    if software_version() == UNINSTALLED:
        return warning(f"a source tree that was never installed, Python {python}", "install it: pip install .")
    return ok(f"accord {software_version()}, Python {python}")


def disk(state_directory: Path, *, least_free_mebibytes: int) -> Result:
    """The state directory can be written, and has room."""
    if state_directory.exists() and not state_directory.is_dir():
        return failed(f"{state_directory} is no directory", "move the file away, or name another state_directory")
    problem = _write_problem(_existing(state_directory))
    if problem:
        return failed(
            f"{state_directory} cannot be written by this user (uid {os.getuid()}): {problem}",
            f"make it for the daemon's user: install -d -m 0700 -o USER {state_directory}",
        )
    free = free_bytes(state_directory) // _MEBIBYTE
    if free < least_free_mebibytes:
        return failed(
            f"{free} MiB are free at {state_directory}, the configuration asks for {least_free_mebibytes}",
            "free some space, put state_directory on a larger disk, or lower least_free_mebibytes",
        )
    return ok(f"{free} MiB are free at {state_directory}")


def _write_problem(folder: Path) -> str:
    """Why nothing can be written there; tried, because modes do not tell all of it (read-only mounts, quotas)."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"accord")
    except OSError as error:
        return error.strerror or str(error)
    return ""


def free_bytes(folder: Path) -> int:
    """Free space where `folder` lies or will lie. Raises StorageFailed."""
    try:
        return shutil.disk_usage(_existing(folder)).free
    except OSError as error:
        raise StorageFailed(f"cannot tell the free space of {folder}: {error}") from error


def processors(python: str = sys.executable) -> Processors | Result:
    """What torch finds, or the failed result that says why it does not even start."""
    try:
        answer = subprocess.run(
            [python, "-c", _DEVICE_SCRIPT], capture_output=True, text=True, timeout=_DEVICE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return failed(f"torch does not start: {error}", "run `python -c 'import torch'` in this environment")
    if answer.returncode != 0:
        words = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
        return failed(f"torch does not start: {words[-1]}", "repair the installation of torch in this environment")
    found = json.loads(answer.stdout.splitlines()[-1])
    gpus = tuple(Gpu(str(name), int(memory)) for name, memory in found["gpus"])
    return Processors(str(found["torch"]), gpus, bool(found["gpu_bf16"]), bool(found["cpu_bf16"]))


def device(found: Processors | Result, training: TrainingConfig) -> Result:
    """The device that the configuration asks for is there, and the threads fit the processor."""
    if isinstance(found, Result):
        return found
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if training.device is Device.CUDA and not found.gpus:
        return failed(
            f'device = "cuda", and torch {found.torch} finds no GPU',
            "check nvidia-smi, the driver, the unit's device access, and that torch was built for CUDA; "
            'or set device = "cpu"',
        )
    if training.precision is Precision.BFLOAT16 and found.gpus and not found.gpu_has_bfloat16:
        return failed(
            f'precision = "bfloat16", and {found.gpus[0].name} has none', 'set precision = "float32" or "auto"'
        )
    if found.gpus and training.device is not Device.CPU and training.processes > len(found.gpus):
        return failed(
            f"processes = {training.processes}, each with a GPU of its own, and there are {len(found.gpus)}",
            f'set training.processes to {len(found.gpus)} or less (and sharding = "none" with 1)',
        )
    if training.threads * training.processes > cores:
        threads = f"threads = {training.threads}"
        threads += f" in each of {training.processes} processes" if training.processes > 1 else ""
        return warning(
            f"{threads} on {cores} processors: they will wait for each other",
            f"set training.threads to {max(1, cores // training.processes)} or less",
        )
    if found.gpus and training.device is not Device.CPU:
        names = ", ".join(f"{gpu.name} ({gpu.memory_bytes // _MEBIBYTE} MiB)" for gpu in found.gpus)
        return ok(f"{names}, torch {found.torch}")
    return ok(f"no GPU is used; {training.threads} of {cores} processors, torch {found.torch}")


def memory(model: BaseModel, found: Processors, training: TrainingConfig) -> Result:
    """The base model's weights fit the memory that training will have."""
    weights = model.parameters * _bytes_per_parameter(found, training)
    # Loading holds the file's own bytes beside the converted ones, tensor by tensor; the peak is the weights'.
    uses_gpu = bool(found.gpus) and training.device is not Device.CPU
    # Of several processes, a GPU has one's, and the machine's memory all of them: each loads all weights before they
    # are shared out.
    shares = training.processes if uses_gpu and training.sharding is Sharding.FSDP else 1
    processes = 1 if uses_gpu else training.processes
    needed = int(processes * (weights / shares + _TRAINING_OVERHEAD_BYTES))
    available = found.gpus[0].memory_bytes if uses_gpu else available_memory_bytes(training)
    where = "on the GPU" if uses_gpu else "for training"
    said = f"{model.name} needs at least {needed // _MEBIBYTE} MiB, and {available // _MEBIBYTE} MiB are there {where}"
    if needed > available:
        return failed(
            said, "use a smaller base model, a machine with more memory, or raise the limit that holds training back"
        )
    if needed > 0.7 * available:
        return warning(said, "lower micro_batch_size if training is killed; activations come on top of this")
    return ok(said)


def available_memory_bytes(training: TrainingConfig, *, cgroup_limits: tuple[Path, ...] = _CGROUP_LIMITS) -> int:
    """The least of what is free, what a container or unit may use, and what the configuration gives."""
    limits = [psutil.virtual_memory().available]
    for file in cgroup_limits:
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < _CGROUP_NO_LIMIT:
            limits.append(int(text))
    if training.memory_mebibytes is not None:
        limits.append(training.memory_mebibytes * _MEBIBYTE)
    return min(limits)


def _bytes_per_parameter(found: Processors, training: TrainingConfig) -> int:
    if training.precision is Precision.AUTO:
        uses_gpu = bool(found.gpus) and training.device is not Device.CPU
        return 2 if (found.gpu_has_bfloat16 if uses_gpu else found.cpu_has_bfloat16) else 4
    return 2 if training.precision is Precision.BFLOAT16 else 4


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))
