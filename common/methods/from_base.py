"""First bases of an adapter from the base model's own weights: the leading singular spaces of each layer.

LoRA-XS (arXiv 2405.17604, section 3) takes them for a core. The others draw theirs at random; here each head of RAVAN
(arXiv 2506.05568) is the next `rank` singular vectors, and A of FFA-LoRA (arXiv 2403.12313) and RoLoRA (arXiv
2409.02346) the leading right ones, which see most of what comes into a layer. Made once, by somebody who has the base
model, and given to all sites by digest; the coordinator has none. The rest is zero, so the adapter changes nothing yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from common.adapters import FlatVector, LinearLayer, TensorSlot
from common.methods.base import LORA_A, LORA_B, Matrix, tensor_name
from common.methods.core import CORE_A, CORE_B, CORE_R, Core
from common.methods.lora import FfaLora, RoLora
from common.methods.orthonormal import SingularSpaces, leading_singular_spaces
from common.methods.ravan import RAVAN_A, RAVAN_B, RAVAN_H, Ravan

FromBase = Core | Ravan | FfaLora | RoLora
"""Methods that take bases from a base model: those with a factor that is frozen when the first round begins."""

ReadWeight = Callable[[LinearLayer], Matrix]
"""The frozen weight of a layer, float32[out, in]."""


def initial_from_base(
    method: FromBase, layers: Iterable[LinearLayer], read: ReadWeight, *, seed: int
) -> Iterator[tuple[TensorSlot, FlatVector]]:
    """The stored tensors of a new adapter, float32[size] each, in the layout's order.

    seed: of the range finder's sketch; another one finds the same spaces to within its accuracy, in other bits.
    Raises PlanInvalid or InvalidArgument if the layers or their weights do not fit.
    """
    adapted = method.spec.adapted(layers)
    slots = iter(method.layout(adapted).slots)
    generator = np.random.Generator(np.random.PCG64(seed))
    width = method.width if isinstance(method, Ravan) else method.spec.rank
    for layer in adapted:
        spaces = leading_singular_spaces(read(layer), width, generator)
        for name, values in _tensors(method, spaces):
            slot = next(slots)
            if slot.name != tensor_name(layer, name):
                raise AssertionError(f"{slot.name} is where {name} of {layer.name} should be")
            yield slot, np.zeros(slot.size, np.float32) if values is None else np.ravel(values)


def _tensors(method: FromBase, spaces: SingularSpaces) -> tuple[tuple[str, Matrix | None], ...]:
    """A layer's tensors in their order; None: zeros."""
    match method:
        case Core():
            return (CORE_A, spaces.right), (CORE_B, spaces.left), (CORE_R, None)
        case Ravan():
            return (RAVAN_A, spaces.right), (RAVAN_B, spaces.left), (RAVAN_H, None)
        case _:
            return (LORA_A, spaces.right), (LORA_B, None)
