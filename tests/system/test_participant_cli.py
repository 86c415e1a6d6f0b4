"""`accord-participant` as its users meet it: real processes, exit codes, JSON, and words that help."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from common.adapters import ADAPTER_FILE, AdapterSpec, LinearLayer, file_digest, write_adapter_folder
from common.basemodel import describe
from common.clock import SystemClock
from common.manifest import SIGNATURE_FILE, Manifest
from common.methods import Method, adapter_method
from participant.cli.exits import Exit
from participant.cli.parser import build_parser
from participant.config import load_config
from participant.journal import Journal, RoundEntry, RoundPhase, RunEntry, RunStanding
from participant.update import ClipReport
from tests.rpc.background import coordinator_in_background
from tests.site_files import write_site
from tests.tiny_model import make_tiny_model

ROOT = Path(__file__).parents[2]
COMMANDS = (
    ["enroll"],
    ["check"],
    ["run"],
    ["describe-model"],
    ["initial-adapter"],
    ["charter"],
    ["charter", "show"],
    ["charter", "pin"],
    ["status"],
    ["adapters"],
    ["adapters", "list"],
    ["adapters", "export"],
    ["personalise"],
)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out)


def accord(*words: object, stdin: str = "") -> Ended:
    done = subprocess.run(
        [sys.executable, "-m", "participant", *map(str, words)],
        input=stdin, capture_output=True, text=True, cwd=ROOT, timeout=110, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return Ended(done.returncode, done.stdout, done.stderr)


# --- help and codes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], *COMMANDS], ids=" ".join)
def test_every_command_has_help_that_teaches(words, capsys):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([*words, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "usage: accord-participant" in text
    assert len(text.splitlines()) > 8


def test_help_is_quick_because_it_imports_nothing_heavy():
    script = (
        "import contextlib, io, sys\n"
        "from participant.__main__ import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main(['enroll', '--help'])\n"
        "print(sorted({'grpc', 'pydantic', 'numpy', 'torch', 'rich', 'cryptography'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_no_command_nor_the_daemon_imports_the_training_stack():
    modules = ["enroll", "check", "run", "describe_model", "charter", "status", "adapters"]
    script = (
        "import importlib, sys\n"
        f"for name in {modules}: importlib.import_module('participant.cli.' + name)\n"
        "import participant.app\n"
        "print(sorted({'torch', 'transformers', 'peft', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_exit_codes_keep_their_numbers():
    assert {code.name: code.value for code in Exit} == {
        "OK": 0,
        "FAILED": 1,
        "USAGE": 2,
        "CONFIG": 3,
        "REFUSED": 4,
        "UNAVAILABLE": 5,
        "CONTENT": 6,
        "STORAGE": 7,
        "AUDIT": 8,
        "INTERRUPTED": 130,
    }


def test_a_command_that_does_not_exist_and_none_at_all_show_the_way():
    assert accord("enrol").code == Exit.USAGE
    alone = accord()
    assert alone.code == Exit.OK
    assert "The first hour:" in alone.out
    assert accord("--version").out.startswith("accord-participant ")


# --- enroll --------------------------------------------------------------------------------------------------------


def test_a_site_enrolls_with_a_token_from_a_file_and_is_told_what_comes_next(config, coordinator, tmp_path):
    token = tmp_path / "token.txt"
    token.write_text(coordinator.invite("bank") + "\n")

    ended = accord("enroll", "--config", config, "--token-file", token)

    assert ended.code == Exit.OK
    assert "This site is bank of federation north." in ended.out
    assert f"accord-participant check --config {config}" in ended.err
    state = config.parent / "state"
    assert (state / "identity" / "identity.key").stat().st_mode & 0o777 == 0o600
    assert state.stat().st_mode & 0o777 == 0o700


def test_a_token_may_come_through_a_pipe_and_a_repeat_gets_the_same_certificate(config, coordinator):
    token = coordinator.invite("bank")
    first = accord("enroll", "--config", config, "--token-file", "-", "--json", stdin=token)
    again = accord("enroll", "--config", config, "--token", token, "--json")
    assert first.code == again.code == Exit.OK
    assert first.json == again.json
    assert first.json["coordinator_address"] == f"127.0.0.1:{coordinator.port}"
    assert token not in first.out + first.err


def test_a_site_enrolls_before_its_charter_is_pinned(tmp_path, coordinator):
    config = write_site(tmp_path / "site", charter='mode = "pinned"')
    ended = accord("enroll", "--config", config, "--token", coordinator.invite("bank"))
    assert ended.code == Exit.OK
    assert "accord-participant charter pin" in ended.err


def test_a_token_that_was_used_elsewhere_is_refused_with_a_reason_for_scripts(config, coordinator, tmp_path):
    token = coordinator.invite("bank")
    assert accord("enroll", "--config", write_site(tmp_path / "other"), "--token", token).code == Exit.OK
    ended = accord("enroll", "--config", config, "--token", token, "--json")
    assert ended.code == Exit.REFUSED
    assert ended.json["error"]["reason"] == "JOIN_TOKEN_INVALID"


def test_what_is_no_token_is_refused_without_being_shown(config):
    ended = accord("enroll", "--config", config, "--token", "accord-join-s3cr3t")
    assert ended.code == Exit.REFUSED
    assert "s3cr3t" not in ended.err + ended.out


def test_an_unreachable_coordinator_has_a_code_of_its_own(config, tmp_path):
    with coordinator_in_background(tmp_path / "short") as short:
        token = short.invite("bank")
    assert accord("enroll", "--config", config, "--token", token).code == Exit.UNAVAILABLE


# --- check ---------------------------------------------------------------------------------------------------------


def test_check_ends_with_0_and_a_table_when_nothing_has_failed(enrolled):
    ended = accord("check", "--config", enrolled, "--skip", "device", "--skip", "memory")
    assert ended.code == Exit.OK, ended.out
    assert "published_charter" in ended.out
    assert "1 warning, " in ended.err


def test_check_ends_with_1_and_says_what_to_do_when_something_has_failed(config):
    ended = accord("check", "--config", config, "--json", "--skip", "device")
    assert ended.code == Exit.FAILED
    assert ended.json["ok"] is False
    checks = {check["check"]: check for check in ended.json["checks"]}
    assert checks["identity"]["verdict"] == "failed"
    assert "join token" in checks["identity"]["action"]
    assert checks["data"]["verdict"] == "ok"
    assert checks["device"]["found"] == "not asked for"


def test_check_names_its_checks_when_one_is_misspelled(config):
    ended = accord("check", "--config", config, "--only", "tsl")
    assert ended.code == Exit.USAGE
    assert "tls" in ended.err


# --- charter -------------------------------------------------------------------------------------------------------


def test_a_charter_is_pinned_and_then_shown_from_the_file(enrolled, coordinator):
    digest = coordinator.charter().digest
    pinned = accord("charter", "pin", "--config", enrolled)
    assert pinned.code == Exit.OK
    assert f'digest = "{digest}"' in pinned.err
    assert "not pinned" in pinned.out  # the members' identity keys
    file = enrolled.parent / "charter.json"
    shown = accord("charter", "show", "--config", enrolled, "--file", file, "--json")
    assert shown.json["digest"] == digest
    assert [member["id"] for member in shown.json["charter"]["members"]] == ["bank", "clinic", "newsroom"]


def test_a_charter_of_another_digest_than_agreed_is_not_written(enrolled):
    ended = accord("charter", "pin", "--config", enrolled, "--digest", "0" * 64)
    assert ended.code == Exit.CONFIG
    assert "Nothing was written" in ended.err
    assert not (enrolled.parent / "charter.json").exists()


# --- describe-model ------------------------------------------------------------------------------------------------


def test_a_base_model_is_described_without_any_configuration(config, tmp_path):
    folder = config.parent / "model"
    ended = accord("describe-model", folder, "--cache", tmp_path / "cache", "--name", "tiny")
    assert ended.code == Exit.OK
    assert ended.json["digest"] == describe(folder).digest
    assert ended.json["name"] == "tiny"
    assert (
        accord("describe-model", folder, "--cache", tmp_path / "cache", "--digest-only").out
        == f"{describe(folder).digest}\n"
    )


def test_a_base_model_that_is_not_there_has_a_code_of_its_own(tmp_path):
    ended = accord("describe-model", tmp_path / "nowhere", "--cache", tmp_path / "cache")
    assert ended.code == Exit.CONTENT
    assert "nowhere" in ended.err


# --- run -----------------------------------------------------------------------------------------------------------


def test_the_daemon_does_not_start_with_a_broken_configuration(config):
    config.write_text(config.read_text() + "\nunknown = 1\n")
    ended = accord("run", "--config", config)
    assert ended.code == Exit.CONFIG
    assert "unknown: there is no such setting" in ended.err


# --- status --------------------------------------------------------------------------------------------------------


def write_journal(config: Path) -> None:
    now = SystemClock().now()
    journal = Journal(load_config(config).journal_file)
    joined = RunEntry("tune", b"{}", "ab" * 32, b"{}", RunStanding.JOINED, now)
    journal.put_run(joined)
    journal.put_run(
        replace(joined, run="greedy", standing=RunStanding.DECLINED, reason="POLICY_REFUSAL", message="rank is 64")
    )
    entry = RoundEntry("tune", 1, "train", RoundPhase.OVER, "cd" * 32, b"", now, now, outcome="succeeded")
    clipping = ClipReport(1000, 0.5, 7, 0.0123).to_json()
    journal.put_round(replace(entry, uploaded_bytes=3 * 2**20, clipping=clipping))
    journal.put_round(replace(entry, round=2, phase=RoundPhase.FAILED, reason="TRAINING_FAILED", message="killed"))
    journal.close()


def test_status_tells_of_runs_rounds_and_every_refusal(enrolled):
    write_journal(enrolled)
    ended = accord("status", "--config", enrolled)
    assert ended.code == Exit.OK
    assert "bank of federation north" in ended.out
    assert "POLICY_REFUSAL: rank is 64" in ended.out
    assert "TRAINING_FAILED: killed" in ended.out
    assert "3.0 MiB" in ended.out
    assert "scaled by 0.5; 7 elements, 1.2 % of the norm" in ended.out
    runs = {run["run"]: run for run in accord("status", "--config", enrolled, "--json").json["runs"]}
    assert runs["greedy"]["standing"] == "declined"
    assert [round_["round"] for round_ in runs["tune"]["rounds"]] == [2, 1]
    assert [(round_["clipping"] or {}).get("clipped_elements") for round_ in runs["tune"]["rounds"]] == [None, 7]


def test_status_knows_whether_the_daemon_runs(enrolled):
    lock = load_config(enrolled).lock_file
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert accord("status", "--config", enrolled, "--json").json["daemon_is_running"] is True
    assert accord("status", "--config", enrolled, "--json").json["daemon_is_running"] is False


def test_status_of_a_site_that_is_not_enrolled_fails_and_leaves_no_trace(config):
    ended = accord("status", "--config", config)
    assert ended.code == Exit.FAILED
    assert "not enrolled" in ended.out
    assert not (config.parent / "state").exists()


# --- a first adapter --------------------------------------------------------------------------------------------------


def test_a_first_adapter_has_the_base_models_own_bases_and_is_never_written_over(tmp_path):
    model = make_tiny_model(tmp_path / "tiny")
    command = ("initial-adapter", model, tmp_path / "first", "--rank", "3", "--modules", "q_proj,k_proj", "--json")

    written = accord(*command, "--cache", tmp_path / "cache").json

    assert written["digest"] == file_digest(tmp_path / "first")
    tensors = load_file(tmp_path / "first")
    weights = load_file(model / "model.safetensors")
    assert {name.split(".")[-3] for name in tensors} == {"q_proj", "k_proj"}
    for layer in ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.k_proj"):
        a, b, r = (tensors[f"base_model.model.{layer}.core_{name}.weight"] for name in "ABR")
        # In the leading spaces there is more of the weight than in any other directions, as many as these.
        found = np.linalg.norm(b.T @ weights[f"{layer}.weight"] @ a.T)
        best = np.linalg.norm(np.linalg.svd(weights[f"{layer}.weight"])[1][:3])
        assert 0.98 * best < found <= best * 1.0001
        assert not r.any()
    again = accord(*command, "--cache", tmp_path / "cache")
    assert again.json["error"]["reason"] == "ALREADY_EXISTS"


def test_a_first_adapter_that_does_not_fit_the_model_is_refused(tmp_path):
    model = make_tiny_model(tmp_path / "tiny")
    options = ("--cache", tmp_path / "cache", "--json")
    ended = accord("initial-adapter", model, tmp_path / "first", "--rank", "17", *options)
    assert "rank 17 is larger than the smaller side" in ended.json["error"]["message"]
    ended = accord("initial-adapter", model, tmp_path / "first", "--rank", "2", "--modules", "z_proj", *options)
    assert "no linear layer named z_proj" in ended.json["error"]["message"]
    assert [path.name for path in tmp_path.iterdir() if "first" in path.name] == []


# --- adapters ------------------------------------------------------------------------------------------------------


def shelve(config: Path, *, round_: int, method: str = "fedit") -> str:
    """An adapter folder as the daemon keeps it; returns its digest."""
    spec = AdapterSpec(rank=2, alpha=4.0, target_modules=("q_proj",))
    layout = adapter_method(Method(name=method), spec).layout([LinearLayer("model.layers.0.self_attn.q_proj", 16, 16)])
    shelf = load_config(config).adapters_directory
    flat = np.full(layout.parameters, round_, np.float32)
    digest = write_adapter_folder(shelf / ".arriving", flat, layout, spec.peft_config("tiny"))
    manifest = Manifest(
        federation="north", run="tune", round=round_, digest=digest, parent=None, base_model="tiny",
        base_model_digest="ab" * 32, plan_digest="cd" * 32, charter_digest="ef" * 32, adapter=spec, method=method,
        server_optimizer="fedavg", instruction_set_digest="01" * 32, survivor_count=3, survivors=None,
        metrics={"heldout_loss": 1.25}, privacy=None, created_at=f"2026-01-0{round_}T12:00:00Z",
    )  # fmt: skip
    (shelf / ".arriving" / "manifest.json").write_bytes(manifest.to_bytes())
    (shelf / ".arriving" / SIGNATURE_FILE).write_text("00" * 64)
    (shelf / ".arriving").rename(shelf / digest)
    return digest


def test_adapters_are_listed_newest_first_and_exported_whole(config, tmp_path):
    older, newer = shelve(config, round_=1), shelve(config, round_=2)
    listed = accord("adapters", "list", "--config", config, "--json").json["adapters"]
    assert [adapter["digest"] for adapter in listed] == [newer, older]
    assert "heldout_loss 1.25" in accord("adapters", "list", "--config", config).out

    ended = accord("adapters", "export", "--config", config, "--run", "tune", tmp_path / "newest")
    assert ended.code == Exit.OK
    shelf = load_config(config).adapters_directory
    for file in (shelf / newer).iterdir():
        assert (tmp_path / "newest" / file.name).read_bytes() == file.read_bytes()
    assert accord("adapters", "export", "--config", config, "--digest", older[:8], tmp_path / "older").code == Exit.OK
    assert (tmp_path / "older" / ADAPTER_FILE).read_bytes() == (shelf / older / ADAPTER_FILE).read_bytes()


def test_an_adapter_that_is_no_lora_is_exported_as_one(config, tmp_path):
    digest = shelve(config, round_=3, method="core")

    assert accord("adapters", "export", "--config", config, tmp_path / "merged").code == Exit.OK

    tensors = load_file(tmp_path / "merged" / ADAPTER_FILE)
    assert {name.split(".")[-2] for name in tensors} == {"lora_A", "lora_B"}
    # Every element of A, B and R is 3, and there are two of rank: B R is 18 everywhere.
    assert all((tensor == (3.0 if "lora_A" in name else 18.0)).all() for name, tensor in tensors.items())
    assert file_digest(tmp_path / "merged" / "global_adapter.safetensors") == digest


def test_an_adapter_is_not_exported_over_a_folder_nor_when_its_bytes_have_changed(config, tmp_path):
    digest = shelve(config, round_=1)
    (tmp_path / "taken").mkdir()
    assert accord("adapters", "export", "--config", config, tmp_path / "taken").code == Exit.FAILED
    with (load_config(config).adapters_directory / digest / ADAPTER_FILE).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    ended = accord("adapters", "export", "--config", config, tmp_path / "out", "--json")
    assert ended.json["error"]["reason"] == "DIGEST_MISMATCH"
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_is_not_there_is_said_to_be_missing(config, tmp_path):
    assert accord("adapters", "list", "--config", config).code == Exit.OK
    ended = accord("adapters", "export", "--config", config, "--run", "other", tmp_path / "out")
    assert ended.code == Exit.FAILED
    assert "no adapter of run other" in ended.err
