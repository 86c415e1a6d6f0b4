"""`accord-participant privacy`: what this site has promised and spent, in words, from its own files alone."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from common.cli.output import print_json, print_text
from common.errors import DataInvalid
from common.plan import Plan
from participant.cli.exits import Exit
from participant.config import ParticipantConfig, load_unpinned_config
from participant.journal import Journal, RunStanding
from participant.policy import Policy
from participant.policy_file import load_policy
from participant.privacy.files import data_set_of, ledger_of, private_records
from participant.privacy.statement import statement_of, words_of


def execute(options: argparse.Namespace) -> Exit:
    config = load_unpinned_config(options.config)
    policy = load_policy(config.policy_file)
    ledger = ledger_of(config, policy)
    found = statement_of(
        training=ledger.training(),
        figures=ledger.figures(),
        plans=_plans(config.journal_file),
        bounds=policy.privacy,
        data_set=data_set_of(policy),
        records=_records(config, policy),
    )
    if options.json:
        print_json(asdict(found))
    else:
        print_text(words_of(found))
    return Exit.OK


def _plans(file: Path) -> tuple[Plan, ...]:
    """Of the runs that this site has joined. Opening a journal makes one, and looking must not."""
    if not file.exists():
        return ()
    journal = Journal(file)
    try:
        joined = [entry for entry in journal.runs() if entry.standing is not RunStanding.DECLINED]
        return tuple(Plan.from_bytes(entry.plan) for entry in joined)
    finally:
        journal.close()


def _records(config: ParticipantConfig, policy: Policy) -> int | None:
    """In the data file now; None where it cannot be used: the ledger's own numbers serve then."""
    try:
        return private_records(config.data.settings(policy))
    except DataInvalid:
        return None
