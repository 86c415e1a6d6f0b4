"""Federated methods by the name that a plan gives: what an adapter is made of, what of it is sent, how it is exported.

`adapter_method(plan.method, plan.adapter)` is the only way in. `base` defines the words and the protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from common.adapters import AdapterSpec
from common.errors import PlanInvalid
from common.methods.base import AdapterMethod, LoraFactors, Matrix, Method, laid_out, tensor_name, turn_of
from common.methods.core import Core
from common.methods.lora import FedIT, FfaLora, RoLora
from common.methods.ravan import Ravan
from common.methods.refusals import check_settings

__all__ = [
    "METHODS",
    "AdapterMethod",
    "LoraFactors",
    "Matrix",
    "Method",
    "adapter_method",
    "laid_out",
    "tensor_name",
    "turn_of",
]

SHOWN_CHARACTERS: Final = 40

METHODS: Final[Mapping[str, Callable[[Method, AdapterSpec], AdapterMethod]]] = {
    "fedit": FedIT.of,
    "ffa_lora": FfaLora.of,
    "rolora": RoLora.of,
    "core": Core.of,
    "ravan": Ravan.of,
}


def adapter_method(method: Method, spec: AdapterSpec) -> AdapterMethod:
    """The method that a plan names, for its adapter. Raises PlanInvalid that says what would fit."""
    try:
        make = METHODS[method.name]
    except KeyError:
        raise PlanInvalid(
            f"method {method.name[:SHOWN_CHARACTERS]!r} is not known; known: {', '.join(METHODS)}"
        ) from None
    check_settings(method)
    return make(method, spec)
