"""Clips of the plan, for all tensors and for some: what is cut off is what the plan says, and the site is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from participant.update import ClipReport
from tests.rpc.federation import federation_in

WIDE, NARROW = 0.5, 0.01


def test_a_tensor_clip_binds_its_tensors_alone_and_every_site_is_told_what_it_lost(tmp_path: Path) -> None:
    with federation_in(tmp_path) as federation:
        names = federation.add_sites(3)
        federation.create_run(element_clip=WIDE, tensor_clips=[{"name": "lora_B", "clip": NARROW}])
        layout = federation.plan().layout()
        is_narrow = np.concatenate([np.full(slot.size, "lora_B" in slot.name) for slot in layout.slots])

        found = federation.play(1)

        assert found["state"] == "succeeded", found["message"]
        result = federation.adapter(found["adapter_digest"]) - federation.adapter(found["base_adapter_digest"])
        clips = np.where(is_narrow, NARROW, WIDE)
        deltas = {name: federation.sites[name].trainer.delta(1, layout).astype(np.float64) for name in names}
        weights = {name: federation.sites[name].trainer.records / 1000 for name in names}
        total = sum(weights.values())
        mean = sum(weights[name] / total * np.clip(delta, -clips, clips) for name, delta in deltas.items())
        # The error is at most |U| C / (L A).
        steps = (2**16 - 1) // (2 * 3)
        assert np.all(np.abs(result - mean) <= clips * 3 / (steps * total) + 1e-6)
        clipped = {name: int(np.count_nonzero(np.abs(delta) > clips)) for name, delta in deltas.items()}
        told = {metric["name"]: metric["value"] for metric in found["metrics"]}
        assert told["clipped_elements"] == sum(clipped.values()) > 0
        for name, delta in deltas.items():
            journal = federation.sites[name].journal()
            entry = journal.round("run", 1)
            journal.close()
            assert entry is not None
            report = ClipReport.from_json(entry.clipping)
            lost = np.linalg.norm(delta - np.clip(delta, -clips, clips)) / np.linalg.norm(delta)
            assert (report.clipped_elements, report.parameters) == (clipped[name], layout.parameters)
            assert report.lost_norm == pytest.approx(lost, rel=1e-4)
            assert report.scale == 1.0
