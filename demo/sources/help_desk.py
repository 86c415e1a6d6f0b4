"""The help desk: a task in words, answered by one shell command.

Pairs from the example pages of the package eg (MIT): a paragraph followed by an indented command. Only pairs that stand
alone are used: one short sentence, one line of command.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from itertools import pairwise
from typing import Final

from demo.sources.records import Parts, Record, instruction, split

SITE: Final = "helpdesk"
DOMAIN: Final = "it_support"

_BLANK_LINES: Final = re.compile(r"\n\s*\n")
_TASK_LENGTHS: Final = range(8, 141)
_COMMAND_LENGTHS: Final = range(2, 91)
# More than one sentence, or one that leans on its neighbours.
_NOT_ALONE: Final = re.compile(r"[.;!?] |\b(following|equivalent|above|below|this|these|that command)\b", re.I)
# Pages about eg itself and its relatives, and commands that their own page has wrong.
_LEFT_OUT_PAGES: Final = frozenset({"eg", "clip-view", "prqlc", "cd"})
_WRONG: Final = frozenset({"find /dir/to/search -5k", "find /searchdir -atime -w2", "chmod o-rwx file.txt"})


def build(*, train: int, held_out: int) -> Parts:
    """A command is in one part only, however many tasks it answers."""
    return split(((record.output, record) for record in _records()), train=train, held_out=held_out)


def _records() -> Iterator[Record]:
    for page in sorted(files("eg.examples").iterdir(), key=lambda page: page.name):
        tool, _, suffix = page.name.partition(".")
        if suffix != "md" or tool in _LEFT_OUT_PAGES:
            continue
        for task, command in _pairs(page.read_text(encoding="utf-8")):
            yield instruction(
                SITE,
                DOMAIN,
                instruction=f"Write one {tool} command for the task. Answer with the command only.",
                input_text=task,
                output=command,
            )


def _pairs(page: str) -> Iterator[tuple[str, str]]:
    blocks = _BLANK_LINES.split(page)
    for paragraph, code in pairwise(blocks):
        lines = code.strip("\n").split("\n")
        if paragraph.startswith(("#", "    ")) or len(lines) != 1 or not lines[0].startswith("    "):
            continue
        task = " ".join(paragraph.split()).rstrip(":.")
        command = lines[0].strip().removeprefix("$ ")
        if len(task) not in _TASK_LENGTHS or len(command) not in _COMMAND_LENGTHS:
            continue
        if _NOT_ALONE.search(task) or command in _WRONG:
            continue
        yield task[0].upper() + task[1:], command
