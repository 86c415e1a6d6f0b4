"""make experiment at its smallest, with a tiny model: interrupted, gone on with, and all of its results there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.tiny_model import make_tiny_model

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 200

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    make_tiny_model(folder / "tiny")
    return folder


def start(place, *words):
    command = [sys.executable, "-m", "experiments", "--preset", "tiny", "--base-model", str(place / "tiny")]
    command += ["--cache", str(place / "cache"), "--out", str(place / "out"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCORD_EXPERIMENT_DATA": ""}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def results_of_training(place):
    """When each finished job of an arm without a federation was finished."""
    return {path: path.stat().st_mtime_ns for path in place.glob("out/seed-1/alone-*/*/result.json")}


def processes_of(place):
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(place) in word for word in process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_an_interrupted_experiment_goes_on_and_reports_everything(place):
    interrupted = start(place)
    give_up = time.monotonic() + WAIT_SECONDS
    while len(results_of_training(place)) < 2:
        assert interrupted.poll() is None, interrupted.communicate()[0]
        assert time.monotonic() < give_up, "no site alone has been trained"
        time.sleep(0.05)  # a file appears when it does: nothing tells us
    interrupted.send_signal(signal.SIGINT)
    said, _ = interrupted.communicate(timeout=WAIT_SECONDS)
    before = results_of_training(place)

    assert "the same command goes on from here" in said
    assert interrupted.returncode == 130
    assert processes_of(place) == []

    whole = start(place)
    said, _ = whole.communicate(timeout=WAIT_SECONDS * 3)

    assert whole.returncode == 0, said
    after = results_of_training(place)
    assert {path: after[path] for path in before} == before, "a finished job was done again"
    results = json.loads((place / "out" / "results.json").read_text())
    (seed,) = results["seeds"]
    assert len(seed["sites"]) == 5
    assert len(seed["methods"][0]["curve"]) == 3  # before the first round, after each of two
    assert all(one["validation_loss"] if isinstance(one, dict) else one[2] for one in seed["methods"][0]["curve"])
    assert 0 < seed["worst_masking_error"] <= 1
    assert [goal["is_reached"] for goal in results["goals"] if goal["name"].startswith("(iii)")] == [True]
    rare = seed["rare"]
    assert rare["domain"] == "clinic"
    assert 0 < rare["records"] < 0.25  # four records a site: of so few, no site has 5 % of all
    assert rare["last_share"] == 1.0  # no other domain has sums that may be opened
    assert rare["by_rows"]["loss"] != rare["by_updates"]["loss"]
    assert [goal["found"] for goal in results["goals"] if goal["name"].startswith("(v)")] != ["not run"]
    report = (place / "out" / "results.md").read_text()
    assert "A domain with few records" in report
    for name in ("curves.svg", "models.svg"):
        assert name in report
        assert (place / "out" / name).stat().st_size > 2000
    assert processes_of(place) == []
    joins_and_uses_again(place)


def joins_and_uses_again(place):
    """What a run has found is another's: its rates, and its results in a report of several."""
    out = place / "out"
    again = start(place, "--rates", str(out / "rates.json"), "--seeds", "1")
    said, _ = again.communicate(timeout=WAIT_SECONDS)
    assert again.returncode == 0, said
    joined = start(place, "--join", str(out / "results.json"), "--out", str(place / "joined"))
    said, _ = joined.communicate(timeout=WAIT_SECONDS)
    assert joined.returncode == 0, said
    assert (place / "joined" / "results.md").read_text() == (out / "results.md").read_text()


def test_no_training_goes_on_when_the_experiment_is_killed(place):
    killed = start(place, "--out", str(place / "killed"))
    give_up = time.monotonic() + WAIT_SECONDS
    while not list((place / "killed").glob("seed-1/alone-*/*/worker.log")):
        assert killed.poll() is None, killed.communicate()[0]
        assert time.monotonic() < give_up, "no site alone is being trained"
        time.sleep(0.05)  # a file appears when it does: nothing tells us
    left = processes_of(place)
    killed.kill()
    killed.wait()

    _, alive = psutil.wait_procs(left, timeout=WAIT_SECONDS)
    assert alive == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--data", "nothing"), "nothing"),
        (("--seeds", "7"), "the preset tiny has the seeds [1], not [7]"),
        (("--rates", "nothing.json"), "cannot read nothing.json"),
        (("--rates", "full.json"), "the rates are of other arms than the preset tiny has"),
        (("--join", "full.json"), "full.json is not valid"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_line(place, tmp_path, words, why):
    (tmp_path / "full.json").write_text('{"local": {"alone": 0.001}, "federated": {}}')
    at = [str(tmp_path / word) if word.startswith(("nothing", "full")) else word for word in words]
    wrong = start(place, *at, "--out", str(tmp_path / "out"))
    said, _ = wrong.communicate(timeout=WAIT_SECONDS)

    assert wrong.returncode == 1
    assert said.splitlines()[-1].startswith("error: ")
    assert why in said.replace(f"{tmp_path}/", "")
    assert "Traceback" not in said
