"""The demo as a user starts it, with a tiny model: it ends well, badly or in between, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors import safe_open

from demo.folders import processes_below
from tests.tiny_model import make_tiny_model

ROOT = Path(__file__).parents[2]
COLOURS = {"sky": "blue", "leaf": "green", "blood": "red", "grass": "green", "sea": "blue", "apple": "red"}
WAIT_SECONDS = 120

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Model, records and caches that all demos here share."""
    folder = tmp_path_factory.mktemp("demo")
    make_tiny_model(folder / "tiny")
    write_set(
        folder / "data" / "colours",
        [
            {
                "task": "classification",
                "instruction": "Name the colour.",
                "input": f"{adjective} {thing}",
                "output": colour,
                "label": colour,
            }
            for thing, colour in COLOURS.items()
            for adjective in ("a", "the", "one", "my")
        ],
    )
    write_set(
        folder / "data" / "diseases",
        [
            {
                "task": "ner",
                "instruction": "List every Disease.",
                "input": f"{who} has {what}",
                "output": f"Disease: {what}",
                "entities": [[len(who) + 5, len(who) + 5 + len(what), "Disease"]],
            }
            for who in ("he", "she", "it", "Bob", "Ann", "Eve", "Jim", "Kim")
            for what in ("flu", "measles")
        ],
    )
    write_set(
        folder / "data" / "sums",
        [
            {"task": "instruction", "instruction": "Add.", "input": f"{one} and {two}", "output": str(one + two)}
            for one in range(6)
            for two in range(4)
        ],
    )
    return folder


def write_set(folder, records):
    folder.mkdir(parents=True)
    lines = [json.dumps({"id": str(number), "domain": folder.name, **record}) for number, record in enumerate(records)]
    (folder / "train.jsonl").write_text("\n".join(lines[::2]) + "\n")
    (folder / "test.jsonl").write_text("\n".join(lines[1::2]) + "\n")


def start(place, root, *words):
    command = [sys.executable, "-m", "demo", "--base-model", str(place / "tiny"), "--folder", str(root)]
    command += ["--cache", str(place / "cache"), "--steps", "2", "--batch-size", "2", "--records", "4", *words]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "ACCORD_DEMO_DATA": str(place / "data"), "ACCORD_DEMO_SETS": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(demo, root, module, count=1):
    """Processes of that module below the root, once there are so many of them."""
    give_up = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < give_up:
        found = [process for process in processes_below(root) if module in command_of(process)]
        if len(found) >= count:
            return found
        assert demo.poll() is None, demo.communicate()[0]
        time.sleep(0.05)  # a process appears when it does: nothing tells us
    raise AssertionError(f"no {module} has been started")


