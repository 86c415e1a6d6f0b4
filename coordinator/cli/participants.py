"""`participant`: who is enrolled."""

from __future__ import annotations

import argparse

from common.cli.output import print_json, print_table
from common.identifiers import participant_name
from coordinator.cli.connection import open_client
from coordinator.cli.exits import Exit
from coordinator.cli.facts import bare, moment, print_facts
from coordinator.services.admin_client import AdminClient, Plain


def execute(options: argparse.Namespace) -> Exit:
    with open_client(options) as client:
        match options.action:
            case "list":
                return _list(client, options)
            case "show":
                return _show(
                    client.participant(participant_name(options.participant.removeprefix("participants/"))), options
                )
            case _:
                name = participant_name(options.participant.removeprefix("participants/"))
                return _show(client.revoke_participant(name, reason=options.reason), options)


def _list(client: AdminClient, options: argparse.Namespace) -> Exit:
    rows = list(client.participants())
    if options.json:
        print_json(rows)
        return Exit.OK
    print_table(
        ("participant", "state", "last seen", "certificate ends", "version", "note"),
        [
            (
                bare(row["name"]),
                row["state"],
                moment(row["last_seen_time"]),
                moment(row["certificate_expire_time"]),
                row["software_version"],
                row["revoke_reason"],
            )
            for row in rows
        ],
    )
    return Exit.OK


def _show(row: Plain, options: argparse.Namespace) -> Exit:
    if options.json:
        print_json(row)
        return Exit.OK
    print_facts(
        [
            ("participant", bare(row["name"])),
            ("state", row["state"]),
            ("enrolled", moment(row["enroll_time"])),
            ("last seen", moment(row["last_seen_time"])),
            ("software", row["software_version"]),
            ("certificate", row["certificate_serial"]),
            ("certificate ends", moment(row["certificate_expire_time"])),
            ("identity key", row["identity_key_sha256"]),
            ("revoked because", row["revoke_reason"]),
        ]
    )
    return Exit.OK
