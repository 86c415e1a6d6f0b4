"""What the parsers of all commands are made of: groups, commands of this host, commands that ask the coordinator."""

from __future__ import annotations

from pathlib import Path

from common.cli.parser import Commands, Parser
from coordinator.cli.exits import MEANINGS


def group(commands: Commands[Parser], name: str, summary: str, description: str) -> Commands[Parser]:
    parser = commands.add_parser(name, help=summary, description=description)
    return parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)


def local(
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


def remote(
    commands: Commands[Parser],
    name: str,
    summary: str,
    description: str,
    *,
    command: str | None = None,
    action: str | None = None,
) -> Parser:
    """A command that asks the admin listener."""
    parser = local(commands, name, summary, description, command=command, action=action)
    reach = parser.add_argument_group("how to reach the coordinator (on its own host the configuration says it)")
    reach.add_argument("--address", metavar="HOST:PORT", help="the admin listener")
    reach.add_argument("--operator", metavar="NAME", help="whose certificate in the data folder to show")
    reach.add_argument("--cert", type=Path, metavar="FILE", help="operator's certificate chain, PEM")
    reach.add_argument("--key", type=Path, metavar="FILE", help="its key, PEM")
    reach.add_argument("--ca", type=Path, metavar="FILE", help="CA of the coordinator's certificate, PEM")
    return parser
