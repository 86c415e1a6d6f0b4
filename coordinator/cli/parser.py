"""The command line of `accord-coordinator`: words, options and help. Imports nothing heavy, so that help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from common.cli.parser import Commands, Parser
from coordinator.cli.exits import MEANINGS

_DESCRIPTION: Final = """Accord's coordinator: leads a federation whose members tune one language model
and share no record. It learns the masked sum of their updates, and never one member's.

The first hour:
  1. accord-coordinator init --federation NAME --host accord.example.org
  2. accord-coordinator serve
  3. accord-coordinator token create bank          one for each member; they run accord-participant enroll
  4. accord-coordinator charter draft --out charter.json    every member pins its digest
     accord-coordinator charter publish charter.json
  5. accord-coordinator run create support --base-model model.json --start
  6. accord-coordinator status"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; `command` in the result names the module of `coordinator.cli` that does it."""
    parser = Parser(prog="accord-coordinator", description=_DESCRIPTION, epilog=MEANINGS)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    _add_local(commands)
    _add_operator(commands)
    _add_status(commands)
    _add_token(commands)
    _add_web_token(commands)
    _add_participant(commands)
    _add_charter(commands)
    _add_run(commands)
    _add_round(commands)
    _add_adapter(commands)
    _add_audit(commands)
    return parser


# --- on the coordinator's host ----------------------------------------------------------------------------------------


def _add_local(commands: Commands[Parser]) -> None:
    init = _local(
        commands,
        "init",
        "write configuration, keys, CA and the first operator's certificate",
        """Make what is missing, and leave alone what is there: a key is never overwritten, so it is safe to repeat.

examples:
  accord-coordinator init --federation hospitals --host accord.example.org
  accord-coordinator init --config /etc/accord/coordinator.toml      (keys for a configuration that is there)""",
    )
    init.add_argument("--federation", metavar="NAME", help="name of the federation; stands in every certificate")
    init.add_argument("--data-folder", metavar="FOLDER", help="default: data, beside the configuration")
    init.add_argument(
        "--host", action="append", metavar="NAME", help="DNS name or address that partners dial; may be repeated"
    )
    init.add_argument("--operator", default="admin", metavar="NAME", help="the first operator (default: admin)")
    serve = _local(
        commands,
        "serve",
        "serve until SIGTERM or Ctrl-C",
        """Serve participants, operators and probes. May be killed at any time: it goes on in the same state of the same
round. The addresses that it really listens on are in listeners.json in the data folder.

examples:
  accord-coordinator serve --config /etc/accord/coordinator.toml""",
    )
    serve.set_defaults(json=False)
    _local(
        commands,
        "check-config",
        "show every mistake in the configuration at once",
        """Read the configuration and the files that it names. Starts nothing and changes nothing.

examples:
  accord-coordinator check-config --config coordinator.toml
  accord-coordinator check-config --json""",
        command="check_config",
    )
    _local(
        commands,
        "migrate",
        "bring the database to this version's schema",
        """Make the database, or bring it forward. Back it up first; harmless if there is nothing to do.
`serve` does the same by itself unless database.migrate_on_start is false.""",
    )


def _add_operator(commands: Commands[Parser]) -> None:
    actions = _group(
        commands,
        "operator",
        "certificates for the people who run the federation",
        "Roles: viewer sees, operator runs, security-officer decides who belongs. Needs the CA's key, so its host.",
    )
    create = _local(
        actions,
        "create",
        "make a key and a certificate for a person",
        """Write operator.key, operator.pem and ca.pem into a folder; give the folder to the person, safely.

examples:
  accord-coordinator operator create alice --role operator --out alice
  accord-coordinator operator create auditor --role viewer""",
        command="operators",
        action="create",
    )
    create.add_argument("name", metavar="NAME", help="id of the person, as the audit log shows it")
    create.add_argument(
        "--role", default="operator", choices=("viewer", "operator", "security-officer"), help="default: operator"
    )
    create.add_argument("--out", type=Path, metavar="FOLDER", help="default: operators/NAME in the data folder")
    _local(
        actions,
        "list",
        "list the operators whose certificates lie in the data folder",
        "List operators whose certificates lie in the data folder, with role, state and end.",
        command="operators",
        action="list",
    )
    revoke = _local(
        actions,
        "revoke",
        "refuse an operator's certificate from its next call on",
        """Works while the coordinator runs, and without it.

examples:
  accord-coordinator operator revoke alice
  accord-coordinator operator revoke alice --serial 4f2a...    (a certificate that is not in the data folder)""",
        command="operators",
        action="revoke",
    )
    revoke.add_argument("name", metavar="NAME")
    revoke.add_argument("--serial", metavar="HEX", help="the certificate's serial number")


