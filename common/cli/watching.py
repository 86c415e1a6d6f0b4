"""`--watch`: a command's output again and again in the same place of a terminal, until Ctrl-C."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Final

WATCH_SECONDS: Final = 2.0
_LEAST_SECONDS: Final = 0.2
_CLEAR: Final = "\x1b[H\x1b[2J\x1b[3J"


def add_watch(parser: argparse.ArgumentParser) -> None:
    """The option; `watched` keeps to it."""
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=WATCH_SECONDS,
        metavar="SECONDS",
        help=f"show it again every {WATCH_SECONDS:g} s, or as often as you say, until Ctrl-C",
    )


def watched(seconds: float | None, show: Callable[[], int]) -> int:
    """What `show` returns, once; with seconds, over and over. It prints on standard output."""
    while True:
        code = show()
        if seconds is None:
            return code
        sys.stdout.flush()
        time.sleep(max(seconds, _LEAST_SECONDS))
        if sys.stdout.isatty():
            sys.stdout.write(_CLEAR)
