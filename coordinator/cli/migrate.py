"""`migrate`: bring the database to this version's schema, or move all of it to another database."""

from __future__ import annotations

import argparse

from common.cli.output import print_json, print_note, print_text
from common.credentials import read_secret
from common.errors import InvalidArgument, OutOfTurn
from coordinator.cli.exits import Exit
from coordinator.cli.files import find_config
from coordinator.config import Config, load_config
from coordinator.replica import is_in_use
from coordinator.store.schema import migrate


def execute(options: argparse.Namespace) -> Exit:
    config = load_config(find_config(options.config))
    if options.to and options.to_file:
        raise InvalidArgument("--to and --to-file are two answers to one question; leave out one")
    target = read_secret(options.to_file, key="--to-file") if options.to_file else options.to
    if target:
        return _move(config, target, as_json=options.json)
    revision = migrate(config.database_url)
    if options.json:
        print_json({"revision": revision})
    else:
        print_text(f"the database is at revision {revision}")
    return Exit.OK


def _move(config: Config, target: str, *, as_json: bool) -> Exit:
    from coordinator.store.moving import move

    if is_in_use(config.data_folder):
        raise OutOfTurn(f"a coordinator is running on {config.data_folder}: stop it first, then move its database")
    moved = move(config.database_url, target, progress=lambda table: print_note(f"{table.name}: {table.rows} rows"))
    head = moved.audit_head
    if as_json:
        print_json(
            {
                "database": moved.place,
                "revision": moved.revision,
                "tables": [{"table": one.name, "rows": one.rows, "sha256": one.sha256} for one in moved.tables],
                "audit_sequence": head.sequence,
                "audit_chain_digest": head.chain_digest,
            }
        )
        return Exit.OK
    rows = sum(one.rows for one in moved.tables)
    print_text(f"{rows} rows in {len(moved.tables)} tables are in {moved.place}, compared one by one")
    print_text(f"the audit log is intact up to event {head.sequence} ({head.chain_digest})")
    print_note(
        f"\nThe database at {config.database_url.removeprefix('sqlite:///')} is as it was. Now name the new one in "
        "coordinator.toml, before anything is started:\n\n"
        "[database]\n"
        'url_file = "FILE"      # a file that holds the URL with its password, for the service alone to read\n\n'
        "Never start a coordinator on the old database again: members would refuse what it says, or half of them hear "
        "it.\nBlobs and keys are where they were; replicas need both in a place that all of them reach (blobs.url, "
        "keys.folder)."
    )
    return Exit.OK
