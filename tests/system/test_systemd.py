"""The units as shipped under a real systemd: installed, enrolled, a whole round, killed, renewed, stopped, purged.

One container for all of it: systemd as PID 1 on an overlay of this machine's own root, so that nothing is downloaded
but what the package takes. `systemd_lab.py` plays the story in there; every test looks at one thing that came of it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.basemodel import describe
from common.version import software_version
from demo.federation import leashed
from tests.pages import blocks_of
from tests.programs import debian_program
from tests.site_files import POLICY, RECORDS
from tests.system.systemd_lab import NEXT_VERSION
from tests.tiny_model import make_tiny_model

ROOT = Path(__file__).parents[2]
UNITS = ("accord-participant", "accord-coordinator")
MOST_SECONDS = 360
# Where the container has its folder: not below /tmp, of which each service has its own.
INSIDE = "/srv/lab"
pytestmark = [pytest.mark.system, pytest.mark.timeout(500)]

PARTICIPANT = """
state_directory = "{state}"
policy_file = "policy.toml"
least_free_mebibytes = 1
base_models = [{{ source = "/srv/models/tiny" }}]
[data]
train_file = "/srv/accord/train.jsonl"
held_out_fraction = 0.3
[charter]
file = "charter.json"
[evaluation]
loss_records = 4
ner_records = 0
"""
GUIDE = ROOT / "docs" / "partner-operator.md"
# Typed by test_install_script.py.
ELSEWHERE = ("wheel",)
TARGET = "[Unit]\nRequires=basic.target\nWants=lab.service\n"
CANNOT_MOUNT = 77
# $1: an empty folder; the rest: what to run. What is written to the overlay is memory, and gone with it.
MOUNT_AND_RUN = f"""
folder=$1; shift
{{ mount -t tmpfs accord-lab "$folder" && mkdir "$folder/upper" "$folder/work" "$folder/root" &&
  mount -t overlay accord-lab -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"; }} ||
  exit {CANNOT_MOUNT}
exec "$@"
"""
SERVICE = "[Service]\nType=oneshot\nTimeoutStartSec=infinity\nExecStart=/usr/bin/python3 {script} {folder}\n"


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of it. Workers that share this module's tests play it once."""
    nspawn = debian_program("systemd-nspawn", package="systemd-container")
    if os.geteuid() != 0:
        pytest.skip("systemd-nspawn needs root")
    unshare, training = debian_program("unshare", package="util-linux"), site_packages()
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "systemd-lab"
    with (shared / "systemd-lab.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            play(folder, nspawn, unshare, training)
    return json.loads((folder / "out" / "results.json").read_text())


def play(folder: Path, nspawn: Path, unshare: Path, training: Path) -> None:
    for name in ("out", "units", "overlay"):
        (folder / name).mkdir(parents=True)
    model = make_tiny_model(folder / "model")
    (folder / "model.json").write_text(describe(model).to_json())
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    for name in ("bank", "clinic", "newsroom"):
        (folder / name).mkdir()
        state = "/var/lib/accord-participant" if name == "bank" else f"/srv/{name}/state"
        text = PARTICIPANT.format(state=state)
        (folder / name / "participant.toml").write_text(text)
        (folder / name / "policy.toml").write_text(POLICY.replace("most_in_a_run = 5", "most_in_a_run = 50"))
    subprocess.run(
        [ROOT / "deploy" / "debian" / "build", folder],
        check=True,
        env={**os.environ, "PIP": f"{sys.executable} -m pip", "DEB_COMPRESSION_LEVEL": "0"},
    )
    (folder / "units" / "lab.target").write_text(TARGET)
    (folder / "guide.json").write_text(json.dumps(blocks()))
    script = folder / "systemd_lab.py"
    script.write_text(Path(__file__).with_name("systemd_lab.py").read_text())
    (folder / "units" / "lab.service").write_text(SERVICE.format(script=f"{INSIDE}/{script.name}", folder=INSIDE))
    container = [
        nspawn, "--quiet", "--register=no", "--keep-unit", "--private-network", "--console=pipe",
        f"--machine=accord-lab-{os.getpid()}", f"--directory={folder}/overlay/root",
        f"--bind={folder}/units:/etc/systemd/system",
        f"--bind={folder}:{INSIDE}", f"--bind-ro={training}:{INSIDE}/training",
        "/lib/systemd/systemd", "systemd.unit=lab.target", "systemd.log_level=warning",
    ]  # fmt: skip
    # Mounts in a name space of their own end with the process, however that ends.
    command = [unshare, "--mount", "--propagation=private", "sh", "-euc", MOUNT_AND_RUN, "lab", folder / "overlay"]
    with (folder / "out" / "console.txt").open("w") as console:
        done = subprocess.run(
            leashed([str(word) for word in (*command, *container)]),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            timeout=MOST_SECONDS,
            check=False,
        )
    if done.returncode == CANNOT_MOUNT:
        shutil.rmtree(folder)
        pytest.skip("cannot mount an overlay of / here")
    results = folder / "out" / "results.json"
    if not results.exists():
        results.write_text(json.dumps({"error": (folder / "out" / "console.txt").read_text()[-2000:]}))


def blocks() -> dict[str, str]:
    """The guide's commands by their names; torch comes from this environment and not from a package."""
    found = [block for block in blocks_of(GUIDE) if block.mark == "run" and block.name not in ELSEWHERE]
    return {block.name: block.text.replace(" accord-training_*_amd64.deb", "") for block in found}


def site_packages() -> Path:
    """Where this environment has torch; the container's Python is Debian's."""
    import torch

    debians = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True
    )
    if debians.stdout.strip() != str(sys.version_info[:2]):
        pytest.skip(
            f"Debian's Python is {debians.stdout.strip()}, this environment's torch is for {sys.version_info[:2]}"
        )
    return Path(torch.__file__).parents[1]


# --- the units as files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNITS)
def test_exposure_is_at_most_two(name):
    analyze = debian_program("systemd-analyze", package="systemd")
    unit = ROOT / "deploy" / "systemd" / f"{name}.service"
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=20", unit], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-300:]


def test_exposure_is_at_most_two_with_a_gpu_too(tmp_path):
    analyze = debian_program("systemd-analyze", package="systemd")
    source = ROOT / "deploy" / "systemd"
    (tmp_path / "accord-participant.service.d").mkdir()
    unit = tmp_path / "accord-participant.service"
    unit.write_text((source / unit.name).read_text())
    example = source / "accord-participant.service.d" / "gpu.conf.example"
    (tmp_path / "accord-participant.service.d" / "gpu.conf").write_text(example.read_text())
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=20", unit], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-300:]
    assert "PrivateDevices" in done.stdout.partition("✗")[2]


# --- what came of the story ------------------------------------------------------------------------------------------


def test_the_story_is_played_to_its_end(story):
    assert story.get("error") is None, story
    assert story["step"] == "done"


def test_every_command_of_the_guide_was_typed(story):
    assert sorted(story["guide"]) == sorted(blocks())


def test_the_package_installs_both_programs_and_enables_neither(story):
    assert story["version"] == f"accord-participant {software_version()}"
    assert story["verified"] == ""
    assert story["enabled"] == ["disabled", "disabled"]
    assert [said for said in story["analyzed"] if "accord" in said] == []


def test_a_site_enrols_by_a_credential_and_a_missing_charter_is_not_tried_again(story):
    assert story["unpinned_start"] != 0
    assert story["unpinned"] == {
        "ActiveState": "failed",
        "Result": "exit-code",
        "ExecMainStatus": "3",
        "NRestarts": "0",
    }
    assert "accord-participant charter pin" in story["unpinned_log"]


def test_units_are_ready_when_they_serve_and_say_what_they_do(story):
    assert story["coordinator_started"]["ActiveState"] == "active"
    assert story["coordinator_started"]["StatusText"].startswith("serving")
    assert (story["site_started"]["ActiveState"], story["site_started"]["SubState"]) == ("active", "running")
    assert story["site_started"]["StatusText"].startswith("in touch with the coordinator")
    assert "knows this site" in story["pre_check"]


def test_the_service_is_confined_and_its_state_is_its_own(story):
    assert story["confined"]["NoNewPrivs"] == "1"
    assert story["confined"]["Seccomp"] == "2"
    assert int(story["confined"]["CapEff"], 16) == 0
    assert not story["confined"]["Uid"].startswith("0")
    assert story["state_owner"] == "accord-participant:700"
    assert story["key_mode"] == "accord-participant:600"


def test_a_certificate_is_renewed_without_a_restart(story):
    assert story["renewal"]["before"] == story["renewal"]["after"]
    assert story["renewal"]["restarts"] == 0


def test_a_round_is_brought_to_its_end_over_kills_of_site_and_coordinator(story):
    assert story["killed"]
    assert story["run"]["state"] == "succeeded"
    first = next(round_ for round_ in story["rounds"] if round_["number"] == 1)
    assert first["state"] == "succeeded"
    assert any("run tuning, round 1" in text for text in story["statuses"])
    assert story["adapters"] >= 1


def test_a_site_that_stands_still_is_killed_by_the_watchdog_and_started_again(story):
    assert "Watchdog timeout" in story["watchdog_messages"]


def test_an_upgrade_during_a_round_restarts_what_runs_and_nothing_else(story):
    assert story["upgraded"]["before"] != story["upgraded"]["after"]
    assert story["upgraded"]["states"] == ["active", "active"]
    assert NEXT_VERSION not in story["version"]
    assert NEXT_VERSION in story["upgraded"]["version"]
    (bank,) = (row for row in story["participants"] if row["name"] == "participants/bank")
    assert bank["software_version"] == NEXT_VERSION


def test_a_site_goes_on_where_it_was_unpacked(story):
    assert story["moved"]["StatusText"].startswith("in touch with the coordinator")
    assert "tuning" in story["moved_status"]


def test_each_sites_version_is_shown_to_the_operator(story):
    rows = story["participants"]
    assert sorted(row["software_version"] for row in rows) == sorted([software_version()] * 2 + [NEXT_VERSION])


def test_a_reload_takes_effect_without_a_restart_and_files_with_mistakes_do_not(story):
    assert story["reload"]["broken"] != 0
    assert story["reload"]["before"] == story["reload"]["after"]


def test_a_stop_is_clean_and_leaves_nothing_running(story):
    for name in UNITS:
        assert story["stopped"][name] == {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"}
    assert story["left_running"] == ""


def test_a_purge_leaves_nothing_but_state(story):
    assert story["left"] == ["/var/lib/accord-coordinator", "/var/lib/accord-participant"]
    assert story["kept_key"]
    assert story["forgotten"]
