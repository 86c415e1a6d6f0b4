"""`accord-participant charter show|pin`: who the members are, and the site's own copy of that."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from common.charter import Charter
from common.cli.output import print_json, print_note, print_table, print_text
from common.durable import write_durably
from common.errors import CharterInvalid, NotFound, StorageFailed
from common.version import software_version
from participant.cli.exits import Exit
from participant.client import CoordinatorClient
from participant.config import ParticipantConfig, load_unpinned_config
from participant.network.dialling import dial

_DEFAULT_FILE = "charter.json"


def execute(options: argparse.Namespace) -> Exit:
    return _pin(options) if options.action == "pin" else _show(options)


def _show(options: argparse.Namespace) -> Exit:
    if options.file is not None:
        charter = Charter.from_bytes(_read(options.file))
    else:
        charter = _fetch(load_unpinned_config(options.config))
    _print(charter, as_json=options.json)
    return Exit.OK


def _pin(options: argparse.Namespace) -> Exit:
    config = load_unpinned_config(options.config)
    charter = _fetch(config)
    wanted = options.digest or config.charter.digest
    if wanted is not None and charter.digest != wanted:
        raise CharterInvalid(
            f"the coordinator's charter has digest {charter.digest}, agreed was {wanted}. Nothing was written. Ask the "
            "other members which is right, by another way than the coordinator"
        )
    file = options.file or config.charter.file or options.config.resolve().parent / _DEFAULT_FILE
    try:
        write_durably(file, charter.to_bytes())
    except OSError as error:
        raise StorageFailed(f"cannot write {file}: {error.strerror}") from error
    _print(charter, as_json=options.json, file=file)
    if wanted is None:
        print_note(
            "\nCompare this digest with the other members, by another way than the coordinator (by telephone, say). "
            f'Only then write into {options.config}:\n\n[charter]\nmode = "pinned"\nfile = "{file}"\n'
            f'digest = "{charter.digest}"'
        )
    return Exit.OK


def _fetch(config: ParticipantConfig) -> Charter:
    identity = config.identity.load()
    with dial(identity, config.coordinator.line(identity.coordinator_address)) as channel:
        try:
            content = CoordinatorClient(channel, channel, software_version=software_version()).charter()
        except NotFound as error:
            raise NotFound("the coordinator has published no charter yet; ask the federation's operator") from error
    return Charter.from_bytes(content)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CharterInvalid(f"cannot read {file}: {error.strerror}") from error


def _print(charter: Charter, *, as_json: bool, file: Path | None = None) -> None:
    if as_json:
        written = {"file": str(file)} if file is not None else {}
        print_json({"digest": charter.digest, "charter": json.loads(charter.to_bytes()), **written})
        return
    print_text(
        f"""federation     {charter.federation}
digest         {charter.digest}
least cohort   {charter.least_cohort}: only a sum over at least so many is ever opened
colluders      {charter.assumed_colluders} of {len(charter.members)} members are assumed to work with the coordinator
base models    {", ".join(charter.base_model_digests) or "any"}
coordinator    signs with {charter.coordinator_public_key}
"""
    )
    print_table(
        ["member", "identity key (SHA-256)", "CAs"],
        [
            [member.id, member.identity_key_sha256 or "not pinned", str(len(member.ca_certificates))]
            for member in charter.members
        ],
    )
    print_text("")
    print_table(["bound of a plan", "value"], [[name, _shown(value)] for name, value in asdict(charter.bounds).items()])


def _shown(value: object) -> str:
    return (", ".join(map(str, value)) or "any") if isinstance(value, tuple | list) else str(value)
