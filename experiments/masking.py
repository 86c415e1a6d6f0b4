"""Whether masking changed anything: each round's adapter against the plain weighted mean of what the sites trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from common.adapters import ADAPTER_FILE, FlatVector, open_flat
from common.plan import Plan
from common.secagg import lane_limit
from coordinator.runs import adapter_key
from coordinator.store.blobs import BlobStore
from experiments.site import CONTRIBUTION_FILE
from participant.update import Contribution

TRAINED_FOLDER: Final = "trained"
_ROUNDING: Final = 8 * float(np.finfo(np.float32).eps)


def masking_error(folder: Path, *, plan: Plan, rounds: Sequence[Mapping[str, Any]], blobs: BlobStore) -> float:
    """Largest error of an element over all rounds, as a fraction of its bound: at most 1 where masking is exact.

    The bound of the fixed point is |U3| * C / (L * A) an element of the mean (each survivor rounds by less than a
    step), times the server's rate, with float32's rounding on top. Holds for the optimiser that adds the mean as it is.
    folder: of the federated run, with the sites' copies. rounds: as the admin API tells them.
    blobs: the coordinator's.
    """
    worst = 0.0
    for found in rounds:
        if found["kind"] == "train" and found["state"] == "succeeded":
            worst = max(worst, _of_round(folder, plan, found, blobs))
    return worst


def _of_round(folder: Path, plan: Plan, found: Mapping[str, Any], blobs: BlobStore) -> float:
    layout, masking, rate = plan.layout(), plan.masking, plan.method.server_learning_rate
    before, after = (
        _published(blobs, str(found[name]), folder / TRAINED_FOLDER, plan)
        for name in ("base_adapter_digest", "adapter_digest")
    )
    clips = np.concatenate([np.full(slot.size, masking.clip_of(slot.name)) for slot in layout.slots])
    mean, total, count = np.zeros(layout.parameters), 0.0, 0
    for name in found["survivors"]:
        place = folder / TRAINED_FOLDER / plan.run / str(found["number"]) / str(name).removeprefix("participants/")
        weight = Contribution.from_json((place / CONTRIBUTION_FILE).read_bytes()).weight(masking.weight_cap)
        delta = _flat(place / ADAPTER_FILE, plan).astype(np.float64) - before
        norm = float(np.sqrt(np.square(delta).sum()))
        delta *= min(1.0, masking.max_update_norm / norm) if norm else 1.0
        mean += weight * np.clip(delta, -clips, clips)
        total, count = total + weight, count + 1
    error = np.abs(after - (before + rate * mean / total))
    step = rate * count * clips / (lane_limit(masking.lanes, masking.most_participants) * total)
    return float((error / (step + _ROUNDING * (float(np.abs(before).max()) + 1.0))).max())


def _published(blobs: BlobStore, digest: str, place: Path, plan: Plan) -> FlatVector:
    path = place / f"{digest}.safetensors"
    blobs.fetch(adapter_key(digest), path)
    return _flat(path, plan)


def _flat(path: Path, plan: Plan) -> FlatVector:
    return np.array(open_flat(path, plan.layout()))
