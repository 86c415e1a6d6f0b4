"""The command line of `accord-participant`: words, options and help. Imports nothing heavy, so that help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from common.cli.parser import Commands, Parser
from common.cli.watching import add_watch
from participant.cli.exits import MEANINGS

DEFAULT_CONFIG: Final = Path("/etc/accord/participant.toml")

_DESCRIPTION: Final = """Accord's participant: trains a shared language model on this site's own records.
Records, updates and their weights never leave the site in the clear.

The first hour:
  1. write participant.toml and policy.toml    (examples are in deploy/examples)
  2. accord-participant enroll --token-file token.txt
  3. accord-participant charter pin            compare the digest with the other members
  4. accord-participant check                  until nothing fails
  5. accord-participant run                    or start the service that runs it"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; `command` in the result names the module of `participant.cli` that does it."""
    parser = Parser(prog="accord-participant", description=_DESCRIPTION, epilog=MEANINGS)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    _add_enroll(commands)
    _add_check(commands)
    _add_run(commands)
    _add_describe_model(commands)
    _add_initial_adapter(commands)
    _add_charter(commands)
    _add_status(commands)
    _add_adapters(commands)
    _add_personalise(commands)
    _add_audit(commands)
    _add_privacy(commands)
    return parser


def _add_enroll(commands: Commands[Parser]) -> None:
    parser = _command(
        commands,
        "enroll",
        "get this site's certificate with a join token",
        """Make this site's key (it never leaves the machine), and exchange the join token for a certificate.

The federation's operator makes the token; it works once, for one name, and for a short time. It carries the
coordinator's address and the certificate of its CA, so nothing else has to be typed or trusted.

examples:
  accord-participant enroll --token-file token.txt
  accord-participant enroll --config site.toml --token accord-join-...      (visible to this machine's users)
  cat token.txt | accord-participant enroll --token-file -""",
    )
    token = parser.add_mutually_exclusive_group(required=True)
    token.add_argument("--token", help="the join token itself; other users of this machine can see it while it runs")
    token.add_argument("--token-file", type=Path, metavar="FILE", help='file that holds the join token, "-" for stdin')


def _add_check(commands: Commands[Parser]) -> None:
    parser = _command(
        commands,
        "check",
        "look for everything that could go wrong, and say what to do",
        """Look at configuration, identity, network, clock, TLS, machine, base models, records and policy, one by one.
Changes nothing, and may be run while the daemon runs. Ends with 0 if no check has failed.

examples:
  accord-participant check
  accord-participant check --before-start                (quick; what a coordinator that is away causes is a warning)
  accord-participant check --only tls --only call
  accord-participant check --skip base_models --json""",
    )
    parser.add_argument("--only", action="append", metavar="CHECK", help="run this check alone; may be repeated")
    parser.add_argument("--skip", action="append", metavar="CHECK", help="leave this check out; may be repeated")
    parser.add_argument(
        "--before-start",
        action="store_true",
        help="only what takes seconds; what may pass by itself is a warning",
    )
    _add_join_token_file(parser)


def _add_run(commands: Commands[Parser]) -> None:
    parser = _command(
        commands,
        "run",
        "take part: the daemon",
        """Ask the coordinator what to do, and do it, until it is stopped (SIGTERM or Ctrl-C).
May be killed at any time: it goes on where it was. SIGHUP: read participant.toml and policy.toml again.
Logs to standard error; see log and metrics in participant.toml. Tells systemd when it is ready, what it does, and
that it is alive. Does not start while something is wrong that only somebody here can put right (exit codes 3, 4).""",
        has_json=False,
    )
    _add_join_token_file(parser)


def _add_join_token_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--join-token-file",
        type=Path,
        metavar="FILE",
        help="a site that is not enrolled yet begins with this join token; of no matter later, nor if it is missing",
    )


def _add_describe_model(commands: Commands[Parser]) -> None:
    parser = _command(
        commands,
        "describe-model",
        "print a base model's description, which a run is created from",
        """Print a base model's name, digest and layers as JSON. The federation's operator creates runs from it, and a
site names the digest in its policy. Needs no enrolment. A GGUF file or a hub's model becomes a safetensors folder in
the cache first; progress goes to standard error.

examples:
  accord-participant describe-model /srv/models/SmolLM2-135M-Instruct > model.json
  accord-participant describe-model --digest-only model.gguf
  accord-participant describe-model hub:HuggingFaceTB/SmolLM2-135M-Instruct@main""",
        has_json=False,
        needs_config=False,
    )
    parser.add_argument("source", metavar="SOURCE", help="folder, file.gguf, or hub:owner/name[@revision]")
    parser.add_argument("--name", help="how people call the model; default: the folder's name")
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="where converted models go; default: as configured"
    )
    parser.add_argument("--digest-only", action="store_true", help="print the digest alone")


