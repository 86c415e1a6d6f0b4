"""Blocks of code in the documents, by the marks in front of them.

<!-- run: NAME -->         typed by a test, as it stands there
<!-- config: KIND -->      a piece of a file that a program reads, given to that program by a test
<!-- by hand: REASON -->   what no test can do, and why
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.programs import ROOT

DOCS = ROOT / "docs"
README = ROOT / "README.md"
_BLOCK = re.compile(r"(?:^<!-- ([a-z ]+): ([^\n]+) -->\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """mark: "run", "config", "by hand", or "" for none. name: what the mark says. line: of the page, from 1."""

    mark: str
    name: str
    language: str
    text: str
    line: int


def blocks_of(page: Path) -> tuple[Block, ...]:
    """All blocks of a page that name their language, in order."""
    text = page.read_text(encoding="utf-8")
    return tuple(
        Block(found[1] or "", found[2] or "", found[3], found[4], text.count("\n", 0, found.start()) + 1)
        for found in _BLOCK.finditer(text)
    )


def typed(page: Path, name: str) -> str:
    """The lines of the page's blocks with this name, in order. Fails where there is none."""
    found = [block.text for block in blocks_of(page) if (block.mark, block.name) == ("run", name)]
    assert found, f"{page.name} has no block {name}"
    return "\n".join(found)
