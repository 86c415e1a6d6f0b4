"""First bases of a core or RAVAN adapter from the base model's own weights: the leading singular spaces of each layer.

LoRA-XS (arXiv 2405.17604, section 3) takes them for a core; RAVAN (arXiv 2506.05568) draws its heads at random, here
each head is the next `rank` singular vectors. Made once, by somebody who has the base model, and given to all sites by
digest; the coordinator has none. What is trained starts at zero, so the new adapter changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from common.adapters import FlatVector, LinearLayer, TensorSlot
from common.methods.base import Matrix, tensor_name
from common.methods.core import CORE_A, CORE_B, CORE_R, Core
from common.methods.orthonormal import leading_singular_spaces
from common.methods.ravan import RAVAN_A, RAVAN_B, RAVAN_H, Ravan

ReadWeight = Callable[[LinearLayer], Matrix]
"""The frozen weight of a layer, float32[out, in]."""


def initial_from_base(
    method: Core | Ravan, layers: Iterable[LinearLayer], read: ReadWeight, *, seed: int
) -> Iterator[tuple[TensorSlot, FlatVector]]:
    """The stored tensors of a new adapter, float32[size] each, in the layout's order.

    seed: of the range finder's sketch; another one finds the same spaces to within its accuracy, in other bits.
    Raises PlanInvalid or InvalidArgument if the layers or their weights do not fit.
    """
    adapted = method.spec.adapted(layers)
    slots = iter(method.layout(adapted).slots)
    generator = np.random.Generator(np.random.PCG64(seed))
    if isinstance(method, Ravan):
        width, names = method.width, (RAVAN_A, RAVAN_B, RAVAN_H)
    else:
        width, names = method.spec.rank, (CORE_A, CORE_B, CORE_R)
    for layer in adapted:
        spaces = leading_singular_spaces(read(layer), width, generator)
        for name, values in zip(names, (spaces.right, spaces.left, None), strict=True):
            slot = next(slots)
            if slot.name != tensor_name(layer, name):
                raise AssertionError(f"{slot.name} is where {name} of {layer.name} should be")
            yield slot, np.zeros(slot.size, np.float32) if values is None else np.ravel(values)
