"""The side by side with Flower: what is Accord's in it runs here; Flower itself need not be there."""

from __future__ import annotations

import sys

import pytest

from benchmarks import flower_secagg
from benchmarks.flower_secagg import NOT_TO_BE_HAD, FlowerMissing, compared, flower_python
from benchmarks.peers.accord_masking import case_of, coordinator_side, participant_side


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["flower_secagg", *arguments])
    return flower_secagg.main()


def test_without_flower_the_exit_code_and_the_words_say_so(monkeypatch, capsys):
    assert run(monkeypatch, "--python", sys.executable) == NOT_TO_BE_HAD
    said = capsys.readouterr()
    assert said.out == ""
    assert "Flower is not to be had here" in said.err
    assert sys.executable in said.err


def test_a_python_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FlowerMissing, match="no-python"):
        flower_python(tmp_path / "no-python")


@pytest.mark.parametrize(
    "arguments", [("--participants", "3"), ("--participants", "129"), ("--dropouts", "4"), ("--parameters", "0")]
)
def test_sizes_at_which_the_two_would_not_do_the_same_are_refused(monkeypatch, arguments):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *arguments)
    assert ended.value.code == 2


def test_a_ratio_is_flowers_figure_by_accords_and_memory_below_a_mebibyte_counts_as_one():
    flower = {"mask_ns_per_parameter_peer": 4.0, "participant_extra_rss_mib": 50.0}
    accord = {"mask_ns_per_parameter_peer": 0.2, "participant_extra_rss_mib": 0.1}
    assert compared(flower, accord) == {"mask_ns_per_parameter_peer": 20.0, "participant_extra_rss_mib": 50.0}


def test_accords_side_uploads_two_bytes_a_parameter_and_decodes_all_of_them(tmp_path):
    participant = participant_side(tmp_path, case_of(100_000, 10, 1))
    assert participant["upload_bytes_per_parameter"] == pytest.approx(2.0, abs=0.01)
    coordinator = coordinator_side(tmp_path, case_of(100_000, 10, 1))
    assert coordinator.keys() | participant.keys() == {
        "mask_ns_per_parameter_peer",
        "client_cpu_seconds",
        "upload_bytes_per_parameter",
        "participant_extra_rss_mib",
        "coordinator_cpu_seconds",
        "coordinator_extra_rss_mib",
    }
