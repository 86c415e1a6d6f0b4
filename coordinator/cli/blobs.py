"""`blobs copy`: all blobs into another store, to which the configuration is pointed afterwards."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Final

from common.cli.output import print_json, print_note
from common.errors import ConfigInvalid
from coordinator.blob_copy import BlobsCopied, copy_blobs
from coordinator.cli.exits import Exit
from coordinator.cli.facts import print_facts
from coordinator.cli.files import find_config
from coordinator.config import load_config
from coordinator.store.opening import open_blobs

_SAID_EVERY: Final = 500


def execute(options: argparse.Namespace) -> Exit:
    config = load_config(find_config(options.config))
    if options.to.rstrip("/") == config.blobs_url.rstrip("/"):
        raise ConfigInvalid(f"--to is where the blobs are: {config.blobs_url}")
    source = open_blobs(config.blobs_url, config.s3, owner=config.federation)
    target = open_blobs(options.to, config.s3, owner=config.federation)
    copied = copy_blobs(source, target, scratch=config.scratch_folder, progress=_say)
    facts = {"from": config.blobs_url, "to": options.to, **asdict(copied)}
    if options.json:
        print_json(facts)
    else:
        print_facts(facts.items())
        print_note(f'next: stop the coordinator, copy once more, write url = "{options.to}" into [blobs], start it')
    return Exit.OK


def _say(done: BlobsCopied) -> None:
    count = done.copied + done.present
    if count % _SAID_EVERY == 0:
        print_note(f"{count} blobs, {(done.copied_bytes + done.present_bytes) >> 20} MiB")
