"""deploy/systemd/install as the guide types it: a wheel in /opt/accord with its unit, and all of it gone again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from common.version import software_version
from tests.pages import DOCS, typed
from tests.programs import ROOT, tool

GUIDE = DOCS / "partner-operator.md"
SCRIPT = ROOT / "deploy" / "systemd" / "install"


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


@pytest.fixture
def host(tmp_path: Path) -> dict[str, str]:
    """Another root than /, an environment in it whose packages are this one's, and nothing that pip would fetch."""
    # From a copy: a build leaves things beside the sources that a later one would take for its own.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in ("common", "coordinator", "participant", "protos"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            tmp_path,
            source,
        ],
        check=True,
        timeout=100,
    )
    root = tmp_path / "root"
    programs = root / "usr" / "local" / "bin"
    return {
        **os.environ,
        "DESTDIR": str(root),
        "PYTHON": sys.executable,
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "PATH": f"{programs}:{os.environ['PATH']}",
    }


@pytest.mark.system
def test_one_command_installs_a_wheel_as_a_service_and_one_takes_it_away(host, tmp_path):
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    root = Path(host["DESTDIR"])
    install, version, undo = typed(GUIDE, "wheel").strip().splitlines()

    def run(line: str) -> str:
        # The link leads to /opt/accord: on a host that is what DESTDIR stands for here.
        line = line.replace("accord-participant --version", f"{root}/opt/accord/bin/accord-participant --version")
        return subprocess.run(
            ["bash", "-euc", line], cwd=tmp_path, env=host, capture_output=True, text=True, check=True, timeout=100
        ).stdout

    assert "systemctl enable --now accord-participant" in run(install)
    assert software_version() in run(version)
    unit = root / "etc" / "systemd" / "system" / "accord-participant.service"
    assert unit.read_bytes() == (ROOT / "deploy" / "systemd" / "accord-participant.service").read_bytes()
    assert (root / "usr" / "local" / "bin" / "accord-participant").readlink() == Path(
        "/opt/accord/bin/accord-participant"
    )
    assert str(Path("/opt/accord/bin/accord-participant")) in unit.read_text()
    run(install)  # over itself: how a newer one comes

    kept = root / "etc" / "accord" / "participant.toml"
    kept.parent.mkdir()
    kept.write_text("mine")
    run(undo)
    assert files_below(root) == {"etc/accord/participant.toml"}


@pytest.mark.parametrize("words", [[], ["accord.tar.gz"], ["accord-0.1.0-py3-none-any.whl", "everything"]])
def test_words_that_mean_nothing_change_nothing_and_say_what_can_be_typed(words, tmp_path):
    done = subprocess.run(
        [SCRIPT, *words], env={**os.environ, "DESTDIR": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "deploy/systemd/install --undo" in done.stderr
    assert files_below(tmp_path) == set()


def test_scripts_that_run_as_root_pass_shellcheck():
    scripts = [SCRIPT, ROOT / "deploy" / "debian" / "build", *(ROOT / "deploy" / "debian" / "accord").glob("p*")]
    done = subprocess.run([tool("shell", "shellcheck"), *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
