"""The table of the thirty-four misbehaviours: each has its reaction, and a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
README = ROOT / "common" / "secagg" / "README.md"


def rows() -> list[list[str]]:
    section = README.read_text().split("## Thirty-four misbehaviours\n")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return cells[2:]


def test_every_misbehaviour_has_its_row_its_reaction_and_tests_that_are_there() -> None:
    found = rows()
    assert [int(number) for number, *_ in found] == list(range(1, 35))
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), flags=re.MULTILINE)
    }
    for number, lie, reaction, tests in found:
        assert lie
        assert reaction
        named = re.findall(r"`([^`]+)`", tests)
        assert named, f"misbehaviour {number} has no test"
        for name in named:
            is_file = name.endswith(".py") and (any((ROOT / "tests").rglob(Path(name).name)))
            assert is_file or name.split("::")[-1] in defined, f"{name} of misbehaviour {number} is no test"
