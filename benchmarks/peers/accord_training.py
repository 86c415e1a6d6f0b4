"""Accord's training process on one job, in this process: how fast, how much memory, which losses.

    python -m benchmarks.peers.accord_training JOB_FOLDER

`python -m benchmarks.training` starts it. Prints one JSON line.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path

import torch

from benchmarks.processes import status_mib
from participant.training.child import Reporter, StopRequest
from participant.training.result import RESULT_FILE, JobResult, Phase, Progress
from participant.training.worker import run_job


class Clock(Reporter):
    """Wall and CPU time at the end of every step; stands where the daemon listens."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.times: list[tuple[float, float]] = []

    def __call__(self, progress: Progress) -> None:
        if progress.phase is Phase.TRAIN:
            self.times.append((time.perf_counter(), time.process_time()))


def main(folder: Path) -> None:
    clock = Clock()
    run_job(folder, clock, StopRequest())
    result = JobResult.from_json((folder / RESULT_FILE).read_bytes())
    losses = () if result.training is None else result.training.losses
    peak = status_mib(os.getpid(), "VmHWM") if result.device == "cpu" else torch.cuda.max_memory_allocated() / 1024**2
    print(json.dumps({"times": clock.times, "losses": losses, "peak_mib": peak, "precision": result.precision}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
