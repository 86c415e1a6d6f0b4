"""`status`: the federation at a glance."""

from __future__ import annotations

import argparse

from common.cli.output import print_json, print_table, print_text
from common.identifiers import round_name
from coordinator.cli.connection import open_client
from coordinator.cli.exits import Exit
from coordinator.cli.facts import bare, moment, print_facts, short

OPEN_STATES = ("created", "running", "paused")


def execute(options: argparse.Namespace) -> Exit:
    with open_client(options) as client:
        federation = client.federation()
        participants = list(client.participants())
        runs = list(client.runs(states=OPEN_STATES))
        rounds = {
            run["name"]: client.round(round_name(bare(run["name"]), run["round"])) for run in runs if run["round"]
        }
    if options.json:
        print_json(
            {
                "federation": federation,
                "participants": participants,
                "open_runs": [{**run, "newest_round": rounds.get(run["name"])} for run in runs],
            }
        )
        return Exit.OK
    print_facts(
        [
            ("federation", federation["federation"]),
            ("coordinator", federation["software_version"]),
            ("charter", short(federation["charter_digest"]) or "none published"),
            ("CA ends", moment(federation["ca_expire_time"])),
            ("active participants", federation["active_participants"]),
            ("open runs", federation["open_runs"]),
        ]
    )
    print_text("")
    print_table(
        ("participant", "state", "last seen", "certificate ends"),
        [
            (bare(row["name"]), row["state"], moment(row["last_seen_time"]), moment(row["certificate_expire_time"]))
            for row in participants
        ],
    )
    if runs:
        print_text("")
        print_table(
            ("run", "state", "succeeded", "round", "phase", "until"),
            [
                (
                    bare(run["name"]),
                    run["state"],
                    f"{run['rounds_succeeded']} of {run['rounds_planned']}",
                    run["round"],
                    rounds[run["name"]]["state"] if run["name"] in rounds else "-",
                    moment(rounds[run["name"]]["deadline_time"]) if run["name"] in rounds else "-",
                )
                for run in runs
            ],
        )
    return Exit.OK
