"""A federation without training: what a round costs by itself, with mTLS, real processes and full secure aggregation.

    python -m benchmarks.round --mebibytes 4 --participants 4 --rounds 5

Prints one JSON line. Sizes are float32 sizes of the adapter; times are wall seconds unless named CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.made_up_site import BASE_MODEL_FILE
from common.adapters import LinearLayer
from common.basemodel import BaseModel
from demo.federation import LocalFederation

RUN: Final = "bench"
RANK: Final = 8
WIDTH: Final = 2048
MEBIBYTE: Final = 1024 * 1024
TICKS: Final = os.sysconf("SC_CLK_TCK")

CONFIG: Final = """
state_directory = "state"
policy_file = "policy.toml"
base_models = [{ source = "/described/only" }]
data = { train_file = "/none" }
charter = { mode = "pinned", file = "charter.json", digest = "DIGEST" }
[log]
level = "warning"
"""
POLICY: Final = """
[base_models]
allow = "any"
[adapter]
most_rank = 64
modules = "any"
most_parameters = 1_000_000_000
[masking]
least_cohort = 3
most_element_clip = 10.0
most_update_norm = 1000000.0
[training]
most_learning_rate = 1.0
most_steps_per_round = 1000
most_batch_size = 64
most_length = 4096
[rounds]
most_in_a_run = 100_000
"""


def made_up_model(mebibytes: float) -> BaseModel:
    """A base model whose rank-8 adapter has about this float32 size."""
    per_layer = RANK * 2 * WIDTH
    count = max(1, round(mebibytes * MEBIBYTE / 4 / per_layer))
    layers = tuple(LinearLayer(f"model.layers.{index}.q_proj", WIDTH, WIDTH) for index in range(count))
    return BaseModel("made-up", "ab" * 32, "MadeUpForCausalLM", layers, count * WIDTH * WIDTH, "F32")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_rss_mib(pid: int) -> float:
    """VmHWM: the most that was resident, mapped file pages included."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM")


def measure(federation: LocalFederation, *, mebibytes: float, participants: int, rounds: int) -> dict[str, Any]:
    model = made_up_model(mebibytes)
    names = [f"site-{index}" for index in range(participants)]
    federation.prepare_coordinator()
    federation.start_coordinator()
    for name in names:
        folder = federation.site_folder(name)
        folder.mkdir(parents=True)
        (folder / BASE_MODEL_FILE).write_text(model.to_json())
        (folder / "policy.toml").write_text(POLICY)
        federation.site_config(name).write_text(CONFIG.replace("DIGEST", "0" * 64))
        federation.enroll(name)
    digest = federation.publish_charter(names)
    for name in names:
        federation.pin_charter(name, digest)
        federation.site_config(name).write_text(CONFIG.replace("DIGEST", digest))
        federation.start_site(name, [sys.executable, "-m", "benchmarks.made_up_site"])
    federation.admin.create_run(
        RUN,
        {
            "base_model_json": model.to_json(),
            "rank": RANK,
            "rounds": rounds,
            "element_clip": 0.01,
            "most_participants": max(10, participants),
        },
    )
    federation.admin.start_run(f"runs/{RUN}")
    pids = [process.child.pid for process in federation.sites.values() if process.child is not None]
    assert federation.coordinator.child is not None
    coordinator = federation.coordinator.child.pid
    ends: list[float] = []
    cpu: list[float] = []
    while len(ends) < rounds:
        federation.require_running()
        run = federation.admin.run(f"runs/{RUN}")
        while len(ends) < int(run["rounds_succeeded"]):
            ends.append(time.monotonic())
            cpu.append(cpu_seconds(coordinator))
        if run["state"] in ("failed", "cancelled"):
            raise RuntimeError(f"the run has {run['state']}: {run['message']}")
        time.sleep(0.02)
    seconds = [after - before for before, after in zip(ends, ends[1:], strict=False)]
    cpu_per_round = (cpu[-1] - cpu[0]) / max(1, len(cpu) - 1)
    parameters = sum(RANK * (layer.in_features + layer.out_features) for layer in model.layers)
    last = federation.admin.round(f"runs/{RUN}/rounds/{rounds}")
    upload = max(int(p["upload_bytes"]) for p in last["participations"])
    return {
        "mebibytes": parameters * 4 / MEBIBYTE,
        "participants": participants,
        "rounds": rounds,
        "seconds_per_round": round(statistics.median(seconds), 3),
        "coordinator_cpu_seconds_per_round": round(cpu_per_round, 3),
        "coordinator_peak_rss_mib": round(peak_rss_mib(coordinator), 1),
        "participant_peak_rss_mib": round(max(peak_rss_mib(pid) for pid in pids), 1),
        "upload_bytes_per_parameter": round(upload / parameters, 4),
        "update_mib_per_coordinator_cpu_second": round(parameters * 4 / MEBIBYTE * participants / cpu_per_round, 1),
        "cores": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=float, default=4.0)
    parser.add_argument("--participants", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the federation's files there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="accord-bench-") as scratch:
        with LocalFederation(options.folder or Path(scratch), name="bench") as federation:
            figures = measure(
                federation,
                mebibytes=options.mebibytes,
                participants=options.participants,
                rounds=options.rounds,
            )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
