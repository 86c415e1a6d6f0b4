"""`token`: single-use invitations."""

from __future__ import annotations

import argparse
import re

from common.cli.output import print_json, print_note, print_table, print_text
from common.errors import InvalidArgument, OutOfTurn
from common.identifiers import join_token_name
from coordinator.cli.connection import open_client
from coordinator.cli.exits import Exit
from coordinator.cli.facts import bare, moment
from coordinator.cli.files import write_secret
from coordinator.services.admin_client import AdminClient, Plain

_LIFE = re.compile(r"(\d+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def execute(options: argparse.Namespace) -> Exit:
    with open_client(options) as client:
        match options.action:
            case "create":
                return _create(client, options)
            case "list":
                return _list(client, options)
            case _:
                return _revoke(client, options)


def seconds_of(text: str) -> int:
    """ "90s", "30m", "12h" or "7d" in seconds. Raises InvalidArgument."""
    match = _LIFE.fullmatch(text)
    if match is None:
        raise InvalidArgument(f"--ttl: {text!r} is not a length of time such as 30m, 12h or 7d")
    return int(match[1]) * _SECONDS[match[2]]


def hand_over(answer: Plain, options: argparse.Namespace, *, revoke: str) -> None:
    """Show or write the secret of a token that was just made: it is in this answer and in no other.

    Raises OutOfTurn, with the command that takes the token back, if the answer comes a second time and has it no more.
    """
    if not answer["token"]:
        raise OutOfTurn(
            f"the token was made, but the answer with its secret was lost; revoke it (`accord-coordinator {revoke}`) "
            "and make another"
        )
    if options.out is not None:
        write_secret(options.out, answer["token"])
    if options.json:
        print_json(answer)
    elif options.out is None:
        print_text(answer["token"])


def _create(client: AdminClient, options: argparse.Namespace) -> Exit:
    answer = client.create_join_token(options.participant, ttl_seconds=seconds_of(options.ttl))
    token = answer["join_token"]
    hand_over(answer, options, revoke=f"token revoke {bare(token['name'])}")
    print_note(
        f"For {bare(token['participant'])}, once, until {moment(token['expire_time'])}. It is not shown again. Its "
        "operator runs:\n  accord-participant enroll --token-file FILE"
    )
    return Exit.OK


def _list(client: AdminClient, options: argparse.Namespace) -> Exit:
    rows = list(client.join_tokens())
    if options.json:
        print_json(rows)
        return Exit.OK
    print_table(
        ("token", "participant", "state", "created", "expires", "used"),
        [
            (
                bare(row["name"]),
                bare(row["participant"]),
                row["state"],
                moment(row["create_time"]),
                moment(row["expire_time"]),
                moment(row["use_time"]),
            )
            for row in rows
        ],
    )
    return Exit.OK


def _revoke(client: AdminClient, options: argparse.Namespace) -> Exit:
    token = client.revoke_join_token(join_token_name(options.token.removeprefix("joinTokens/")))
    if options.json:
        print_json(token)
    else:
        print_text(f"{bare(token['name'])} is {token['state']}")
    return Exit.OK
