"""`audit`: the append-only, hash-chained log of who did what."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path

from common.cli.output import print_json, print_note, print_table
from common.errors import InvalidArgument
from coordinator.cli.connection import open_client
from coordinator.cli.exits import Exit
from coordinator.cli.facts import moment, print_facts
from coordinator.rounds.model import AuditEvent
from coordinator.services.admin_client import AdminClient, Plain
from coordinator.store.audit import AuditHead, expected_head, verify


def execute(options: argparse.Namespace) -> Exit:
    if options.action == "verify" and options.file is not None:
        return _verify_file(options)
    with open_client(options) as client:
        match options.action:
            case "list":
                return _list(client, options)
            case "verify":
                head = _expected(options)
                answer = client.verify_audit_log(
                    expected_sequence=head.sequence if head else 0,
                    expected_chain_digest=head.chain_digest if head else "",
                )
                return _tell(answer, options)
            case _:
                return _export(client, options)


def _list(client: AdminClient, options: argparse.Namespace) -> Exit:
    events = client.audit_events(subject=options.subject, actor=options.actor, action=options.event, newest_first=True)
    rows = list(islice(events, options.last))[::-1]
    if options.json:
        print_json(rows)
        return Exit.OK
    print_table(
        ("#", "time", "actor", "action", "subject", "details"),
        [
            (row["sequence"], moment(row["time"]), row["actor"], row["action"], row["subject"], row["details_json"])
            for row in rows
        ],
    )
    return Exit.OK


def _export(client: AdminClient, options: argparse.Namespace) -> Exit:
    """One JSON object a line, oldest first; `audit verify --file` reads it without the coordinator."""
    stream = sys.stdout if options.out is None else options.out.open("w", encoding="utf-8")
    count = 0
    try:
        for row in client.audit_events():
            stream.write(json.dumps(row, sort_keys=True) + "\n")
            count += 1
    finally:
        if options.out is not None:
            stream.close()
    if options.out is not None:
        print_note(f"wrote {count} events to {options.out}")
    return Exit.OK


def _verify_file(options: argparse.Namespace) -> Exit:
    verdict = verify(_read(options.file), expected=_expected(options))
    return _tell(
        {
            "events": verdict.events,
            "intact": verdict.intact,
            "first_broken_sequence": verdict.first_broken_sequence,
            "chain_digest": verdict.chain_digest,
            "sequence": verdict.sequence,
        },
        options,
    )


def _expected(options: argparse.Namespace) -> AuditHead | None:
    if not options.expect_head:
        return None
    sequence, _, digest = options.expect_head.partition(":")
    if not sequence.isdecimal():
        raise InvalidArgument("--expect-head: write N:SHA256, as `audit verify` prints the head")
    return expected_head(int(sequence), digest)


def _tell(answer: Plain, options: argparse.Namespace) -> Exit:
    if options.json:
        print_json(answer)
    else:
        print_facts(
            [
                ("audit log", "intact" if answer["intact"] else "BROKEN"),
                ("events", answer["events"]),
                ("first broken event", answer["first_broken_sequence"] or ""),
                ("head", f"{answer['sequence']}:{answer['chain_digest']}"),
            ]
        )
        print_note(
            "Keep the head somewhere else, for the next `audit verify --expect-head`: whoever can write the database "
            "can also write a chain."
        )
    return Exit.OK if answer["intact"] else Exit.FAILED


def _read(path: Path) -> Iterator[AuditEvent]:
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                yield _event(line, number)
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error.strerror}") from error


def _event(line: str, number: int) -> AuditEvent:
    try:
        row = json.loads(line)
        return AuditEvent(
            sequence=int(row["sequence"]),
            time=datetime.fromisoformat(row["time"]),
            actor=row["actor"],
            action=row["action"],
            subject=row["subject"],
            details=row["details_json"],
            chain_digest=row["chain_digest"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(f"line {number} is not an event of `accord-coordinator audit export`: {error}") from error
