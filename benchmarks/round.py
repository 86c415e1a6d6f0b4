"""A federation without training: what a round costs by itself, with mTLS, real processes and full secure aggregation.

    python -m benchmarks.round --mebibytes 4 --participants 4 --rounds 5

Prints one JSON line. Sizes are float32 sizes of the adapter; times are wall seconds unless named CPU. A round's time is
from the end of the one before to its own end, as the coordinator has recorded them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from benchmarks.federation import SITE, create_run, found, made_up_model, parameters_of, pid_of
from benchmarks.processes import MEBIBYTE, MemoryWatch, Peak, cpu_seconds, yardstick
from common.basemodel import BaseModel
from demo.federation import LocalFederation

RUN: Final = "bench"
# Asking often would cost the coordinator what is to be measured: a few times a round, however long it takes.
LEAST_POLL_SECONDS: Final = 0.25
POLLS_A_ROUND: Final = 10


@dataclass(frozen=True, slots=True)
class _Spent:
    """CPU seconds of the coordinator and of all sites, when a number of rounds had ended."""

    rounds: int
    coordinator: float
    sites: float


def measure(federation: LocalFederation, *, mebibytes: float, participants: int, rounds: int) -> dict[str, Any]:
    """Run the rounds and say what they cost. rounds: at least 2; the first one, with its key set-up, does not count."""
    model = made_up_model(mebibytes)
    names = [f"site-{index}" for index in range(participants)]
    found(federation, names, model)
    for name in names:
        federation.start_site(name, SITE)
    pids = {name: pid_of(process) for name, process in federation.sites.items()}
    pids["coordinator"] = pid_of(federation.coordinator)
    create_run(federation, RUN, model, rounds=rounds, participants=participants)
    with MemoryWatch(pids) as memory:
        first, last = _spend(federation, pids, rounds)
        peaks = {name: memory.peak(name) for name in pids}
    spent = _Spent(last.rounds - first.rounds, last.coordinator - first.coordinator, last.sites - first.sites)
    return _figures(federation, model, participants=participants, rounds=rounds, spent=spent, peaks=peaks)


def _spend(federation: LocalFederation, pids: dict[str, int], rounds: int) -> tuple[_Spent, _Spent]:
    """CPU seconds after the first round and after the last one."""
    first: _Spent | None = None
    begun = time.monotonic()
    while True:
        federation.require_running()
        run = federation.admin.run(f"runs/{RUN}")
        if run["state"] in ("failed", "cancelled"):
            raise RuntimeError(f"the run has {run['state']}: {run['message']}")
        done = int(run["rounds_succeeded"])
        sites = sum(cpu_seconds(pid) for name, pid in pids.items() if name != "coordinator")
        spent = _Spent(done, cpu_seconds(pids["coordinator"]), sites)
        if done and first is None:
            first = spent
        if done == rounds and first is not None:
            return first, spent
        time.sleep(max(LEAST_POLL_SECONDS, (time.monotonic() - begun) / (done + 1) / POLLS_A_ROUND))


def _figures(
    federation: LocalFederation,
    model: BaseModel,
    *,
    participants: int,
    rounds: int,
    spent: _Spent,
    peaks: dict[str, Peak],
) -> dict[str, Any]:
    recorded = [federation.admin.round(f"runs/{RUN}/rounds/{number}") for number in range(1, rounds + 1)]
    ends = [datetime.fromisoformat(round_["end_time"]) for round_ in recorded]
    seconds = [(after - before).total_seconds() for before, after in pairwise(ends)]
    parameters = parameters_of(model)
    mebibytes = parameters * 4 / MEBIBYTE
    cpu = spent.coordinator / spent.rounds
    sites = [peak for name, peak in peaks.items() if name != "coordinator"]
    return {
        "mebibytes": mebibytes,
        "participants": participants,
        "rounds": rounds,
        "seconds_per_round": round(statistics.median(seconds), 3),
        "fastest_round_seconds": round(min(seconds), 3),
        "coordinator_cpu_seconds_per_round": round(cpu, 3),
        "participant_cpu_seconds_per_round": round(spent.sites / spent.rounds / participants, 3),
        "coordinator_peak_rss_mib": peaks["coordinator"].resident,
        "coordinator_peak_anonymous_mib": peaks["coordinator"].anonymous,
        "participant_peak_rss_mib": max(peak.resident for peak in sites),
        "participant_peak_anonymous_mib": max(peak.anonymous for peak in sites),
        "upload_bytes_per_parameter": round(
            max(int(p["upload_bytes"]) for p in recorded[-1]["participations"]) / parameters, 4
        ),
        "update_mib_per_coordinator_cpu_second": round(mebibytes * participants / cpu, 1),
        **yardstick(federation.folder),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.round", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mebibytes", type=float, default=4.0)
    parser.add_argument("--participants", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the federation's files there")
    options = parser.parse_args()
    if options.rounds < 2 or options.participants < 3:
        parser.error("at least 2 rounds of at least 3 participants")
    if not 0 < options.mebibytes < math.inf:
        parser.error("--mebibytes is a number above zero")
    if options.folder is not None and options.folder.exists() and any(options.folder.iterdir()):
        parser.error(f"--folder {options.folder} is not empty; name a new one")
    with (
        tempfile.TemporaryDirectory(prefix="accord-bench-") as scratch,
        LocalFederation(options.folder or Path(scratch), name="bench") as federation,
    ):
        figures = measure(
            federation,
            mebibytes=options.mebibytes,
            participants=options.participants,
            rounds=options.rounds,
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