# --- through the admin listener ---------------------------------------------------------------------------------------


def _add_status(commands: Commands[Parser]) -> None:
    _remote(
        commands,
        "status",
        "the federation at a glance",
        """Participants, open runs and their newest rounds.

examples:
  accord-coordinator status
  accord-coordinator status --address accord.example.org:8445 --cert operator.pem --key operator.key --ca ca.pem""",
    )


def _add_token(commands: Commands[Parser]) -> None:
    actions = _group(commands, "token", "single-use invitations for participants", "Join tokens.")
    create = _remote(
        actions,
        "create",
        "invite one participant",
        """Print a join token: single use, for one name, and shown only now. Hand it over by a safe way.

examples:
  accord-coordinator token create bank
  accord-coordinator token create clinic --ttl 7d --out clinic.token""",
        command="tokens",
        action="create",
    )
    create.add_argument("participant", metavar="NAME", help='id: 1 to 40 of a-z, 0-9 and "-"')
    create.add_argument("--ttl", default="1d", metavar="TIME", help="30m, 12h, 7d, at most 30d (default: 1d)")
    create.add_argument("--out", type=Path, metavar="FILE", help="write the token there, readable for you alone")
    _remote(actions, "list", "list tokens", "Newest first; never the secrets.", command="tokens", action="list")
    revoke = _remote(
        actions, "revoke", "make an open token useless", "Harmless to repeat.", command="tokens", action="revoke"
    )
    revoke.add_argument("token", metavar="TOKEN", help="its name, as `token list` shows it")


def _add_web_token(commands: Commands[Parser]) -> None:
    actions = _group(commands, "web-token", "secrets that open the web page", "Web tokens: for reading alone.")
    create = _remote(
        actions,
        "create",
        "make one",
        """Print a web token: it opens the web page for reading until it ends, and is shown only now.

examples:
  accord-coordinator web-token create "bank's manager"
  accord-coordinator web-token create wallboard --ttl 30d --out web.token""",
        command="web_tokens",
        action="create",
    )
    create.add_argument("label", metavar="FOR", help="whom it is for; lists and the audit log show it")
    create.add_argument("--ttl", default="7d", metavar="TIME", help="12h, 7d, at most 90d (default: 7d)")
    create.add_argument("--out", type=Path, metavar="FILE", help="write the token there, readable for you alone")
    _remote(actions, "list", "list web tokens", "Newest first; never the secrets.", command="web_tokens", action="list")
    revoke = _remote(
        actions, "revoke", "make one useless", "Open pages end within seconds.", command="web_tokens", action="revoke"
    )
    revoke.add_argument("token", metavar="TOKEN", help="its name, as `web-token list` shows it")


def _add_participant(commands: Commands[Parser]) -> None:
    actions = _group(commands, "participant", "who is enrolled", "Enrolled participants.")
    _remote(actions, "list", "list participants", "By name.", command="participants", action="list")
    show = _remote(
        actions, "show", "one participant", "Certificate, version, last call.", command="participants", action="show"
    )
    show.add_argument("participant", metavar="NAME")
    revoke = _remote(
        actions,
        "revoke",
        "shut a participant out, for good",
        """All its certificates are refused from the next call on; open calls end within seconds. Cannot be undone: a
site that comes back enrols under another name.

examples:
  accord-coordinator participant revoke clinic --reason "key lost with a stolen laptop" """,
        command="participants",
        action="revoke",
    )
    revoke.add_argument("participant", metavar="NAME")
    revoke.add_argument("--reason", required=True, help="kept in the audit log and shown to the participant")


def _add_charter(commands: Commands[Parser]) -> None:
    actions = _group(
        commands, "charter", "who the members are and what bounds hold", "The document that every member pins."
    )
    draft = _remote(
        actions,
        "draft",
        "write a charter of enrolled participants",
        """Publishes nothing. Edit bounds in the file if you like; the digest that members pin is the published one's.

examples:
  accord-coordinator charter draft --out charter.json
  accord-coordinator charter draft bank clinic newsroom --least-cohort 3 --base-model-digest 7d1f...""",
        command="charters",
        action="draft",
    )
    draft.add_argument("participants", nargs="*", metavar="NAME", help="members; default: all active participants")
    draft.add_argument("--least-cohort", type=int, default=0, metavar="N", help="least sites in a sum (default: 3)")
    draft.add_argument("--colluders", type=int, metavar="N", help="members assumed to collude (default: (n-1)/3)")
    draft.add_argument(
        "--base-model-digest", action="append", default=[], metavar="SHA256", help="allowed models; default: any"
    )
    draft.add_argument("--out", type=Path, metavar="FILE")
    publish = _remote(
        actions,
        "publish",
        "make a charter the one that new runs are created under",
        """Runs that exist keep the charter under which they were made.

examples:
  accord-coordinator charter publish charter.json""",
        command="charters",
        action="publish",
    )
    publish.add_argument("file", type=Path, metavar="FILE", help='"-" reads standard input')
    show = _remote(
        actions, "show", "the present charter", "Members, bounds and digest.", command="charters", action="show"
    )
    show.add_argument("--out", type=Path, metavar="FILE", help="also write it there")


