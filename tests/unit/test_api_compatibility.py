"""Can old and new versions talk? Checked against the committed image, and against the newest tag where there is one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RELEASED = "string software_version = 3;"
ADDED = "string added_later = 900;"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository of its own, without a commit or a tag: a shallow clone of CI has no more to compare with."""
    for name in ("Makefile", "buf.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "protos", tmp_path / "protos", ignore=shutil.ignore_patterns("*.py", "*.pyi", "__pycache__"))
    git(tmp_path, "init", "--quiet")
    return tmp_path


def git(folder: Path, *words: str) -> None:
    author = ["-c", "user.name=nobody", "-c", "user.email=nobody@accord.invalid", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *author, *words], cwd=folder, check=True, capture_output=True)


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    words = ["make", "check-breaking", f"BIN={Path(sys.executable).parent}"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


def edit(folder: Path, old: str, new: str) -> None:
    file = folder / "protos" / "accord" / "v1" / "round.proto"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_more_fields_are_compatible_with_the_committed_image(checkout):
    edit(checkout, RELEASED, f"{RELEASED}\n  {ADDED}")
    done = check(checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compatible with protos/baseline.binpb" in done.stdout


@pytest.mark.parametrize("new", ["", "bytes software_version = 3;", "string software_version = 33;"])
def test_a_field_that_is_gone_or_another_is_found_without_any_history(checkout, new):
    edit(checkout, RELEASED, new)
    done = check(checkout)
    assert done.returncode != 0
    assert "software_version" in done.stdout + done.stderr
    assert "breaks what protos/baseline.binpb knows" in done.stderr


def test_where_there_is_a_release_it_is_what_counts(checkout):
    edit(checkout, RELEASED, f"{RELEASED}\n  {ADDED}")
    git(checkout, "add", "protos", "buf.yaml")
    git(checkout, "commit", "--quiet", "--message", "a release")
    git(checkout, "tag", "v0.9.0")
    git(checkout, "tag", "v0.10.0")
    assert "compatible with v0.10.0" in check(checkout).stdout
    edit(checkout, ADDED, "")  # the committed image has never known it
    done = check(checkout)
    assert done.returncode != 0
    assert "breaks what v0.10.0 knows" in done.stderr
