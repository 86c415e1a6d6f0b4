"""The commands of docs/federation-operator.md, typed as they stand there, against a running coordinator."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from coordinator.__main__ import main
from tests.pages import DOCS, blocks_of
from tests.programs import ROOT
from tests.rpc.coordinator import MODEL, SITES, running_coordinator
from tests.rpc.parts import Pki

GUIDE = DOCS / "federation-operator.md"
BLOCKS = [(block.name, block.text) for block in blocks_of(GUIDE) if block.mark == "run"]


class Terminal:
    """Runs the guide's lines in one folder. A plain `accord-coordinator` is the same program without its start."""

    def __init__(self, folder: Path, environment: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._environment = environment
        self._capsys = capsys

    def run(self, block: str) -> str:
        if "$(" in block:
            return self._shell(block)
        return "".join(self._line(line) for line in block.splitlines())

    def _line(self, line: str) -> str:
        words = shlex.split(line, comments=True)
        if words[:1] != ["accord-coordinator"]:
            return self._shell(line)
        self._capsys.readouterr()
        code = main(words[1:])
        said = self._capsys.readouterr()
        assert code == 0, f"{line}\n{said.out}{said.err}"
        return said.out

    def _shell(self, lines: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{self._environment}\n{lines}"],
            cwd=self.folder,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, f"{lines}\n{done.stdout}"
        return done.stdout


@pytest.fixture
def terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """The coordinator's folder, with what `init` and the partners have left there."""
    with running_coordinator(tmp_path) as coordinator:
        for site in SITES:
            coordinator.enroll(site)
        (tmp_path / "model.json").write_text(MODEL.to_json())
        for name in ("bank", "clinic", "mill"):
            (tmp_path / f"{name}.pem").write_bytes(Pki.create(tmp_path / f"pki-{name}").trust_bundle)
        (tmp_path / "deploy").symlink_to(ROOT / "deploy")
        monkeypatch.chdir(tmp_path)
        environment = dict(BLOCKS)["environment"].replace("127.0.0.1:8445", coordinator.addresses.admin)
        terminal = Terminal(tmp_path, environment, capsys)
        terminal.run("accord-coordinator operator create admin")
        # No round is opened in the run of the guide, so that it can be rolled back at once.
        now = datetime.now(UTC)
        assert coordinator.store.acquire_lease("runs/support", holder="test", now=now, until=now + timedelta(hours=1))
        yield terminal


def test_the_guide_works_as_written(terminal: Terminal) -> None:
    assert len(dict(BLOCKS)) == len(BLOCKS)
    said = {name: terminal.run(block) for name, block in BLOCKS if name != "environment"}

    assert "NEVER_SEEN" in said["begin"]
    assert "waits for" in said["begin"]
    assert '"summary"' in said["waiting"]
    assert said["audit"].count("intact") >= 3
    assert "intact" in said["head"]
    assert "mill" in (terminal.folder / "charter.json").read_text()
    assert "issuing" in said["authority"]
    assert "former" in said["authority"]
    assert "run_rolled_back" in terminal.run("accord-coordinator audit list --subject runs/support")
