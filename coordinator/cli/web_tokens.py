"""`web-token`: secrets that open the web page, for reading alone."""

from __future__ import annotations

import argparse

from common.cli.output import print_json, print_note, print_table, print_text
from common.identifiers import web_token_name
from coordinator.cli.connection import open_client
from coordinator.cli.exits import Exit
from coordinator.cli.facts import bare, moment
from coordinator.cli.tokens import hand_over, seconds_of
from coordinator.services.admin_client import AdminClient


def execute(options: argparse.Namespace) -> Exit:
    with open_client(options) as client:
        match options.action:
            case "create":
                return _create(client, options)
            case "list":
                return _list(client, options)
            case _:
                return _revoke(client, options)


def _create(client: AdminClient, options: argparse.Namespace) -> Exit:
    answer = client.create_web_token(options.label, ttl_seconds=seconds_of(options.ttl))
    token = answer["web_token"]
    revoke = f"web-token revoke {bare(token['name'])}"
    hand_over(answer, options, revoke=revoke)
    print_note(
        f"For {token['label']}, until {moment(token['expire_time'])}. It is not shown again. Enter it at the web page, "
        f"or take it back: accord-coordinator {revoke}"
    )
    return Exit.OK


def _list(client: AdminClient, options: argparse.Namespace) -> Exit:
    rows = list(client.web_tokens())
    if options.json:
        print_json(rows)
        return Exit.OK
    print_table(
        ("token", "for", "state", "made by", "created", "expires"),
        [
            (
                bare(row["name"]),
                row["label"],
                row["state"],
                bare(row["creator"]),
                moment(row["create_time"]),
                moment(row["expire_time"]),
            )
            for row in rows
        ],
    )
    return Exit.OK


def _revoke(client: AdminClient, options: argparse.Namespace) -> Exit:
    token = client.revoke_web_token(web_token_name(options.token.removeprefix("webTokens/")))
    if options.json:
        print_json(token)
    else:
        print_text(f"{bare(token['name'])} is {token['state']}")
    return Exit.OK
