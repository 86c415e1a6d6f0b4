"""What commands print: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from common.errors import AccordError

Json = Mapping[str, object]

_PLAIN_WIDTH: Final = 160


def print_json(value: Json) -> None:
    """One JSON object, for scripts."""
    json.dump(value, sys.stdout, indent=2, sort_keys=True)
    sys.stdout.write("\n")


def print_text(text: str) -> None:
    sys.stdout.write(text + "\n")


def print_note(text: str) -> None:
    """For the person at the terminal; not part of the result."""
    sys.stderr.write(text + "\n")


def print_error(error: AccordError, *, as_json: bool) -> None:
    """An error that ends the command: with --json an object like any result, else a line."""
    if as_json:
        print_json({"error": {"reason": error.reason, "message": error.message}})
    else:
        print_note(f"error: {error.message}")


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, colours: Mapping[str, str] | None = None
) -> None:
    """A table as wide as the terminal. colours: rich style of cells with exactly that text."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == columns[0])
    for row in rows:
        table.add_row(*(Text(cell, style=(colours or {}).get(cell, "")) for cell in row))
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    console.print(table)
