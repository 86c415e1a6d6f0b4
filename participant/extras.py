"""What a round sums beside the deltas: the forms of FedIT's product monitor, made from the update that is sent.

In a file of the round's job folder, so that after a kill the same is masked. Knows nothing of masks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from common.adapters import FLOAT32_BYTES, FlatFile, TensorSlot
from common.durable import write_durably
from common.errors import StorageFailed, UpdateLost
from common.methods import Matrix, tensor_name
from common.methods.base import LORA_A, LORA_B
from common.methods.probes import ProductProbe
from common.plan import Plan
from common.sent import SentVector
from participant.update import Update

EXTRAS_FILE: Final = "extras.f32"


def write_extras(path: Path, plan: Plan, update: Update) -> None:
    """The extras of a training round whose deltas are `update`; nothing where the plan asks for none.

    Of layer after layer, float32[m]: y^T (B_i A_i - B A) x with the factors as they are sent, scaled to the L2 bound.
    Raises StorageFailed.
    """
    pairs = plan.method.product_probes
    if not pairs:
        return
    layout = plan.layout()
    slots = {slot.name: slot for slot in layout.slots}
    forms = []
    for layer in plan.adapter.adapted(plan.base_model.layers):
        probe = ProductProbe.of(bytes.fromhex(plan.run_id), layer, pairs)
        a, b = (slots[tensor_name(layer, factor)] for factor in (LORA_A, LORA_B))
        before_a, before_b = _tensor(update.base, a), _tensor(update.base, b)
        sent_a = before_a + np.float32(update.scale) * (_tensor(update.local, a) - before_a)
        sent_b = before_b + np.float32(update.scale) * (_tensor(update.local, b) - before_b)
        forms.append(probe.forms(sent_a, sent_b) - probe.forms(before_a, before_b))
    try:
        write_durably(path, np.concatenate(forms).astype("<f4").tobytes())
    except OSError as error:
        raise StorageFailed(f"cannot write {path}: {error.strerror}; free some disk") from error


def open_extras(path: Path, sent: SentVector) -> FlatFile | None:
    """None where the round has no extras. Raises UpdateLost if the file is not what the plan says."""
    if not sent.extras:
        return None
    size = path.stat().st_size if path.exists() else 0
    if size != sent.extra_elements * FLOAT32_BYTES:
        raise UpdateLost(f"{path} has {size} bytes, the plan says {sent.extra_elements * FLOAT32_BYTES}")
    return FlatFile(path, 0, sent.extra_elements)


def _tensor(file: FlatFile, slot: TensorSlot) -> Matrix:
    return file.read(slot.offset, slot.offset + slot.size).reshape(slot.shape)
