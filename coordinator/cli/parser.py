"""The command line of `accord-coordinator`: words, options and help. Imports nothing heavy, so that help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from common.cli.parser import Commands, Parser
from common.cli.watching import add_watch
from coordinator.cli.exits import MEANINGS
from coordinator.cli.parser_host import add_authority, add_blobs, add_local, add_operator
from coordinator.cli.parser_parts import group, remote

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
    add_local(commands)
    add_operator(commands)
    add_authority(commands)
    add_blobs(commands)
    _add_status(commands)
    _add_track(commands)
    _add_token(commands)
    _add_web_token(commands)
    _add_participant(commands)
    _add_charter(commands)
    _add_run(commands)
    _add_round(commands)
    _add_adapter(commands)
    _add_audit(commands)
    return parser


# --- through the admin listener ---------------------------------------------------------------------------------------


def _add_status(commands: Commands[Parser]) -> None:
    status = remote(
        commands,
        "status",
        "the federation at a glance",
        """Participants, and of each open run: where it is, how long it has, whom it waits for, who is out, its losses.

examples:
  accord-coordinator status
  accord-coordinator status --watch
  accord-coordinator status --address accord.example.org:8445 --cert operator.pem --key operator.key --ca ca.pem""",
    )
    add_watch(status)


def _add_track(commands: Commands[Parser]) -> None:
    track = remote(
        commands,
        "track",
        "a run's figures in MLflow or TensorBoard",
        """Bring the published figures of a run's rounds to an experiment tracker. Repeating it adds what is new.
Nothing private is among them: they are sums over a cohort. It needs accord[mlflow] or accord[tensorboard].

examples:
  accord-coordinator track --run support --to tensorboard:runs --follow
  accord-coordinator track --run support --to mlflow:https://mlflow.example.org""",
    )
    track.add_argument("--run", required=True, metavar="RUN")
    track.add_argument("--to", required=True, metavar="WHERE", help="tensorboard:FOLDER or mlflow:URI")
    track.add_argument("--follow", action="store_true", help="go on until the run is over")
    track.add_argument("--every", type=float, default=15.0, metavar="SECONDS", help="with --follow (default: 15)")


