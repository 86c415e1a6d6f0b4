"""What the processes of one job do together: agree, add up gradients, and hold a share of the frozen base each.

One process a device: gloo between CPUs, NCCL between GPUs, on this machine's own loopback. Knows nothing of records.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from common.errors import BaseModelUnavailable, InvalidArgument, TrainingFailed
from participant.training.job import Resources, Sharding
from participant.training.model import choose_device
from participant.training.ranks import Seat

# The others wait for the first one's evaluation. A process that dies is noticed by its end, not by this.
_TIMEOUT: Final = timedelta(days=1)
_LOOPBACK: Final = "lo"


@dataclass(frozen=True, slots=True)
class Group:
    """This process among those of its job. is_sharded: a forward pass is something that all of them must do at once."""

    rank: int
    size: int
    device: torch.device
    is_sharded: bool

    def any(self, flag: bool) -> bool:
        """Whether one of the processes says so; all hear the same."""
        said = torch.tensor([int(flag)], device=self.device)
        distributed.all_reduce(said, op=distributed.ReduceOp.MAX)
        return bool(said.item())

    def check_same(self, step: int) -> None:
        """Raises TrainingFailed unless all processes are at this step."""
        ends = torch.tensor([step, -step], device=self.device)
        distributed.all_reduce(ends, op=distributed.ReduceOp.MAX)
        if int(ends[0]) != -int(ends[1]):
            raise TrainingFailed(
                f"the job's processes read checkpoints of steps {-int(ends[1])} to {int(ends[0])}; "
                "start the job again, in a folder that all of them can read"
            )

    def add_up(self, parameters: Sequence[nn.Parameter], loss: float) -> float:
        """Put the sum of all processes' gradients on every one's parameters; returns the sum of their losses."""
        own = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        flat = torch.cat([gradient.reshape(-1) for gradient in own])
        distributed.all_reduce(flat)
        for one, total in zip(parameters, flat.split([one.numel() for one in parameters]), strict=True):
            one.grad = total.view_as(one)
        losses = torch.tensor([loss], dtype=torch.float64, device=self.device)
        distributed.all_reduce(losses)
        return float(losses.item())

    def shard(self, causal: PreTrainedModel, kept: Collection[nn.Parameter]) -> None:
        """Leave each process a share of every layer's frozen weights (FSDP2, Zhao et al. 2023, arXiv 2304.11277).

        A layer is put together for its own pass and taken apart again. kept: parameters that stay whole everywhere,
        the adapter's; so do embeddings, head and what else is in no layer.
        Raises BaseModelUnavailable for a model whose layers are not found.
        """
        body = causal.base_model
        lists = [module for module in body.modules() if isinstance(module, nn.ModuleList)]
        if not lists:
            raise BaseModelUnavailable(
                f'sharding = "fsdp" finds no list of layers in {type(causal).__name__}; use sharding = "none"'
            )
        mesh = init_device_mesh(self.device.type, (self.size,))
        layers = max(lists, key=lambda found: sum(one.numel() for one in found.parameters()))
        for layer in layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=set(kept))
        inside = {id(one) for one in layers.parameters()}
        whole = {one for one in body.parameters() if id(one) not in inside}
        fully_shard(body, mesh=mesh, ignored_params={*whole, *kept})


def check_devices(resources: Resources) -> None:
    """Raises InvalidArgument where there are fewer GPUs than processes."""
    if choose_device(resources.device).type == "cuda" and torch.cuda.device_count() < resources.processes:
        raise InvalidArgument(
            f"[training] processes = {resources.processes}, and torch sees {torch.cuda.device_count()} GPU(s), one for "
            "each process; lower processes, or let this process see more GPUs"
        )


@contextlib.contextmanager
def joined(seat: Seat, resources: Resources) -> Iterator[Group]:
    """Wait for the others, and be one of the group. Gradients do not leave the machine."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, _LOOPBACK)
    device = choose_device(resources.device)
    if device.type == "cuda":
        torch.cuda.set_device(seat.rank)
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=seat.store.resolve().as_uri(),
        rank=seat.rank,
        world_size=seat.size,
        timeout=_TIMEOUT,
    )
    yield Group(seat.rank, seat.size, device, resources.sharding is Sharding.FSDP)
    # Only where all went well: with a process gone, this could wait for it.
    distributed.destroy_process_group()