def _add_initial_adapter(commands: Commands[Parser]) -> None:
    parser = _command(
        commands,
        "initial-adapter",
        "write a first adapter whose bases come from a base model's weights",
        """Write the adapter from which a run of method core, ravan, ffa_lora or rolora may begin. Its bases (of the
latter two, A) are the leading singular spaces of each layer's weight, found by a randomised range finder; it changes
nothing yet. The federation's operator imports the file and names its digest when creating the run, with the same
method, rank, heads and modules. Without one, runs begin with random bases. Needs no enrolment.

examples:
  accord-participant initial-adapter /srv/models/SmolLM2-135M-Instruct first.safetensors --method core --rank 32
  accord-participant initial-adapter model.gguf first.safetensors --method ravan --rank 48 --heads 4""",
        needs_config=False,
    )
    parser.add_argument("source", metavar="SOURCE", help="folder, file.gguf, or hub:owner/name[@revision]")
    parser.add_argument("file", type=Path, metavar="FILE", help="where the adapter goes; not one that is there")
    parser.add_argument(
        "--method",
        choices=("core", "ravan", "ffa_lora", "rolora"),
        default="core",
        help="the run's method (default: core)",
    )
    parser.add_argument("--rank", type=int, required=True, metavar="N", help="of the core, or of one head")
    parser.add_argument("--heads", type=int, default=0, metavar="N", help="of ravan (default: 4)")
    parser.add_argument(
        "--modules", metavar="NAMES", help="last names of the layers, with commas (default: all linear layers)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the range finder (default: 0)")
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="where converted models go; default: as configured"
    )


def _add_charter(commands: Commands[Parser]) -> None:
    group = commands.add_parser(
        "charter",
        help="show or pin the federation's charter",
        description="""The charter says who the members are and what bounds hold. A pinned copy keeps a coordinator from
adding members of its own, swapping keys, or lowering a threshold.""",
    )
    actions = group.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    show = _command(
        actions,
        "show",
        "print the coordinator's charter, or a file's, and its digest",
        "Print who the members are, what bounds hold, and the digest to compare with the other members.",
        command="charter",
        action="show",
    )
    show.add_argument("--file", type=Path, metavar="FILE", help="read this file instead of asking the coordinator")
    pin = _command(
        actions,
        "pin",
        "write the coordinator's charter to the file that the configuration pins",
        """Fetch the charter, check it, and write it to a file. Then compare its digest with the other members, by
another way than the coordinator, and put it into participant.toml.

examples:
  accord-participant charter pin
  accord-participant charter pin --digest 9c56...   (refuses any other)""",
        command="charter",
        action="pin",
    )
    pin.add_argument("--digest", metavar="SHA256", help="the digest that the members agreed on; any other is refused")
    pin.add_argument(
        "--file", type=Path, metavar="FILE", help="where to write it; default: charter.file, or charter.json"
    )


def _add_status(commands: Commands[Parser]) -> None:
    status = _command(
        commands,
        "status",
        "what this site has done, from its own journal",
        """Print identity, certificate, runs with their latest rounds, every refusal and failure with its reason, and
what of the privacy budget is spent. Reads this site's own files alone: works without the coordinator, and while the
daemon runs.""",
    )
    add_watch(status)


def _add_adapters(commands: Commands[Parser]) -> None:
    group = commands.add_parser(
        "adapters",
        help="list or export the global adapters that this site has",
        description="Global adapters that this site has fetched and verified.",
    )
    actions = group.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    _command(actions, "list", "list them, newest first", "List them, newest first.", command="adapters", action="list")
    export = _command(
        actions,
        "export",
        "copy one as a plain PEFT folder",
        """Copy an adapter as a folder that PeftModel.from_pretrained loads, after its digest is checked again.

examples:
  accord-participant adapters export --run helpdesk ./adapter    (the newest of that run)
  accord-participant adapters export --digest 3f9a ./adapter""",
        command="adapters",
        action="export",
    )
    export.add_argument("folder", type=Path, metavar="FOLDER", help="a folder that does not exist yet")
    which = export.add_mutually_exclusive_group()
    which.add_argument("--digest", metavar="SHA256", help="the adapter's digest, or enough of its beginning")
    which.add_argument("--run", metavar="RUN", help="the newest adapter of this run; default: the newest of all")


