"""Real programs that tests start: from Debian's packages (tests/apt-packages.txt) or from .tools (constraints/tools).

Knows where they lie; not what they are for.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
# Where Debian puts servers that are not on everybody's path, newest last.
_ELSEWHERE: Final = ("/usr/sbin", "/sbin", *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"))))


def debian_program(name: str, *, package: str) -> Path:
    """The program of a Debian package. Skips the test where it is missing, with the command that brings it."""
    for folder in (None, *reversed(_ELSEWHERE)):
        if found := shutil.which(name, path=folder):
            return Path(found)
    pytest.skip(f"{name} is missing: apt-get install {package}")


def tool(environment: str, name: str) -> Path:
    """The program of .tools/ENVIRONMENT, which `make tools` installs; without it the test fails."""
    path = ROOT / ".tools" / environment / "bin" / name
    if not path.exists():
        pytest.fail(f"{path.relative_to(ROOT)} is missing: make tools")
    return path


def tool_file(environment: str, path: str) -> Path:
    """A file that a package of .tools/ENVIRONMENT carries, by its path in site-packages; without it the test fails."""
    found = sorted((ROOT / ".tools" / environment).glob(f"lib/python3*/site-packages/{path}"))
    if not found:
        pytest.fail(f"{path} is missing in .tools/{environment}: make tools")
    return found[-1]
