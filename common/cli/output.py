"""What commands print: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Final

from common.errors import AccordError

_PIPE_WIDTH: Final = 160
_COLOURS: Final = {
    "ok": "green",
    "ready": "green",
    "running": "cyan",
    "active": "green",
    "open": "cyan",
    "succeeded": "green",
    "accepted": "green",
    "joined": "green",
    "paused": "yellow",
    "candidate": "yellow",
    "warning": "yellow",
    "skipped": "dim",
    "dropped": "red",
    "failed": "red",
    "cancelled": "red",
    "revoked": "red",
    "declined": "red",
    "set_aside": "red",
}


def print_json(value: object) -> None:
    """One JSON value, for scripts."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def print_text(text: str) -> None:
    sys.stdout.write(text + "\n")


def print_note(text: str) -> None:
    """For the person at the terminal; not part of the result."""
    sys.stderr.write(text + "\n")


def print_error(error: AccordError, *, as_json: bool) -> None:
    """An error that ends the command: a line, and with --json also an object like any result."""
    if as_json:
        print_json({"error": {"reason": error.reason, "message": error.message}})
    print_note(f"error: {error.message}")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table as wide as the terminal; words that name a state are coloured there."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == columns[0])
    for row in rows:
        table.add_row(*(Text(cell(value), style=_COLOURS.get(cell(value), "")) for value in row))
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(table)


def cell(value: object) -> str:
    """A value as a person reads it in a table: "-" for nothing, four digits of a number, lists with commas."""
    match value:
        case None | "":
            return "-"
        case float():
            return f"{value:.4g}"
        case list() | tuple():
            return ", ".join(str(item) for item in value)
        case _:
            return str(value)