def _add_run(commands: Commands[Parser]) -> None:
    actions = _group(commands, "run", "training efforts", "A run is one training effort with a fixed plan.")
    create = _remote(
        actions,
        "create",
        "make a run with a fixed plan",
        """Participants review the plan at once and join or decline. Every setting is a field of PlanSettings in
protos/accord/v1/resources.proto; what is not said takes the default written there.

examples:
  accord-coordinator run create support --base-model model.json --rounds 3 --start
  accord-coordinator run create support --settings plan.toml --set training.window_seconds=3600 --set rank=16""",
        command="runs",
        action="create",
    )
    create.add_argument("run", metavar="RUN", help='id: 1 to 40 of a-z, 0-9 and "-"')
    create.add_argument(
        "--base-model", type=Path, metavar="FILE", help="what `accord-participant describe-model` has printed"
    )
    create.add_argument("--settings", type=Path, metavar="FILE", help="settings by name, TOML or JSON")
    create.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one setting; may be repeated")
    create.add_argument(
        "--instruction-set",
        type=Path,
        metavar="FILE",
        help="templates as JSON; default: a turn of the model's own chat template "
        "(deploy/examples/plain-instructions.json is for models that have none)",
    )
    create.add_argument("--rounds", type=int, metavar="N", help="training rounds (default: 3)")
    create.add_argument("--method", metavar="NAME", help="what is trained and sent (default: fedit)")
    create.add_argument("--server-optimizer", metavar="NAME", help="how the mean moves the adapter (default: fedavg)")
    create.add_argument("--rank", type=int, metavar="N", help="LoRA rank (default: 8)")
    create.add_argument("--alpha", type=float, metavar="X", help="LoRA alpha (default: 16)")
    create.add_argument("--learning-rate", type=float, metavar="X", help="at the participants (default: by method)")
    create.add_argument("--steps-per-round", type=int, metavar="N", help="optimiser steps (default: 10)")
    create.add_argument("--batch-size", type=int, metavar="N", help="records in a step (default: 8)")
    create.add_argument("--max-length", type=int, metavar="N", help="longest record in tokens (default: 512)")
    create.add_argument("--seed", type=int, metavar="N", help="of the initial adapter and of shuffling (default: 0)")
    create.add_argument("--start", action="store_true", help="start it at once")
    listing = _remote(actions, "list", "list runs", "Newest first.", command="runs", action="list")
    listing.add_argument(
        "--state",
        action="append",
        default=[],
        choices=("created", "running", "paused", "succeeded", "failed", "cancelled"),
        help="only runs in this state; may be repeated",
    )
    for name, summary, text in (
        ("show", "one run with its members", "Who has joined, who has declined and why, and the newest adapter."),
        ("start", "begin the first round", "From created."),
        ("pause", "let the open round end and begin no other", "From running."),
        ("resume", "go on with a paused run", "From paused."),
        ("cancel", "end a run now", "Its open round is cancelled; what was published stays."),
    ):
        parser = _remote(actions, name, summary, text, command="runs", action=name)
        parser.add_argument("run", metavar="RUN")
        if name == "cancel":
            parser.add_argument("--reason", default="", help="kept in the audit log and shown to participants")
    rollback = _remote(
        actions,
        "rollback",
        "train on from an earlier accepted adapter",
        """From created or paused, with no round open. The newer adapters stay published.

examples:
  accord-coordinator run pause support
  accord-coordinator run rollback support 3f9ac2""",
        command="runs",
        action="rollback",
    )
    rollback.add_argument("run", metavar="RUN")
    rollback.add_argument("adapter", metavar="ADAPTER", help="its digest, or enough of the beginning")


def _add_round(commands: Commands[Parser]) -> None:
    actions = _group(commands, "round", "who was in, who was out, and why", "Rounds of a run.")
    listing = _remote(actions, "list", "list a run's rounds", "Newest first.", command="rounds", action="list")
    listing.add_argument("run", metavar="RUN")
    show = _remote(
        actions, "show", "one round", "Phase, cohort, survivors, metrics, members.", command="rounds", action="show"
    )
    show.add_argument("run", metavar="RUN")
    show.add_argument("number", type=int, metavar="NUMBER")


