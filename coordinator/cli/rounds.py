"""`round`: who was in, who was out, and why."""

from __future__ import annotations

import argparse

from common.cli.output import print_json, print_table, print_text
from common.identifiers import round_name, run_name
from coordinator.cli.connection import open_client
from coordinator.cli.exits import Exit
from coordinator.cli.facts import bare, moment, print_facts, short
from coordinator.services.admin_client import AdminClient, Plain


def execute(options: argparse.Namespace) -> Exit:
    with open_client(options) as client:
        if options.action == "list":
            return _list(client, options)
        return _show(client.round(round_name(options.run.removeprefix("runs/"), options.number)), options)


def _list(client: AdminClient, options: argparse.Namespace) -> Exit:
    rows = list(client.rounds(run_name(options.run.removeprefix("runs/"))))
    if options.json:
        print_json(rows)
        return Exit.OK
    print_table(
        ("round", "kind", "state", "cohort", "survivors", "held-out loss", "adapter", "began", "why"),
        [
            (
                row["number"],
                row["kind"],
                row["state"],
                len(row["cohort"]) or "-",
                len(row["survivors"]) or "-",
                _metric(row, "heldout_loss"),
                short(row["adapter_digest"]),
                moment(row["create_time"]),
                row["message"] or row["reason"],
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
            ("round", row["name"]),
            ("kind", row["kind"]),
            ("state", row["state"]),
            ("why", ": ".join(text for text in (row["reason"], row["message"]) if text)),
            ("phase began", moment(row["phase_start_time"])),
            ("phase ends", moment(row["deadline_time"]) if row["deadline_time"] else ""),
            ("key epoch", f"{row['epoch'] or '-'} ({row['epoch_state']})"),
            ("trains from", row["base_adapter_digest"]),
            ("published", row["adapter_digest"]),
            ("cohort", [bare(name) for name in row["cohort"]]),
            ("survivors", [bare(name) for name in row["survivors"]]),
            *((metric["name"], metric["value"]) for metric in row["metrics"]),
            *(
                (
                    f"{group['name']} figures",
                    f"not shared: fewer than {group['needed']} contributors in the cohort ({group['contributors']})",
                )
                for group in row["closed_metric_groups"]
            ),
        ]
    )
    if row["participations"]:
        print_text("")
        print_table(
            ("participant", "state", "activity", "progress", "uploaded", "updated", "why"),
            [
                (
                    bare(entry["participant"]),
                    entry["state"],
                    entry["activity"],
                    _share(entry["progress_done"], entry["progress_total"]),
                    _share(entry["uploaded_bytes"], entry["upload_bytes"]),
                    moment(entry["update_time"]),
                    ": ".join(text for text in (entry["reason"], entry["message"]) if text),
                )
                for entry in row["participations"]
            ],
        )
    return Exit.OK


def _metric(row: Plain, name: str) -> object:
    return next((metric["value"] for metric in row["metrics"] if metric["name"] == name), "-")


def _share(done: int, total: int) -> str:
    return f"{done}/{total}" if total else "-"
