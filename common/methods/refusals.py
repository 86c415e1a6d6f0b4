"""Settings of `Method` that belong to some methods only, and what is said to who gives them to another."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from common.errors import PlanInvalid
from common.methods.base import Method

# Beside the sums of both factors each probe is an equation for one site's product: of two sites, as many as a product
# has free numbers would give the two apart. A few dozen measure well, and are a small part of any real layer's.
MOST_PRODUCT_PROBES: Final = 64
# What is set, whose it is, and what a person should know.
_OWNED: Final[tuple[tuple[Callable[[Method], bool], frozenset[str], str], ...]] = (
    (
        lambda method: bool(method.schedule) or method.phase_rounds != 1,
        frozenset({"rolora"}),
        "method.schedule and phase_rounds are rolora's: {name} sends the same in every round",
    ),
    (
        lambda method: bool(method.product_probes),
        frozenset({"fedit"}),
        "method.product_probes measures how far FedIT's mean is from the exact one: {name} is exact, set 0",
    ),
    (
        lambda method: bool(method.heads),
        frozenset({"ravan"}),
        "method.heads is ravan's: an adapter of {name} has no heads, set 0",
    ),
    (
        lambda method: bool(method.alignment),
        frozenset({"fedit"}),
        "method.alignment rotates A and B together before fedit sends both: {name} leaves one frozen, set 0",
    ),
    (
        lambda method: method.control_variates,
        frozenset({"fedit", "ffa_lora", "core"}),
        "method.control_variates needs sites that train what they send, the same in every round: not {name}'s",
    ),
    (
        lambda method: method.control_variates and method.server_optimizer != "fedavg",
        frozenset(),
        (
            "method.control_variates finds the mean step in two global adapters, and with {server_optimizer} they do "
            "not differ by it; take fedavg"
        ),
    ),
    (
        lambda method: method.control_variates and bool(method.alignment),
        frozenset(),
        "method.control_variates and method.alignment do not go together: a control variate is of unrotated factors",
    ),
)


def check_settings(method: Method) -> None:
    """Raises PlanInvalid that lists every setting that is another method's, or out of its range."""
    mistakes = [
        text.format(name=method.name, server_optimizer=method.server_optimizer)
        for is_set, owners, text in _OWNED
        if is_set(method) and method.name not in owners
    ]
    if not 0 <= method.product_probes <= MOST_PRODUCT_PROBES:
        mistakes.append(f"method.product_probes must be from 0 (off) to {MOST_PRODUCT_PROBES}")
    if not (math.isfinite(method.proximal_weight) and method.proximal_weight >= 0.0):
        mistakes.append("method.proximal_weight (FedProx's mu) must be 0 (off) or a positive number")
    if not 0.0 <= method.alignment <= 1.0:
        mistakes.append("method.alignment (FedRot's lambda) must be from 0 (off) to 1 (the whole rotation)")
    if mistakes:
        raise PlanInvalid("; ".join(mistakes))
