"""A checkpoint of one training job: factors, optimiser moments and position, in one file that is replaced atomically.

Safetensors, so that nothing in it is executed. A checkpoint of another job, or a broken one, counts as none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from common import jsonform
from common.errors import InvalidArgument

CHECKPOINT_FILE: Final = "checkpoint.safetensors"

_MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")
_POSITION: Final = "position"


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a job has come. step: optimiser steps done; the order of records follows from it and the seed."""

    job_digest: str
    step: int
    losses: tuple[float, ...]
    records: int
    tokens: int
    answer_tokens: int
    seconds: float


def save_checkpoint(
    file: Path, position: Position, *, trained: Mapping[str, nn.Parameter], optimiser: torch.optim.AdamW
) -> None:
    """Replace the checkpoint; a kill leaves the old one or the new one."""
    tensors: dict[str, Tensor] = {"random": torch.get_rng_state()}
    for name, factor in trained.items():
        tensors[f"factor.{name}"] = factor.detach().cpu().contiguous()
        for moment in _MOMENTS:
            tensors[f"{moment}.{name}"] = optimiser.state[factor][moment].detach().cpu().contiguous()
    partial = file.with_name(f".{file.name}.partial")
    save_file(tensors, str(partial), metadata={_POSITION: jsonform.encode(position, Position)})
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    partial.replace(file)


def restore_checkpoint(
    file: Path, *, job_digest: str, trained: Mapping[str, nn.Parameter], optimiser: torch.optim.AdamW
) -> Position | None:
    """Put a checkpoint's values back into factors and optimiser; None, and nothing changed, if there is none to use."""
    try:
        with safe_open(str(file), framework="pt") as stored:
            position = jsonform.decode((stored.metadata() or {}).get(_POSITION, ""), Position, what="checkpoint")
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (no mapping)
    except (FileNotFoundError, SafetensorError, InvalidArgument):
        return None
    if position.job_digest != job_digest or any(f"factor.{name}" not in tensors for name in trained):
        return None
    with torch.no_grad():
        for name, factor in trained.items():
            factor.copy_(tensors[f"factor.{name}"])
            # All of it, the count of steps too, which the fused optimiser keeps beside the moments.
            optimiser.state[factor] = {moment: tensors[f"{moment}.{name}"].to(factor.device) for moment in _MOMENTS}
    torch.set_rng_state(tensors["random"])
    return position
