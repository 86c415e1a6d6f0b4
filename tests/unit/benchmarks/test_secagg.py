"""What the masking benchmark prints: every figure that is asked for, of a sum that really opens."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ASKED = {
    "mask_ns_per_parameter_peer",
    "mask_gb_per_second",
    "memcpy_gb_per_second",
    "mask_over_memcpy",
    "mask_speedup_two_cores",
    "quantise_ns_per_parameter",
    "upload_bytes_per_parameter",
    "participant_extra_rss_mib",
    "coordinator_extra_rss_mib",
    "coordinator_cpu_seconds",
    "coordinator_cpu_over_model",
    "max_error_over_bound",
}


def benchmark(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.secagg", *options], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("participants", "dropouts", "stored", "streams"),
    # Streams left in the sum: a self mask of every survivor, and a pair mask of each with everyone who dropped out.
    [(10, "30%", 7, 7 + 7 * 3), (12, "0", 1, 12)],
)
def test_one_line_of_json_with_every_figure(participants, dropouts, stored, streams):
    disk = "1" if stored > 1 else "0.0001"
    done = benchmark(
        *("--parameters", "600000", "--participants", str(participants)), *("--dropouts", dropouts, "--disk-gib", disk)
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) >= ASKED
    assert (found["stored_uploads"], found["unmask_streams"]) == (stored, streams)
    assert found["upload_bytes_per_parameter"] == pytest.approx(2.0 if participants <= 10 else 8 / 3, rel=1e-3)
    assert 0 < found["max_error_over_bound"] <= 1
    assert found["opens_in_protocol"]


def test_more_dropouts_than_a_sum_can_do_without_are_refused():
    done = benchmark("--participants", "4", "--dropouts", "50%")
    assert done.returncode == 2
    assert "leave fewer than three" in done.stderr
