"""`accord-coordinator` as people and scripts use it: real processes, real listeners, exit codes and JSON."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from common.adapters import AdapterSpec, file_digest, write_adapter_folder
from common.identifiers import FederationId
from common.methods import Method, adapter_method
from coordinator.__main__ import main
from coordinator.addresses import Addresses
from coordinator.cli.exits import Exit
from coordinator.config import load_config
from coordinator.keystore import PkiFolder
from coordinator.store.opening import open_store
from tests.rpc.coordinator import CONFIG, MODEL, SITES, RunningCoordinator

pytestmark = pytest.mark.system

COMMAND = (sys.executable, "-m", "coordinator")
REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'protos'}", "COLUMNS": "160"}
START_SECONDS = 60


@dataclass(frozen=True)
class Done:
    """How a command has ended."""

    returncode: int
    stdout: str
    stderr: str


def started(folder: Path, *words: str) -> Done:
    """A command as a process of its own, which takes a second."""
    done = subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=100, check=False, cwd=folder, env=ENVIRONMENT
    )
    return Done(done.returncode, done.stdout, done.stderr)


def accord(folder: Path, *words: str) -> Done:
    """The same command in this process, which takes milliseconds."""
    with chdir(folder), redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        try:
            code = main(words)
        except SystemExit as end:  # argparse's way
            code = end.code if isinstance(end.code, int) else 1
    return Done(code, out.getvalue(), err.getvalue())


def answer(folder: Path, *words: str):
    done = accord(folder, *words, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@contextmanager
def served(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """`serve` until the block ends; it listens when the block begins."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*COMMAND, "serve"], cwd=folder, env=ENVIRONMENT, stderr=log, text=True)
    try:
        wait_until_served(folder, process)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(START_SECONDS)


