"""What the rounds of a run send: from a plan to each turn's vector, tensor deltas first, then extras.

Coordinator and participants build the same from the same plan. Knows nothing of masks and of files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from common.adapters import AdapterLayout, TensorSlot
from common.methods import laid_out, turn_of
from common.methods.probes import product_clip
from common.methods.sent import Stretches
from common.plan import Plan
from common.secagg import ClipSlot

PRODUCT_PREFIX: Final = "product."


@dataclass(frozen=True, slots=True)
class Extra:
    """Elements that are summed beside the deltas. clip: bound on one of them."""

    name: str
    size: int
    clip: float


@dataclass(frozen=True, slots=True)
class SentVector:
    """The vector of one turn: deltas of `tensors` (at their places in the stored layout), then `extras`."""

    tensors: tuple[TensorSlot, ...]
    extras: tuple[Extra, ...]
    slots: tuple[ClipSlot, ...]
    stretches: Stretches

    @property
    def extra_elements(self) -> int:
        return sum(extra.size for extra in self.extras)

    @property
    def parameters(self) -> int:
        """Elements of the whole vector."""
        return self.stretches.size + self.extra_elements


def sent_vectors(plan: Plan) -> tuple[SentVector, ...]:
    """The vectors of all turns, by turn. Raises PlanInvalid or InvalidArgument for a plan that cannot be."""
    return _sent_vectors(plan)


def sent_vector(plan: Plan, round_: int) -> SentVector:
    """The vector of a training round."""
    return sent_vectors(plan)[turn_of(plan.adapter_method().schedule, round_)]


def moving_layout(plan: Plan) -> AdapterLayout:
    """The tensors that move in some turn, one behind the other: what server optimisers keep state for."""
    method = plan.adapter_method()
    turns = set(method.schedule)
    return laid_out(
        (slot.name, slot.shape) for slot in plan.layout().slots if any(method.is_sent(slot.name, at) for at in turns)
    )


@lru_cache(maxsize=8)
def _sent_vectors(plan: Plan) -> tuple[SentVector, ...]:
    """Asked for with every chunk of some loops, and a large adapter has thousands of tensors."""
    method, layout = plan.adapter_method(), plan.layout()
    extras = _extras(plan)
    vectors = []
    for turn in range(max(method.schedule) + 1):
        tensors = tuple(slot for slot in layout.slots if method.is_sent(slot.name, turn))
        slots = (
            *(ClipSlot(slot.size, plan.masking.clip_of(slot.name)) for slot in tensors),
            *(ClipSlot(extra.size, extra.clip) for extra in extras),
        )
        vectors.append(SentVector(tensors, extras, slots, Stretches.of(tensors)))
    return tuple(vectors)


def _extras(plan: Plan) -> tuple[Extra, ...]:
    pairs = plan.method.product_probes
    if not pairs:
        return ()
    return tuple(
        Extra(f"{PRODUCT_PREFIX}{layer.name}", pairs, product_clip(layer, plan.adapter, plan.masking.element_clip))
        for layer in plan.adapter.adapted(plan.base_model.layers)
    )
