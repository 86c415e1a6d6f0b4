"""docs/web.md: its commands, typed as they stand there, against a running coordinator."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import DOCS, typed
from tests.programs import debian_program
from tests.rpc.coordinator import CONFIG, RunningCoordinator, running_coordinator
from tests.rpc.showcase import WEB

GUIDE = DOCS / "web.md"


def shell(coordinator: RunningCoordinator, folder: Path, text: str) -> str:
    """What the lines print, with the environment's commands first on the path."""
    text = text.replace("accord.example.org:8446", coordinator.addresses.web)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", text],
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory):
    debian_program("curl", package="curl")
    with running_coordinator(tmp_path_factory.mktemp("guide"), CONFIG + WEB) as running:
        shell(running, running.config.data_folder.parent, "accord-coordinator operator create alice")
        yield running


def test_an_operator_comes_with_a_certificate_that_a_browser_takes(coordinator):
    folder = coordinator.config.data_folder.parent
    assert "<h1>Runs</h1>" in shell(coordinator, folder, typed(GUIDE, "web certificate"))
    names = shell(coordinator, folder, "openssl pkcs12 -in alice.p12 -passin pass:choose-your-own -nokeys")
    assert "Accord alice" in names


def test_a_token_is_made_listed_used_and_taken_back(coordinator):
    folder = coordinator.config.data_folder.parent
    told = shell(coordinator, folder, typed(GUIDE, "web token"))
    assert "the bank&#39;s manager" in told
    assert "web token created" in told
    assert (folder / "manager.token").read_text().strip() not in told
    assert (folder / "manager.token").stat().st_mode & 0o077 == 0
    name = re.search(r"web-token revoke ([0-9a-f]{16})", told)
    assert name is not None
    assert "is revoked" in shell(coordinator, folder, f"accord-coordinator web-token revoke {name[1]}")


def test_every_picture_of_the_guide_is_there_and_small():
    pictures = re.findall(r"\]\((images/[^)]+)\)", GUIDE.read_text(encoding="utf-8"))
    assert len(pictures) == 3
    assert all((DOCS / name).stat().st_size < 300_000 for name in pictures)