def _add_personalise(commands: Commands[Parser]) -> None:
    parser = _command(
        commands,
        "personalise",
        "make this site's own model on top of the federation's",
        """Train a private adapter on this site's records, with the run's newest adapter frozen beneath it (and the
global one beneath that, where the run is a domain's), and one more without any of them, as the site would alone.
Then choose by held-out records how much of each to use, and write all together as one PEFT folder. Own adapters,
scales and folder stay here; nothing of them is sent.

Prints the loss of the base model, with the global adapter, with the domain's, with the private one, alone, and by the
chosen scales, over held-out records that had no say in the choice. Broken off, it goes on where it was.

examples:
  accord-participant personalise --run helpdesk ./our-model
  accord-participant personalise --run helpdesk-clinic --steps 200 --rank 4 --json ./our-model""",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder that does not exist yet")
    parser.add_argument("--run", required=True, metavar="RUN", help="a run that this site has taken part in")
    parser.add_argument("--steps", type=int, metavar="N", help="optimiser steps; default: those of the whole run")
    parser.add_argument("--rank", type=int, metavar="R", help="of the private adapter; default: half the run's")
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help="default: the run's")
    parser.add_argument(
        "--alone-steps", type=int, metavar="N", help="of the adapter without the federation; 0: none; default: --steps"
    )
    parser.add_argument("--rows", type=int, default=64, metavar="N", help="held-out records to use; default: 64")


def _add_audit(commands: Commands[Parser]) -> None:
    parser = _command(
        commands,
        "audit",
        "check a part of a finished round's sum against what its members signed",
        """Fetch some chunks of every masked update of a finished round with the keys that opened their sum, check them,
and recompute that part of the sum and of the adapter that came of it. The coordinator is believed nothing.

What is checked, from this site's own notes of the round:
  - everyone's signed receipt is for this round, plan, cohort and model, and for the chunks that are shown
  - this site's own chunks are the ones that it sent
  - every opened key is the one that its owner committed to before the round
  - the sum's weight, count and figures are those that were told
  - the adapter's parameters in these chunks are, bit for bit, what the sum makes of the adapter before

Chunks are drawn here, now that the round is over: the coordinator could not know which. A chunk is at most 1 MiB of
each member's masked update, so --chunks 4 of a round of 10 members fetches 40 MiB. The coordinator keeps the updates
of the newest rounds, three or as many as its operator has set: audit a round soon. May be run while the daemon runs.
Ends with 0 if all is right, with 8 and the reason if something is wrong. Keep what it says then, and show it to the
other members.

examples:
  accord-participant audit                              (a random chunk of the newest round of the newest run)
  accord-participant audit --run helpdesk --round 7 --chunks 4
  accord-participant audit --run helpdesk --round 7 --chunk 0 --chunk 12 --json""",
    )
    parser.add_argument("--run", metavar="RUN", help="the run; default: the one of which this site has heard last")
    parser.add_argument("--round", type=int, metavar="N", help="the round's number; default: the newest")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--chunks", type=int, default=1, metavar="K", help="how many random chunks; all if there are fewer; default: 1"
    )
    which.add_argument("--chunk", type=int, action="append", metavar="I", help="this chunk, from 0; may be repeated")


def _add_privacy(commands: Commands[Parser]) -> None:
    _command(
        commands,
        "privacy",
        "what was promised and spent of single records' privacy, in words",
        """Print the guarantee for single records of this site's data: epsilon and delta of all private training so far,
what is left of the budget that policy.toml sets, how it is computed, and what is covered and what is not.
Written to be handed to somebody who answers for data protection. Reads this site's own files alone: the privacy ledger,
the journal, the policy.""",
    )


def _command(
    commands: Commands[Parser],
    name: str,
    summary: str,
    description: str,
    *,
    command: str | None = None,
    action: str = "",
    has_json: bool = True,
    needs_config: bool = True,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=description, epilog=MEANINGS)
    default = DEFAULT_CONFIG if needs_config else None
    parser.add_argument(
        "--config", type=Path, default=default, metavar="FILE", help=f"participant.toml; default: {DEFAULT_CONFIG}"
    )
    if has_json:
        parser.add_argument("--json", action="store_true", help="print one JSON object for scripts")
    parser.set_defaults(command=(command or name).replace("-", "_"), action=action, parser=parser)
    return parser
