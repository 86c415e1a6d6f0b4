"""`migrate`: bring the database to this version's schema."""

from __future__ import annotations

import argparse

from common.cli.output import print_json, print_text
from coordinator.cli.exits import Exit
from coordinator.cli.files import find_config
from coordinator.config import load_config
from coordinator.store.schema import migrate


def execute(options: argparse.Namespace) -> Exit:
    config = load_config(find_config(options.config))
    revision = migrate(config.database_url)
    if options.json:
        print_json({"revision": revision})
    else:
        print_text(f"the database is at revision {revision}")
    return Exit.OK
