"""`accord-participant run`: the daemon, in the foreground until it is stopped."""

from __future__ import annotations

import argparse

from participant.cli.exits import Exit
from participant.config import load_config


def execute(options: argparse.Namespace) -> Exit:
    """Read the configuration and hand it to the composition root."""
    config = load_config(options.config)
    from participant import app

    app.run(config)
    return Exit.OK