def wait_until_served(folder: Path, process: subprocess.Popen[str]) -> None:
    """Until this very process has written where it listens."""
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up:
        assert process.poll() is None, (folder / "log").read_text()
        file = folder / "data" / "listeners.json"
        if file.exists() and json.loads(file.read_text())["pid"] == process.pid:
            return
        time.sleep(0.05)
    raise AssertionError((folder / "log").read_text())


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with a coordinator that serves, three members enrolled and their charter published."""
    folder = tmp_path_factory.mktemp("coordinator")
    (folder / "coordinator.toml").write_text(CONFIG)
    (folder / "model.json").write_text(MODEL.to_json())
    assert accord(folder, "init").returncode == 0
    with served(folder):
        config = load_config(folder / "coordinator.toml")
        enroll_sites(folder)
        assert config.listeners_file.exists()
        assert accord(folder, "charter", "draft", *SITES, "--out", "charter.json").returncode == 0
        assert accord(folder, "charter", "publish", "charter.json").returncode == 0
        yield folder


def enroll_sites(folder: Path) -> None:
    config = load_config(folder / "coordinator.toml")
    authority = PkiFolder(config.pki_folder).load_authority(FederationId(config.federation))
    store = open_store(config.database_url)
    addresses = Addresses("", "", "", "", "", 0)
    running = RunningCoordinator(config, addresses, authority, store)
    for name in SITES:
        running.enroll(name)
    store.close()


# --- without a running coordinator -----------------------------------------------------------------------------------


def test_init_makes_everything_once_and_never_overwrites(tmp_path):
    first = answer(tmp_path, "init", "--federation", "lab", "--host", "accord.example.org")
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = answer(tmp_path, "init", "--federation", "lab")
    assert again["made"] == []
    assert again["coordinator_public_key"] == first["coordinator_public_key"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept
    for name in ("pki/ca.key", "signing-key.pem", "operators/admin/operator.key"):
        assert stat.S_IMODE((tmp_path / "data" / name).stat().st_mode) == 0o600
    assert accord(tmp_path, "init", "--federation", "other").returncode == 3
    assert accord(tmp_path, "operator", "create", "admin").returncode == 4
    assert {path: path.read_bytes() for path in kept} == kept


def test_check_config_shows_every_mistake_and_ends_with_3(tmp_path):
    answer(tmp_path, "init", "--federation", "lab")
    assert answer(tmp_path, "check-config")["federation"] == "lab"
    with (tmp_path / "coordinator.toml").open("a") as file:
        file.write("unknown = 1\nstop_grace_seconds = -1\n")
    done = started(tmp_path, "check-config")
    assert done.returncode == 3
    assert "limits.unknown: no such key" in done.stderr
    assert "limits.stop_grace_seconds" in done.stderr


def test_check_config_looks_at_the_files_and_urls_that_it_names(tmp_path):
    files = "".join(f'{name} = "none.pem"\n' for name in ("certificate", "key", "participant_cas", "operator_cas"))
    (tmp_path / "coordinator.toml").write_text(
        f'federation = "lab"\ndata_folder = "data"\n[database]\nurl = "mysql://host/db"\n'
        f'[blobs]\nurl = "s3://bucket"\n[certificates]\nmode = "files"\n{files}'
    )
    done = accord(tmp_path, "check-config")
    assert done.returncode == 3
    for key in ("database.url:", "blobs.url:", "certificates:"):
        assert key in done.stderr
    assert not (tmp_path / "data").exists()


def test_migrate_makes_the_database_and_is_harmless_to_repeat(tmp_path):
    answer(tmp_path, "init", "--federation", "lab")
    assert answer(tmp_path, "migrate") == answer(tmp_path, "migrate")


def test_a_command_without_a_coordinator_says_so_and_ends_with_5(tmp_path):
    answer(tmp_path, "init", "--federation", "lab")
    done = started(tmp_path, "status")
    assert done.returncode == 5
    assert "accord-coordinator serve" in done.stderr


def test_help_teaches_and_imports_nothing_heavy(tmp_path):
    done = started(tmp_path, "--help")
    assert done.returncode == 0
    assert "The first hour:" in done.stdout
    assert "exit codes:" in done.stdout
    probe = "import sys; from coordinator.cli.parser import build_parser; build_parser(); print(*sorted(sys.modules))"
    modules = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=ENVIRONMENT, cwd=tmp_path
    ).stdout.split()
    assert not {"grpc", "sqlalchemy", "pydantic", "numpy", "torch", "rich"} & set(modules)


@pytest.mark.parametrize("words", [("run",), ("token",), ("run", "create", "--help"), ("audit", "verify", "--help")])
def test_every_group_and_command_has_help(tmp_path, words):
    done = accord(tmp_path, *words)
    assert done.returncode == 0
    assert "usage: accord-coordinator" in done.stdout


def test_a_wrong_command_line_ends_with_2(tmp_path):
    assert accord(tmp_path, "run", "start").returncode == 2
    assert accord(tmp_path, "rnu").returncode == 2


# --- with one --------------------------------------------------------------------------------------------------------


def test_status_shows_the_federation(site):
    status = answer(site, "status")
    assert status["federation"]["federation"] == "lab"
    assert {row["name"] for row in status["participants"]} >= {f"participants/{name}" for name in SITES}
    assert "active participants" in started(site, "status").stdout


def test_a_token_goes_to_a_file_for_its_owner_alone(site):
    made = answer(site, "token", "create", "depot", "--ttl", "2h", "--out", "depot.token")
    token = site / "depot.token"
    assert token.read_text() == made["token"] + "\n"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    name = made["join_token"]["name"]
    assert answer(site, "token", "revoke", name)["state"] == "revoked"
    listed = {row["name"]: row["state"] for row in answer(site, "token", "list")}
    assert listed[name] == "revoked"
    assert accord(site, "token", "create", "depot", "--ttl", "soon").returncode == 2


def test_a_run_is_led_from_the_command_line(site):
    made = answer(
        site,
        "run",
        "create",
        "lead",
        "--base-model",
        "model.json",
        "--rounds",
        "2",
        "--set",
        "forming.window_seconds=77",
    )
    assert made["state"] == "created"
    assert made["plan"]["rounds"] == 2
    assert made["plan"]["phases"]["forming"]["window_seconds"] == 77
    assert answer(site, "run", "start", "lead")["state"] == "running"
    assert accord(site, "run", "start", "lead").returncode == 4
    assert answer(site, "run", "pause", "lead")["state"] == "paused"
    assert answer(site, "run", "resume", "runs/lead")["state"] == "running"
    assert answer(site, "run", "cancel", "lead", "--reason", "a trial")["message"] == "a trial"
    assert [row["name"] for row in answer(site, "run", "list", "--state", "cancelled")] == ["runs/lead"]
    assert "a trial" in accord(site, "run", "show", "lead").stdout
    assert accord(site, "run", "show", "nothing").returncode == 6


def test_a_run_rolls_back_to_an_adapter_named_by_its_first_digits(site):
    made = answer(site, "run", "create", "back", "--base-model", "model.json")
    digest = made["accepted_adapter_digest"]
    assert answer(site, "run", "rollback", "back", digest[:10])["accepted_adapter_digest"] == digest
    assert accord(site, "run", "rollback", "back", "zzz").returncode == 2


def test_a_plan_with_mistakes_ends_with_3_and_a_setting_that_does_not_exist_with_2(site):
    wrong = ("run", "create", "wrong", "--base-model", "model.json")
    done = accord(site, *wrong, "--set", "method=magic", "--set", "rounds=5000")
    assert done.returncode == 3
    assert "magic" in done.stderr
    assert "5000" in done.stderr
    assert accord(site, *wrong, "--set", "ronuds=1").returncode == 2
    assert accord(site, "run", "create", "wrong").returncode == 2


def test_an_adapter_is_exported_as_a_peft_folder_and_an_interrupted_export_goes_on(site):
    made = answer(site, "run", "create", "export", "--base-model", "model.json", "--rank", "2")
    digest = made["accepted_adapter_digest"]
    whole = answer(site, "adapter", "export", "whole", "--run", "export")
    assert whole["digest"] == digest
    model = site / "whole" / "adapter_model.safetensors"
    assert hashlib.sha256(model.read_bytes()).hexdigest() == digest
    config = json.loads((site / "whole" / "adapter_config.json").read_text())
    spec = AdapterSpec(config["r"], config["lora_alpha"], tuple(config["target_modules"]))
    tensors = load_file(model)
    assert set(tensors) == {slot.name for slot in spec.layout(MODEL.layers).slots}
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    assert json.loads((site / "whole" / "manifest.json").read_text())["digest"] == digest

    part = site / "parts" / f".{digest}.part"
    part.parent.mkdir()
    part.write_bytes(model.read_bytes()[:1000])
    answer(site, "adapter", "export", "parts", "--digest", digest)
    assert (site / "parts" / "adapter_model.safetensors").read_bytes() == model.read_bytes()

    part = site / "damaged" / f".{digest}.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 1000)
    assert accord(site, "adapter", "export", "damaged", "--digest", digest).returncode == 1
    assert not any(path.name.endswith("safetensors") for path in (site / "damaged").iterdir())


def test_an_adapter_that_is_no_lora_is_exported_as_one_beside_the_file_that_is_signed(site):
    settings = ("--rank", "4", "--set", "method=core")
    digest = answer(site, "run", "create", "core", "--base-model", "model.json", *settings)["accepted_adapter_digest"]

    for _ in range(2):  # a second time into the same folder, as after an export that was killed
        answer(site, "adapter", "export", "merged", "--run", "core")

    folder = site / "merged"
    assert hashlib.sha256((folder / "global_adapter.safetensors").read_bytes()).hexdigest() == digest
    config = json.loads((folder / "adapter_config.json").read_text())
    spec = AdapterSpec(config["r"], config["lora_alpha"], tuple(config["target_modules"]))
    assert set(load_file(folder / "adapter_model.safetensors")) == {
        slot.name for slot in spec.layout(MODEL.layers).slots
    }
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_run_begins_from_an_imported_adapter(site):
    method = adapter_method(Method(name="core"), AdapterSpec(4, 16.0, ("q_proj", "v_proj")))
    values = np.concatenate([values for _, values in method.initial(MODEL.layers, seed=77)])
    digest = write_adapter_folder(site / "first", values, method.layout(MODEL.layers), {})
    modules = 'target_modules=["q_proj", "v_proj"]'
    settings = ("--rank", "4", "--set", "method=core", "--set", f"initial_adapter={digest}", "--set", modules)
    refused = accord(site, "run", "create", "early", "--base-model", "model.json", *settings)
    assert (refused.returncode, "was imported" in refused.stderr) == (Exit.NOT_FOUND, True)

    assert answer(site, "adapter", "import", "first/adapter_model.safetensors")["digest"] == digest
    made = answer(site, "run", "create", "imported", "--base-model", "model.json", *settings)

    assert made["accepted_adapter_digest"] == digest
    answer(site, "adapter", "export", "imported", "--run", "imported")
    assert file_digest(site / "imported" / "global_adapter.safetensors") == digest
    again = accord(site, "run", "create", "another", "--base-model", "model.json", *settings)
    assert "belongs to runs/imported" in again.stderr


@pytest.mark.parametrize("settings", [("--rank", "3", "--set", "method=core"), ("--rank", "4")])
def test_an_imported_adapter_of_another_shape_is_refused(site, settings, tmp_path):
    method = adapter_method(Method(name="core"), AdapterSpec(4, 16.0, ("q_proj", "v_proj")))
    values = np.concatenate([values for _, values in method.initial(MODEL.layers, seed=int(settings[1]))])
    digest = write_adapter_folder(tmp_path, values, method.layout(MODEL.layers), {})
    answer(site, "adapter", "import", str(tmp_path / "adapter_model.safetensors"))
    chosen = (*settings, "--set", f"initial_adapter={digest}")
    refused = accord(site, "run", "create", f"shape{settings[1]}", "--base-model", "model.json", *chosen)
    assert refused.returncode == 3
    assert "with this rank, these heads" in refused.stderr


def test_what_is_no_adapter_is_not_imported(site):
    refused = accord(site, "adapter", "import", "model.json")
    assert refused.returncode != 0
    assert "not an adapter file" in refused.stderr
    assert accord(site, "adapter", "import", "nowhere").returncode == 2


def test_the_audit_log_is_exported_and_verified_without_the_coordinator(site):
    answer(site, "token", "create", "audited")
    assert answer(site, "audit", "verify")["intact"] is True
    assert accord(site, "audit", "export", "--out", "audit.jsonl").returncode == 0
    verdict = answer(site, "audit", "verify", "--file", "audit.jsonl")
    lines = (site / "audit.jsonl").read_text().splitlines()
    assert verdict["events"] == len(lines)
    assert "join_token_created" in {json.loads(line)["action"] for line in lines}

    changed = [line.replace("audited", "someone") for line in lines]
    (site / "changed.jsonl").write_text("\n".join(changed) + "\n")
    done = accord(site, "audit", "verify", "--file", "changed.jsonl", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["intact"] is False

    (site / "short.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    head = ("--expect-head", f"{len(lines)}:{verdict['chain_digest']}")
    assert accord(site, "audit", "verify", "--file", "short.jsonl", *head).returncode == 1
    assert accord(site, "audit", "verify", "--file", "audit.jsonl", *head).returncode == 0


def test_a_viewer_elsewhere_uses_flags_and_is_refused_what_is_not_its_to_do(site):
    made = answer(site, "operator", "create", "auditor", "--role", "viewer", "--out", str(site / "auditor"))
    listeners = json.loads((site / "data" / "listeners.json").read_text())
    files = ("--cert", made["certificate"], "--key", made["key"], "--ca", made["ca"])
    flags = ("--address", listeners["admin"], *files)
    elsewhere = site / "elsewhere"
    elsewhere.mkdir()
    assert answer(elsewhere, "status", *flags)["federation"]["federation"] == "lab"
    done = accord(elsewhere, "token", "create", "sneaky", *flags)
    assert done.returncode == 4
    assert "viewer" in done.stderr


def test_a_revoked_operator_is_refused(site):
    answer(site, "operator", "create", "gone")
    assert answer(site, "status", "--operator", "gone")["federation"]["federation"] == "lab"
    answer(site, "operator", "revoke", "gone")
    assert accord(site, "status", "--operator", "gone").returncode == 4
    states = {row["operator"]: row["state"] for row in answer(site, "operator", "list")}
    assert (states["gone"], states["admin"]) == ("revoked", "active")
    assert accord(site, "status").returncode == 3  # two operators here now: which one is meant?


# --- the process -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_well_when_it_is_told_to(tmp_path, number):
    (tmp_path / "coordinator.toml").write_text(CONFIG)
    accord(tmp_path, "init")
    with served(tmp_path) as process:
        process.send_signal(number)
        assert process.wait(START_SECONDS) == 0
    assert not (tmp_path / "data" / "listeners.json").exists()
    assert "coordinator_stopped" in (tmp_path / "log").read_text()


def test_serve_goes_on_with_its_data_after_a_kill(tmp_path):
    (tmp_path / "coordinator.toml").write_text(CONFIG)
    accord(tmp_path, "init")
    with served(tmp_path) as process:
        made = answer(tmp_path, "token", "create", "bank")["join_token"]
        process.kill()
        process.wait(START_SECONDS)
    assert accord(tmp_path, "status").returncode == 5
    with served(tmp_path):
        assert [row["name"] for row in answer(tmp_path, "token", "list")] == [made["name"]]


def test_serve_that_cannot_listen_says_which_listener_and_ends_with_3(tmp_path):
    (tmp_path / "coordinator.toml").write_text(CONFIG)
    accord(tmp_path, "init")
    with served(tmp_path):
        taken = json.loads((tmp_path / "data" / "listeners.json").read_text())["admin"]
        other = tmp_path / "other"
        other.mkdir()
        (other / "coordinator.toml").write_text(
            CONFIG.replace('[admin]\nlisten = "127.0.0.1:0"', f'[admin]\nlisten = "{taken}"')
        )
        accord(other, "init")
        done = started(other, "serve")
    assert done.returncode == 3
    assert f"admin: cannot listen on {taken}" in done.stderr


def test_serve_before_init_says_what_to_do(tmp_path):
    (tmp_path / "coordinator.toml").write_text(CONFIG)
    done = started(tmp_path, "serve")
    assert done.returncode == 6
    assert "accord-coordinator init" in done.stderr
