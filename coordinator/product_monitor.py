"""FedIT's product monitor at the coordinator: the members' mean forms against those of their mean factors.

Reads a round's mean vector layer by layer; `common.methods.probes` says what is measured. Knows no member's own forms.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from common.adapters import FlatFile, TensorSlot
from common.methods import Matrix, tensor_name
from common.methods.base import LORA_A, LORA_B
from common.methods.probes import ProductProbe, relative_error
from common.plan import Plan
from common.secagg import SecaggPlan, TailSums
from common.sent import SentVector

# Of unbiased rounding between two neighbouring steps, in steps, for values that may lie anywhere between them: the mean
# of f (1 - f).
_ROUNDING_VARIANCE: Final = 1 / 6


def product_error(
    plan: Plan, masked: SecaggPlan, sent: SentVector, tail: TailSums, *, base: FlatFile, mean: FlatFile
) -> float:
    """How far the mean factors' product is from the mean product, relative to it, of a round's update over all layers.

    sent: FedIT's vector, its extras the forms. base: the global adapter that the round trained from, in the stored
    layout; mean: the whole mean vector.
    """
    pairs, slots = plan.method.product_probes, {slot.name: slot for slot in sent.tensors}
    # FedIT sends all that is stored, so a tensor lies in the mean vector where it lies in the adapter.
    products, of_means, noise = [], [], []
    at = sent.stretches.size
    for layer, extra in zip(plan.adapter.adapted(plan.base_model.layers), sent.extras, strict=True):
        probe = ProductProbe.of(bytes.fromhex(plan.run_id), layer, pairs)
        a, b = (slots[tensor_name(layer, factor)] for factor in (LORA_A, LORA_B))
        before = {slot.name: _tensor(base, slot) for slot in (a, b)}
        after = {slot.name: before[slot.name] + _tensor(mean, slot) for slot in (a, b)}
        of_means.append(probe.forms(after[a.name], after[b.name]) - probe.forms(before[a.name], before[b.name]))
        products.append(mean.read(at, at + pairs).astype(np.float64))
        step = extra.clip / (masked.lane_limit * tail.weight)
        noise.append(tail.count * _ROUNDING_VARIANCE * step**2)
        at += pairs
    return relative_error(products, of_means, noise=noise)


def _tensor(file: FlatFile, slot: TensorSlot) -> Matrix:
    return file.read(slot.offset, slot.offset + slot.size).reshape(slot.shape)