def _add_token(commands: Commands[Parser]) -> None:
    actions = group(commands, "token", "single-use invitations for participants", "Join tokens.")
    create = remote(
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
    remote(actions, "list", "list tokens", "Newest first; never the secrets.", command="tokens", action="list")
    revoke = remote(
        actions, "revoke", "make an open token useless", "Harmless to repeat.", command="tokens", action="revoke"
    )
    revoke.add_argument("token", metavar="TOKEN", help="its name, as `token list` shows it")


def _add_web_token(commands: Commands[Parser]) -> None:
    actions = group(commands, "web-token", "secrets that open the web page", "Web tokens: for reading alone.")
    create = remote(
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
    remote(actions, "list", "list web tokens", "Newest first; never the secrets.", command="web_tokens", action="list")
    revoke = remote(
        actions, "revoke", "make one useless", "Open pages end within seconds.", command="web_tokens", action="revoke"
    )
    revoke.add_argument("token", metavar="TOKEN", help="its name, as `web-token list` shows it")


def _add_participant(commands: Commands[Parser]) -> None:
    actions = group(commands, "participant", "who is enrolled", "Enrolled participants.")
    remote(actions, "list", "list participants", "By name.", command="participants", action="list")
    show = remote(
        actions, "show", "one participant", "Certificate, version, last call.", command="participants", action="show"
    )
    show.add_argument("participant", metavar="NAME")
    revoke = remote(
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


def _member_file(text: str) -> tuple[str, Path]:
    name, sign, file = text.partition("=")
    if not (name and sign and file):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE")
    return name, Path(file)


def _add_charter(commands: Commands[Parser]) -> None:
    actions = group(
        commands, "charter", "who the members are and what bounds hold", "The document that every member pins."
    )
    draft = remote(
        actions,
        "draft",
        "write a charter of enrolled participants",
        """Publishes nothing. Edit bounds in the file if you like; the digest that members pin is the published one's.

examples:
  accord-coordinator charter draft --out charter.json
  accord-coordinator charter draft bank clinic newsroom --least-cohort 3 --base-model-digest 7d1f...
  accord-coordinator charter draft --member-ca bank=bank.pem --member-ca clinic=clinic.pem --member-ca mill=mill.pem""",
        command="charters",
        action="draft",
    )
    draft.add_argument("participants", nargs="*", metavar="NAME", help="members; default: all active participants")
    draft.add_argument("--least-cohort", type=int, default=0, metavar="N", help="least sites in a sum (default: 3)")
    draft.add_argument("--colluders", type=int, metavar="N", help="members assumed to collude (default: (n-1)/3)")
    draft.add_argument(
        "--base-model-digest", action="append", default=[], metavar="SHA256", help="allowed models; default: any"
    )
    draft.add_argument(
        "--member-ca",
        action="append",
        default=[],
        type=_member_file,
        metavar="NAME=FILE",
        help="the CA of a member whose certificates come from its own PKI; it needs not be enrolled",
    )
    draft.add_argument("--out", type=Path, metavar="FILE")
    publish = remote(
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
    show = remote(
        actions, "show", "the present charter", "Members, bounds and digest.", command="charters", action="show"
    )
    show.add_argument("--out", type=Path, metavar="FILE", help="also write it there")


def _add_run(commands: Commands[Parser]) -> None:
    actions = group(commands, "run", "training efforts", "A run is one training effort with a fixed plan.")
    create = remote(
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
        "--base-model",
        type=Path,
        metavar="FILE",
        help='what `accord-participant describe-model` has printed; "-" reads standard input',
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
    listing = remote(actions, "list", "list runs", "Newest first.", command="runs", action="list")
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
        parser = remote(actions, name, summary, text, command="runs", action=name)
        parser.add_argument("run", metavar="RUN")
        if name == "cancel":
            parser.add_argument("--reason", default="", help="kept in the audit log and shown to participants")
    explain = remote(
        actions,
        "explain",
        "who is holding the round up, and why",
        """Whom the run waits for now: each participant by name, since when, when it was last heard, why it is waited
for, and what to do about it; and who is out of the round.

examples:
  accord-coordinator run explain support
  accord-coordinator run explain support --json""",
        command="runs",
        action="explain",
    )
    explain.add_argument("run", metavar="RUN")
    rollback = remote(
        actions,
        "rollback",
        "train on from an earlier accepted adapter",
        """From created or paused, with no round open. The newer adapters stay published.

examples:
  accord-coordinator run pause support
  accord-coordinator run rollback support 3f9ac2
  accord-coordinator run rollback support --round 2        (the adapter that round 2 has made)""",
        command="runs",
        action="rollback",
    )
    rollback.add_argument("run", metavar="RUN")
    rollback.add_argument("adapter", nargs="?", metavar="ADAPTER", help="its digest, or enough of the beginning")
    rollback.add_argument("--round", type=int, metavar="N", help="the adapter of this round; 0 is the initial one")


def _add_round(commands: Commands[Parser]) -> None:
    actions = group(commands, "round", "who was in, who was out, and why", "Rounds of a run.")
    listing = remote(actions, "list", "list a run's rounds", "Newest first.", command="rounds", action="list")
    listing.add_argument("run", metavar="RUN")
    show = remote(
        actions, "show", "one round", "Phase, cohort, survivors, metrics, members.", command="rounds", action="show"
    )
    show.add_argument("run", metavar="RUN")
    show.add_argument("number", type=int, metavar="NUMBER")


def _add_adapter(commands: Commands[Parser]) -> None:
    actions = group(commands, "adapter", "published global adapters", "Global adapters, named by their digest.")
    listing = remote(actions, "list", "list a run's adapters", "Newest first.", command="adapters", action="list")
    listing.add_argument("run", metavar="RUN")
    export = remote(
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
    taking = remote(
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
    actions = group(commands, "audit", "who did what, hash-chained", "The append-only audit log.")
    listing = remote(
        actions,
        "list",
        "show the newest events",
        "The newest ones, the oldest of them first.",
        command="audit",
        action="list",
    )
    listing.add_argument("--last", type=int, default=50, metavar="N", help="at most so many (default: 50)")
    listing.add_argument("--actor", default="", metavar="NAME", help="only of this actor, such as operators/alice")
    listing.add_argument("--action", default="", dest="event", metavar="NAME", help="only these, such as run_created")
    listing.add_argument("--subject", default="", metavar="NAME", help="only of this resource, such as runs/support")
    verify = remote(
        actions,
        "verify",
        "recompute the hash chain",
        """Ends with 1 if an event is missing, was changed or is out of place. That the last events were cut off, or all
was written anew, shows only against a head that was noted elsewhere: --expect-head.

examples:
  accord-coordinator audit verify
  accord-coordinator audit verify --expect-head 1200:9c1e...                      (noted elsewhere, earlier)
  accord-coordinator audit verify --file audit.jsonl --expect-head 1200:9c1e...   (without the coordinator)""",
        command="audit",
        action="verify",
    )
    verify.add_argument("--file", type=Path, metavar="FILE", help="what `audit export` has written")
    verify.add_argument(
        "--expect-head", default="", metavar="N:SHA256", help="event and chain digest that the log must still hold"
    )
    export = remote(
        actions,
        "export",
        "write the whole log, one JSON object a line",
        """examples:
  accord-coordinator audit export --out audit.jsonl""",
        command="audit",
        action="export",
    )
    export.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")