def command_of(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def alive_after(seconds, processes):
    """Those that still do something; init may take its time to take note of the end of an orphan."""
    psutil.wait_procs(processes, timeout=seconds)
    return [process for process in processes if is_alive(process)]


def is_alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descendants(demo):
    return psutil.Process(demo.pid).children(recursive=True)


def test_a_demo_after_one_that_was_killed_ends_well_and_tells_what_it_did(place, tmp_path):
    root = tmp_path / "runs"
    killed = start(place, root)
    wait_for(killed, root, "participant.training.worker")
    family = descendants(killed)
    assert len(family) > 4
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert alive_after(30, family) == []
    left = next(root.glob("run-*"))

    demo = start(place, root, "--rounds", "1", "--json", str(tmp_path / "out" / "report.json"))
    output, _ = demo.communicate(timeout=300)
    assert demo.returncode == 0, output
    assert not left.exists()
    assert processes_below(root) == []

    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["state"] == "succeeded"
    assert {name: domain["final"]["metric"] for name, domain in report["domains"].items()} == {
        "colours": "accuracy",
        "diseases": "span_f1",
        "sums": "rouge_l",
    }
    for domain in report["domains"].values():
        assert domain["base"]["heldout_loss"] > 0
        assert domain["final_round"] == 1
        assert domain["final"]["heldout_loss"] != domain["base"]["heldout_loss"]
        assert domain["final"]["value"] is not None
    assert [(round_["kind"], round_["state"]) for round_ in report["rounds"]] == [
        ("train", "succeeded"),
        ("evaluate", "succeeded"),
    ]
    for round_ in report["rounds"]:
        # Each site alone has its task: what it measures of that is in its own folder, and nowhere else.
        assert round_["metrics"]["heldout_loss"] > 0
        assert not {"classification_accuracy", "span_f1", "rouge_l"} & round_["metrics"].keys()
        assert round_["closed_metric_groups"] == [
            {"name": name, "contributors": 1, "needed": 3} for name in ("classification", "ner", "instruction")
        ]
    assert set(report["rounds"][0]["seconds"]) == {"forming", "training", "collecting", "unmasking", "aggregating"}
    assert set(report["rounds"][0]["uploaded_bytes"]) == {"colours", "diseases", "sums"}
    # Only a process that has loaded the exported folder with PEFT could have answered.
    assert len(report["examples"]) == 9

    adapter = Path(report["adapter"]["path"])
    with safe_open(adapter / "adapter_model.safetensors", "np") as tensors:
        assert any(tensors.get_tensor(name).any() for name in tensors.keys() if "lora_B" in name)  # noqa: SIM118
    assert Path(report["files"]["html"]).read_text().count("data:image/svg+xml") == 3
    assert (root / "latest" / "report.json").is_file()
    for text in (str(adapter), "report.html", str(tmp_path / "out" / "report.json"), "after round 1 (final)"):
        assert text in output


def test_factors_by_turns_go_through_real_training_masked_rounds_and_export(place, tmp_path):
    """One setting chooses the method: in round 1 the sites train and send B alone, in round 2 A, on other bits of B."""
    demo = start(place, tmp_path, "--rounds", "2", "--method", "rolora", "--json", str(tmp_path / "report.json"))
    output, _ = demo.communicate(timeout=300)
    assert demo.returncode == 0, output

    report = json.loads((tmp_path / "report.json").read_text())
    assert [round_["state"] for round_ in report["rounds"]] == ["succeeded"] * 3
    with safe_open(Path(report["adapter"]["path"]) / "adapter_model.safetensors", "np") as adapter:
        moved = {name.split(".")[-2] for name in adapter.keys() if adapter.get_tensor(name).any()}  # noqa: SIM118
        a = next(adapter.get_tensor(name) for name in adapter.keys() if ".lora_A." in name)  # noqa: SIM118
    assert moved == {"lora_A", "lora_B"}
    # Two rounds of two small steps: A is still near the orthonormal rows that it began with, and no more on them.
    distance = np.abs(a @ a.T - np.eye(len(a))).max()
    assert 1e-6 < distance < 0.1


@pytest.mark.parametrize("moment", ["coordinator", "participant.training.worker"])
def test_ctrl_c_ends_everything_and_leaves_no_half_state(place, tmp_path, moment):
    root = tmp_path / "runs"
    demo = start(place, root)
    wait_for(demo, root, moment)
    family = descendants(demo)
    os.kill(demo.pid, signal.SIGINT)
    os.kill(demo.pid, signal.SIGINT)  # people press it twice
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, output
    assert "interrupted" in output
    assert "Traceback" not in output
    assert alive_after(30, family) == []
    assert list(root.glob("run-*")) == []


def test_a_process_that_crashes_ends_the_demo_with_its_last_words(place, tmp_path):
    root = tmp_path / "runs"
    demo = start(place, root)
    wait_for(demo, root, "participant.training.worker")
    site = next(process for process in wait_for(demo, root, "participant", 3) if "run" in command_of(process))
    name = Path(command_of(site)[-1]).parent.name
    family = descendants(demo)
    site.kill()
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 1, output
    assert f"{name} has ended with exit code -9" in output
    assert "run_joined" in output
    assert "Traceback" not in output
    assert alive_after(30, family) == []


def test_a_base_model_that_is_not_there_is_said_at_once(place, tmp_path):
    demo = start(place, tmp_path / "runs", "--base-model", str(tmp_path / "none"))
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert f"the base model folder {tmp_path / 'none'} does not exist" in output
