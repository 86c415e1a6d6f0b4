"""`run`: training efforts."""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from pathlib import Path

from common.cli.output import print_json, print_table, print_text
from common.errors import ConfigInvalid, InvalidArgument
from common.identifiers import parse_digest, run_name
from coordinator.cli.connection import open_client
from coordinator.cli.exits import Exit
from coordinator.cli.facts import bare, moment, print_facts, short
from coordinator.services.admin_client import AdminClient, Plain

# Flags of `run create` that are settings of the same name.
SETTING_FLAGS = (
    "rounds",
    "method",
    "server_optimizer",
    "rank",
    "alpha",
    "learning_rate",
    "steps_per_round",
    "batch_size",
    "max_length",
    "seed",
)


def execute(options: argparse.Namespace) -> Exit:
    with open_client(options) as client:
        return _execute(client, options)


def _execute(client: AdminClient, options: argparse.Namespace) -> Exit:
    if options.action == "list":
        return _list(client, options)
    if options.action == "create":
        run = client.create_run(options.run, settings_of(options))
        if options.start:
            run = client.start_run(run["name"])
        return _show(run, options)
    name = run_name(options.run.removeprefix("runs/"))
    if options.action == "explain":
        return _explain(client.explain_run(name), options)
    match options.action:
        case "show":
            run = client.run(name)
        case "start":
            run = client.start_run(name)
        case "pause":
            run = client.pause_run(name)
        case "resume":
            run = client.resume_run(name)
        case "cancel":
            run = client.cancel_run(name, reason=options.reason)
        case _:
            run = _roll_back(client, name, options)
    return _show(run, options)


def settings_of(options: argparse.Namespace) -> Plain:
    """The plan's settings from file and flags; a flag wins over --set, and --set over the file."""
    settings: Plain = {}
    if options.settings is not None:
        settings |= _settings_file(options.settings)
    for assignment in options.set:
        _assign(settings, assignment)
    if options.base_model is not None:
        settings["base_model_json"] = _text(options.base_model)
    if options.instruction_set is not None:
        settings["instruction_set_json"] = _text(options.instruction_set)
    settings |= {name: getattr(options, name) for name in SETTING_FLAGS if getattr(options, name) is not None}
    if not settings.get("base_model_json"):
        raise InvalidArgument(
            "--base-model is missing: the file that `accord-participant describe-model FOLDER > model.json` writes"
        )
    return settings


def _settings_file(path: Path) -> Plain:
    try:
        return tomllib.loads(_text(path)) if path.suffix == ".toml" else dict(json.loads(_text(path)))
    except (tomllib.TOMLDecodeError, ValueError, TypeError) as error:
        raise ConfigInvalid(f"{path}: {error}") from error


def _assign(settings: Plain, assignment: str) -> None:
    """Put "training.window_seconds=600" into the settings. The value is JSON, or else text."""
    path, separator, text = assignment.partition("=")
    if not separator or not path:
        raise InvalidArgument(f"--set: {assignment!r} is not of the form NAME=VALUE")
    *folders, last = path.strip().split(".")
    place = settings
    for folder in folders:
        place = place.setdefault(folder, {})
        if not isinstance(place, dict):
            raise InvalidArgument(f"--set: {folder} in {path} is a value already")
    try:
        place[last] = json.loads(text)
    except ValueError:
        place[last] = text


def _explain(answer: Plain, options: argparse.Namespace) -> Exit:
    if options.json:
        print_json(answer)
        return Exit.OK
    has_deadline = answer["deadline_time"] is not None
    print_facts(
        [
            ("run", answer["run"]),
            ("state", answer["run_state"]),
            ("round", f"{answer['round']}, {answer['round_state']}" if answer["round"] else ""),
            ("now", answer["summary"]),
            ("done", f"{answer['done']} of at least {answer['quorum']}" if answer["quorum"] else ""),
            (
                "phase",
                f"{moment(answer['phase_start_time'])} to {moment(answer['deadline_time'])}" if has_deadline else "",
            ),
        ]
    )
    for title, rows in (("waits for", answer["awaited"]), ("is out", answer["out"])):
        if rows:
            print_text("")
            print_table(
                (title, "to", "since", "last seen", "reason", "what it is", "what to do"),
                [
                    (
                        bare(row["participant"]),
                        row["step"] or "-",
                        moment(row["since_time"]),
                        moment(row["last_seen_time"]),
                        row["reason"],
                        row["message"],
                        row["advice"],
                    )
                    for row in rows
                ],
            )
    return Exit.OK


def _roll_back(client: AdminClient, run: str, options: argparse.Namespace) -> Plain:
    if (options.adapter is None) == (options.round is None):
        raise InvalidArgument("name the adapter by its digest, or by its round with --round: one of them")
    if options.round is not None:
        return client.roll_back_run(run, adapter_round=options.round)
    return client.roll_back_run(run, adapter_digest=_digest(client, run, options.adapter))


def _digest(client: AdminClient, run: str, text: str) -> str:
    """A whole digest from its first digits, looked up among the run's adapters."""
    found = [bare(row["name"]) for row in client.adapters(run) if bare(row["name"]).startswith(text)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InvalidArgument(f"ADAPTER: {text} begins several adapters' digests; write more of it")
    return parse_digest(text, field="ADAPTER")


def _list(client: AdminClient, options: argparse.Namespace) -> Exit:
    rows = list(client.runs(states=tuple(options.state)))
    if options.json:
        print_json(rows)
        return Exit.OK
    print_table(
        ("run", "state", "succeeded", "newest round", "adapter", "created", "why"),
        [
            (
                bare(row["name"]),
                row["state"],
                f"{row['rounds_succeeded']} of {row['rounds_planned']}",
                row["round"],
                short(row["adapter_digest"]),
                moment(row["create_time"]),
                row["message"] or row["reason"],
            )
            for row in rows
        ],
    )
    return Exit.OK


def _show(run: Plain, options: argparse.Namespace) -> Exit:
    if options.json:
        print_json(run)
        return Exit.OK
    plan = run["plan"]
    print_facts(
        [
            ("run", bare(run["name"])),
            ("state", run["state"]),
            ("why", ": ".join(text for text in (run["reason"], run["message"]) if text)),
            ("rounds succeeded", f"{run['rounds_succeeded']} of {run['rounds_planned']}"),
            ("newest round", run["round"]),
            ("newest adapter", run["adapter_digest"]),
            ("accepted adapter", run["accepted_adapter_digest"]),
            ("plan digest", run["plan_digest"]),
            ("base model", plan["base_model"]["name"]),
            ("method", _method(plan["method"])),
            ("least cohort", plan["masking"]["least_cohort"]),
            ("created", moment(run["create_time"])),
            ("ended", moment(run["end_time"]) if run["end_time"] else ""),
        ]
    )
    if run["members"]:
        print_text("")
        print_table(
            ("participant", "standing", "since", "last seen", "why"),
            [
                (
                    bare(member["participant"]),
                    "joined" if member["joined"] else "declined",
                    moment(member["update_time"]),
                    moment(member["last_seen_time"]),
                    ": ".join(text for text in (member["reason"], member["message"]) if text),
                )
                for member in run["members"]
            ],
        )
    return Exit.OK


def _method(method: Plain) -> str:
    turns = ",".join(method["schedule"])
    rounds = f", {method['phase_rounds']} rounds a turn" if method["phase_rounds"] > 1 else ""
    return f"{method['name']}{f' ({turns}{rounds})' if turns else rounds} with {method['server_optimizer']}"


def _text(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"cannot read {path}: {error}") from error
