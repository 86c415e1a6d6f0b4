"""The README's first hours and what a data scientist takes away, typed as they stand there, with a tiny model.

An operator and three partners, real processes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo.ports import free_ports
from tests.pages import DOCS, README, typed
from tests.programs import ROOT
from tests.tiny_model import make_tiny_model

RUN_SECONDS = 100
PORTS = (8443, 8444, 8445, 8080, 8081)
DATA_SCIENTIST = DOCS / "data-scientist.md"
NETWORKS = DOCS / "networks.md"
SITES = ("bank", "clinic", "newsroom")

PARTICIPANT = """
state_directory = "state"
policy_file = "policy.toml"
least_free_mebibytes = 1
base_models = [{{ source = "{model}" }}]
[data]
train_file = "train.jsonl"
held_out_fraction = 0.3
[charter]
file = "charter.json"
{digest}
[evaluation]
loss_records = 4
"""


class Shell:
    """Runs the README's lines in one folder, with this environment's commands first on the path."""

    def __init__(self, folder: Path, ports: dict[int, int]) -> None:
        self.folder = folder
        self.ports = ports
        self.background: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "COLUMNS": "200",
        }

    def text(self, text: str) -> str:
        for documented, real in self.ports.items():
            text = text.replace(f":{documented}", f":{real}")
        return text

    def run(self, lines: str, folder: Path | None = None) -> str:
        with subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", self.text(lines)],
            cwd=folder or self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as shell:
            try:
                said, _ = shell.communicate(timeout=RUN_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(shell.pid, signal.SIGKILL)
                logs = [log.read_text()[-2000:] for log in self.folder.rglob("log.txt")]
                raise AssertionError("\n".join((f"{lines} goes on and on", *logs))) from None
        assert shell.returncode == 0, f"{lines}\n{said}"
        return said

    def start(self, line: str, folder: Path | None = None) -> None:
        folder = folder or self.folder
        with (folder / "log.txt").open("ab") as log:
            self.background.append(
                subprocess.Popen(
                    ["bash", "-c", f"exec {self.text(line)}"],
                    cwd=folder,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within it the program started last does nothing."""
        self.background[-1].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.background[-1].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        for process in self.background:
            process.send_signal(signal.SIGTERM)
        for process in self.background:
            process.wait(30)


def prepare_site(folder: Path, name: str, model: Path) -> Path:
    site = folder / name
    site.mkdir()
    records = [{"instruction": f"repeat {n}", "input": "", "output": f"{n}"} for n in range(20)]
    (site / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (site / "participant.toml").write_text(PARTICIPANT.format(model=model, digest=""))
    policy = (ROOT / "deploy" / "examples" / "policy.toml").read_text()
    hours = 'time_zone = "UTC"\nallow = ["mon-sun 00:00-24:00"]\n'
    (site / "policy.toml").write_text(policy.split("[hours]")[0] + "[hours]\n" + hours)
    return site


@pytest.mark.system
@pytest.mark.timeout(300)
def test_the_first_hours_in_the_readme_work_as_written(tmp_path):
    model = make_tiny_model(tmp_path / "tiny")
    shell = Shell(tmp_path, dict(zip(PORTS, free_ports(len(PORTS)), strict=True)))
    try:
        serve, init = "accord-coordinator serve &", typed(README, "init")
        assert serve in init
        shell.run(init.replace(serve, ""))
        config = tmp_path / "coordinator.toml"
        config.write_text(shell.text(config.read_text()))
        shell.start(serve.removesuffix(" &"))
        shell.run("until accord-coordinator status; do sleep 0.3; done")
        shell.run(typed(README, "tokens"))
        assert "accord.v1.AdminService" in shell.run(typed(README, "grpcurl"))

        sites = {name: prepare_site(tmp_path, name, model) for name in SITES}
        for name, site in sites.items():
            shell.run(typed(README, "enroll").replace("bank.token", f"../{name}.token"), site)
        assert all(name in shell.run(typed(README, "charter")) for name in SITES)
        for site in sites.values():
            assert re.search(r"[0-9a-f]{64}", shell.run(typed(README, "pin"), site))
        published = json.loads(shell.run("accord-coordinator charter show --json"))["digest"]
        for name, site in sites.items():
            (site / "participant.toml").write_text(PARTICIPANT.format(model=model, digest=f'digest = "{published}"'))
            check, run = typed(README, "participate").strip().splitlines()
            shell.run(check, sites[name])
            shell.start(run, site)

        shell.run(f"accord-participant describe-model {model} > model.json")
        command_t = typed(README, "grpcurl").splitlines()[0]
        small = typed(README, "run").replace("--rounds 3", "--rounds 1 --steps-per-round 2 --max-length 128")
        create, rest = small.strip().split("\n", 1)
        shell.run(create)
        shell.run("until accord-coordinator round list support --json | grep -q '\"number\": *1'; do sleep 0.3; done")
        with shell.frozen():  # however slow this machine is, the run is not over before it is paused
            shell.run(f"{command_t}\n{rest}")
        shell.run(
            'until accord-coordinator run show support --json | grep -q \'"state": *"succeeded"\'; do sleep 0.3; done'
        )
        assert "accepted" in shell.run(typed(DATA_SCIENTIST, "take"))
        assert (tmp_path / "final" / "adapter_model.safetensors").exists()
        used = typed(DATA_SCIENTIST, "use").replace("SmolLM2-135M-Instruct", str(model))
        (tmp_path / "use.py").write_text(f"{used}\nprint(model.peft_config)\n")
        assert "LoraConfig" in shell.run("python use.py")
        assert "support" in shell.run("accord-participant status --config participant.toml", sites["bank"])

        for name in ("layers", "report"):
            here = typed(NETWORKS, name).replace("/etc/accord/participant.toml", "participant.toml")
            assert "clock" in shell.run(here, sites["bank"])
        tried = typed(DATA_SCIENTIST, "try").replace("support", "other").replace("--max-length 256", "--max-length 128")
        assert "bank" in shell.run(tried)
        shell.run("accord-coordinator run cancel other")
    finally:
        shell.stop()
