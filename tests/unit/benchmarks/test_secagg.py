"""What the masking benchmark prints: every figure that is asked for, of a sum that really opens."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.masked_round import Case
from benchmarks.secagg.__main__ import (
    GRID_DROPOUTS,
    GRID_PARAMETERS,
    GRID_PARTICIPANTS,
    SPARE_BYTES,
    Needs,
    cases_of,
    check_disk,
    main,
    prepare,
)
from benchmarks.secagg.coordinator import WARM_MEMBERS, measure_coordinator

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
    "coordinator_fixed_cpu_seconds",
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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--participants", "4", "--dropouts", "50%"), "leave fewer than 3"),
        (("--participants", "10", "--dropouts", "9"), "leave fewer than 3"),
        (("--participants", "2"), "3 to 1000 participants"),
        (("--parameters", "0"), "at least one parameter"),
        (("--dropouts", "some"), "neither a number nor a percentage"),
        (("--dropouts", "nan%"), "not possible"),
        (("--disk-gib", "0"), "a number above zero"),
        (("--folder", "/no/such/folder"), "not a folder"),
    ],
)
def test_nonsense_is_refused_in_words_before_anything_begins(monkeypatch, capsys, options, said):
    monkeypatch.setattr(sys, "argv", ["secagg", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_case_that_the_disk_has_no_room_for_is_refused_with_what_it_needs(tmp_path, capsys):
    case = Case(1_000_000, 10, 0, stored=10)
    check_disk([Needs.of(case)], tmp_path)
    assert "1 case: up to 0.1 GiB of disk" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"a case needs .* GiB of disk .* --disk-gib"):
        check_disk([Needs.of(case), Needs(disk=1 << 60, streamed=0)], tmp_path)


def test_the_grid_has_every_case_once_and_none_that_leaves_too_few():
    cases = cases_of(GRID_PARAMETERS, GRID_PARTICIPANTS, GRID_DROPOUTS, disk_bytes=4 << 30)
    sizes = [(case.parameters, case.participants, case.dropouts) for case in cases]
    assert len(set(sizes)) == len(sizes) == 4 * (1 + 3 + 3 + 3)
    assert [dropped for _, members, dropped in sizes[:10] if members == 10] == [0, 1, 3]
    assert all(len(case.survivors) >= 3 for case in cases)
    # Uploads as they arrive and as blobs, whatever the number of participants.
    assert all(2 * len(case.uploaders) * case.context().layout.bytes <= 4 << 30 for case in cases)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A small case, the folder where it was played, and the coordinator's figures."""
    case, folder = Case(600_000, 5, 1, stored=4), tmp_path_factory.mktemp("masking")
    prepare(case, folder)
    return case, folder, measure_coordinator(case, folder)


@pytest.mark.slow
def test_what_a_case_needs_is_what_it_leaves_on_disk(measured):
    """But for the spool, which is not written here; the rounds that warm up and the rate of writing take the spare."""
    case, folder, _ = measured
    files = [file for file in folder.rglob("*") if file.is_file()]
    beside = {folder / "small", folder / "warm", folder / "blobs" / "blobs" / "rate"}
    spare = sum(file.stat().st_size for file in files if beside & set(file.parents))
    needed = Needs.of(case).disk - case.context().layout.bytes
    # The warm-up's uploads are blobs, too, of which there are no more than of the case.
    lying = sum(file.stat().st_size for file in files) - spare
    assert needed <= lying <= needed + WARM_MEMBERS * case.context().layout.bytes + 100_000
    assert spare < SPARE_BYTES


@pytest.mark.slow
def test_the_model_counts_what_no_byte_pays_for_as_it_is_measured_on_a_small_round(measured):
    _, _, found = measured
    terms = found["coordinator_model_cpu_seconds"]
    assert terms["fixed"] == found["coordinator_fixed_cpu_seconds"] > 0
    assert found["coordinator_cpu_over_model"] == pytest.approx(found["coordinator_cpu_seconds"] / sum(terms.values()))
    bare = terms["add"] + terms["hash"] + terms["streams"]
    assert found["coordinator_cpu_over_bare_model"] == pytest.approx(found["coordinator_cpu_seconds"] / bare)
