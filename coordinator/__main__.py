"""`accord-coordinator`, the program."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from common.cli.program import Program
from coordinator.cli.exits import exit_of
from coordinator.cli.parser import build_parser

PROGRAM: Final = Program("accord-coordinator", "coordinator.cli", build_parser, exit_of)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the command that `arguments`, or else the process's own, ask for."""
    return PROGRAM.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
