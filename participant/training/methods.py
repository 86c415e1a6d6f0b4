"""The client side of a federated method: what is trained, what is added to loss and steps, and what is done at the end.

Knows nothing of data, optimisers and rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from common.adapters import AdapterSpec
from common.methods import AdapterMethod, LoraFactors, Method, adapter_method, turn_of
from common.methods.base import LORA_A, LORA_B
from participant.training.rotation import aligned

NamedTensors = Mapping[str, Tensor]
NamedParameters = Mapping[str, nn.Parameter]

_A: Final = f".{LORA_A}."
_B: Final = f".{LORA_B}."


class ClientMethod(Protocol):
    """One method's part in local training. Names are those of `AdaptedModel.movable`: the adapter file's, and RAVAN's
    scalars."""

    def is_trained(self, name: str) -> bool:
        """Whether this parameter moves; the others keep the global adapter's values, bit for bit."""
        ...

    def penalty(self, local: NamedTensors, start: NamedTensors) -> Tensor | None:
        """What is added to the mean loss of a step, a scalar; None for nothing. start: the global adapter's values."""
        ...

    def after_step(self, local: NamedParameters, *, learning_rate: float) -> None:
        """What is done to the trained parameters, in place, once the optimiser has taken a step at this rate."""
        ...

    def finish(self, local: NamedParameters, start: NamedTensors) -> None:
        """What is done to the parameters, in place, when training is over and before the deltas are formed."""
        ...


@dataclass(frozen=True, slots=True)
class LocalMethod:
    """A plan's method in one round at one site.

    proximal_weight: mu of FedProx (Li et al. 2020, arXiv 1812.06127, eq. 2), 0 is off: the loss is L + mu/2 ||theta -
    theta_t||^2 over what is trained. alignment: lambda of FedRot-LoRA (`rotation`), 0 is off; align_by_a: in this round
    by A, else by B. correction: what SCAFFOLD adds to a step's direction (`control`), by name; empty is off.
    """

    kind: AdapterMethod
    turn: int
    proximal_weight: float = 0.0
    alignment: float = 0.0
    align_by_a: bool = True
    correction: NamedTensors = field(default_factory=dict)

    def is_trained(self, name: str) -> bool:
        return self.kind.is_sent(name, self.turn)

    def penalty(self, local: NamedTensors, start: NamedTensors) -> Tensor | None:
        if not self.proximal_weight:
            return None
        squares = [(tensor - start[name]).square().sum() for name, tensor in local.items()]
        return 0.5 * self.proximal_weight * torch.stack(squares).sum()

    def after_step(self, local: NamedParameters, *, learning_rate: float) -> None:
        with torch.no_grad():
            for name, correction in self.correction.items():
                local[name].add_(correction, alpha=-learning_rate)

    def finish(self, local: NamedParameters, start: NamedTensors) -> None:
        if not self.alignment:
            return
        for name in local:
            if _A in name:
                other = name.replace(_A, _B)
                found = aligned(
                    _factors(local[name], local[other]),
                    _factors(start[name], start[other]),
                    by_a=self.align_by_a,
                    strength=self.alignment,
                )
                _put(local[name], torch.from_numpy(found.a))
                _put(local[other], torch.from_numpy(found.b))


def client_method(
    method: Method, spec: AdapterSpec, *, round_: int, correction: NamedTensors | None = None
) -> LocalMethod:
    """The client side of a plan's method in a round; they count from 1. Raises PlanInvalid for a method that is none.

    correction: of SCAFFOLD; None without control variates.
    """
    kind = adapter_method(method, spec)
    return LocalMethod(
        kind=kind,
        turn=turn_of(kind.schedule, round_),
        proximal_weight=method.proximal_weight,
        alignment=method.alignment,
        align_by_a=round_ % 2 == 1,
        correction=correction or {},
    )


def _factors(a: Tensor, b: Tensor) -> LoraFactors:
    return LoraFactors(a.detach().cpu().numpy(), b.detach().cpu().numpy())


def _put(parameter: nn.Parameter, values: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(values)
