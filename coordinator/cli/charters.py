"""`charter`: who the members are and what bounds hold."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from common.cli.output import print_json, print_note, print_text
from common.durable import write_durably
from common.errors import InvalidArgument
from coordinator.cli.connection import open_client
from coordinator.cli.exits import Exit
from coordinator.cli.facts import print_facts
from coordinator.services.admin_client import AdminClient


def execute(options: argparse.Namespace) -> Exit:
    with open_client(options) as client:
        match options.action:
            case "draft":
                return _draft(client, options)
            case "publish":
                return _publish(client, options)
            case _:
                return _show(client, options)


def _draft(client: AdminClient, options: argparse.Namespace) -> Exit:
    draft = client.draft_charter(
        participants=tuple(options.participants),
        least_cohort=options.least_cohort,
        colluders=options.colluders,
        base_model_digests=tuple(options.base_model_digest),
        ca_certificates={name: _read(file) for name, file in options.member_ca},
    )
    text = _readable(draft["charter_json"])
    if options.out is not None:
        write_durably(options.out, text.encode())
    if options.json:
        print_json({"digest": draft["digest"], "charter": json.loads(draft["charter_json"])})
    elif options.out is None:
        sys.stdout.write(text)
    print_note(
        f"digest {draft['digest']}\nSend it to every member; each pins this digest. Then: accord-coordinator charter "
        "publish FILE"
    )
    return Exit.OK


def _publish(client: AdminClient, options: argparse.Namespace) -> Exit:
    answer = client.publish_charter(_read(options.file))
    if options.json:
        print_json(answer)
    else:
        print_text(f"published {answer['digest']}")
    return Exit.OK


def _show(client: AdminClient, options: argparse.Namespace) -> Exit:
    answer = client.charter()
    charter = json.loads(answer["charter_json"])
    if options.out is not None:
        write_durably(options.out, _readable(answer["charter_json"]).encode())
    if options.json:
        print_json({"digest": answer["digest"], "charter": charter})
        return Exit.OK
    colluders = charter["colluders"]
    if colluders is None:
        colluders = f"{(len(charter['members']) - 1) // 3} (a third)"
    print_facts(
        [
            ("digest", answer["digest"]),
            ("federation", charter["federation"]),
            ("members", [member["id"] for member in charter["members"]]),
            ("least cohort", charter["least_cohort"]),
            ("colluders", colluders),
            ("base models", charter["base_model_digests"] or "any"),
            ("coordinator's key", charter["coordinator_public_key"]),
            *((f"bound {name}", bound) for name, bound in charter["bounds"].items()),
        ]
    )
    return Exit.OK


def _readable(canonical: str) -> str:
    """Indented for people; a charter keeps its digest however it is indented."""
    return json.dumps(json.loads(canonical), indent=2, sort_keys=True) + "\n"


def _read(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"cannot read {path}: {error}") from error