def _add_adapter(commands: Commands[Parser]) -> None:
    actions = _group(commands, "adapter", "published global adapters", "Global adapters, named by their digest.")
    listing = _remote(actions, "list", "list a run's adapters", "Newest first.", command="adapters", action="list")
    listing.add_argument("run", metavar="RUN")
    export = _remote(
        actions,
        "export",
        "write an adapter as a plain PEFT folder",
        """The folder loads with PeftModel.from_pretrained. Digest and signed manifest are checked; an export that was
interrupted goes on where it was.

examples:
  accord-coordinator adapter export support-adapter --run support        (the newest accepted one)
  accord-coordinator adapter export round-2 --digest 3f9a...""",
        command="adapters",
        action="export",
    )
    export.add_argument("folder", type=Path, metavar="FOLDER")
    export.add_argument("--run", metavar="RUN", help="its newest accepted adapter")
    export.add_argument("--digest", metavar="SHA256", help="this adapter")
    taking = _remote(
        actions,
        "import",
        "bring a first adapter for a run to begin from",
        """What `accord-participant initial-adapter` has written beside the base model, which the coordinator has not.
It is kept until a run is created from it, and belongs to that run from then on.

examples:
  accord-coordinator adapter import first.safetensors
  accord-coordinator run create core --base-model model.json --rank 32 --set method=core --set initial_adapter=3f...""",
        command="adapters",
        action="import",
    )
    taking.add_argument("file", type=Path, metavar="FILE", help="adapter file in the layout of the run's method")


def _add_audit(commands: Commands[Parser]) -> None:
    actions = _group(commands, "audit", "who did what, hash-chained", "The append-only audit log.")
    listing = _remote(actions, "list", "show the newest events", "Oldest first.", command="audit", action="list")
    listing.add_argument("--last", type=int, default=50, metavar="N", help="at most so many (default: 50)")
    listing.add_argument("--actor", default="", metavar="NAME", help="only of this actor, such as alice or bank")
    listing.add_argument("--subject", default="", metavar="NAME", help="only of this resource, such as runs/support")
    verify = _remote(
        actions,
        "verify",
        "recompute the hash chain",
        """Ends with 1 if an event is missing or was changed.

examples:
  accord-coordinator audit verify
  accord-coordinator audit verify --file audit.jsonl --sequence 1200 --digest 9c1e...   (without the coordinator)""",
        command="audit",
        action="verify",
    )
    verify.add_argument("--file", type=Path, metavar="FILE", help="what `audit export` has written")
    verify.add_argument("--sequence", type=int, default=0, metavar="N", help="last event that you noted elsewhere")
    verify.add_argument("--digest", default="", metavar="SHA256", help="its chain digest")
    export = _remote(
        actions,
        "export",
        "write the whole log, one JSON object a line",
        """examples:
  accord-coordinator audit export --out audit.jsonl""",
        command="audit",
        action="export",
    )
    export.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")


# --- parts ------------------------------------------------------------------------------------------------------------


def _group(commands: Commands[Parser], name: str, summary: str, description: str) -> Commands[Parser]:
    parser = commands.add_parser(name, help=summary, description=description)
    return parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)


def _local(
    commands: Commands[Parser],
    name: str,
    summary: str,
    description: str,
    *,
    command: str | None = None,
    action: str | None = None,
) -> Parser:
    """A command that works on the coordinator's host without a running coordinator."""
    parser = commands.add_parser(name, help=summary, description=description, epilog=MEANINGS)
    parser.set_defaults(command=command or name, action=action)
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="default: coordinator.toml here, else in /etc/accord"
    )
    if name != "serve":
        parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    return parser


def _remote(
    commands: Commands[Parser],
    name: str,
    summary: str,
    description: str,
    *,
    command: str | None = None,
    action: str | None = None,
) -> Parser:
    """A command that asks the admin listener."""
    parser = _local(commands, name, summary, description, command=command, action=action)
    reach = parser.add_argument_group("how to reach the coordinator (on its own host the configuration says it)")
    reach.add_argument("--address", metavar="HOST:PORT", help="the admin listener")
    reach.add_argument("--operator", metavar="NAME", help="whose certificate in the data folder to show")
    reach.add_argument("--cert", type=Path, metavar="FILE", help="operator's certificate chain, PEM")
    reach.add_argument("--key", type=Path, metavar="FILE", help="its key, PEM")
    reach.add_argument("--ca", type=Path, metavar="FILE", help="CA of the coordinator's certificate, PEM")
    return parser
