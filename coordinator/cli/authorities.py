"""`ca`: puts another CA in the place of the coordinator's, step by step, while everything runs.

Works with the CA's files and the database, so on the coordinator's host; `trust` alone asks the admin listener. A
running coordinator reads the files anew by itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from cryptography import x509

from common.cli.output import print_json, print_note, print_table, print_text
from common.clock import SystemClock
from common.durable import write_durably
from common.errors import ConfigInvalid, NotFound, OutOfTurn, StorageFailed
from common.identifiers import FederationId
from common.states import RunState
from coordinator.cli.connection import open_client
from coordinator.cli.exits import Exit
from coordinator.cli.facts import print_facts
from coordinator.cli.files import OPERATOR_CA, OPERATOR_CERTIFICATE, find_config
from coordinator.cli.local_audit import append_locally
from coordinator.config import Config, PkiMode, load_config
from coordinator.keystore import PkiFolder, Rotation
from coordinator.rotation import (
    Holder,
    OpenRun,
    Step,
    described,
    issuer_of,
    not_listing,
    not_told,
    of_former,
    require_own_holders,
    step_of,
)
from coordinator.rounds.model import ParticipantState
from coordinator.standing import charter_of
from coordinator.store.interface import Reader
from coordinator.store.opening import open_store

OPEN_RUNS: Final = tuple(state for state in RunState if not state.is_over)
NEXT: Final = {
    Step.NONE: "nothing: `ca begin` would bring in another CA",
    Step.STAGED: "`ca switch`, once everybody knows the staged CA and the charter lists it",
    Step.SWITCHED: "`ca retire`, once nobody has a certificate of the former CA any more",
}


def execute(options: argparse.Namespace) -> Exit:
    if options.action == "trust":
        return _trust(options)
    config = load_config(find_config(options.config))
    if config.certificates.mode is PkiMode.FILES:
        raise ConfigInvalid('certificates.mode is "files": your own PKI replaces its CA, and its files are read anew')
    folder, federation = PkiFolder(config.pki_folder, own=config.server_folder), FederationId(config.federation)
    if options.action != "show" and not getattr(options, "force", False):
        with _reading(config) as reader:
            require_own_holders(_participants(reader), folder.rotation(federation))
    match options.action:
        case "begin":
            staged = folder.stage_authority(federation, SystemClock())
            _tell_operators(config, folder)
            append_locally(config, "ca_staged", "ca", expires_at=staged.not_valid_after_utc.isoformat())
        case "switch":
            _switch(config, folder, federation, is_forced=options.force)
        case "retire":
            _retire(config, folder, federation, is_forced=options.force)
        case _:
            pass
    return _show(config, folder.rotation(federation), options)


# --- steps --------------------------------------------------------------------------------------------------------


def _switch(config: Config, folder: PkiFolder, federation: FederationId, *, is_forced: bool) -> None:
    rotation = folder.rotation(federation)
    if rotation.staged is not None and not is_forced:
        with _reading(config) as reader:
            _refuse_early_switch(reader, rotation, rotation.staged)
    authority = folder.switch_authority(federation)
    folder.ensure_server_certificate(authority, config.host_names, SystemClock())
    _tell_operators(config, folder)
    append_locally(
        config, "ca_switched", "ca", expires_at=authority.certificate.not_valid_after_utc.isoformat(), forced=is_forced
    )


def _refuse_early_switch(reader: Reader, rotation: Rotation, staged: x509.Certificate) -> None:
    problems: list[str] = []
    if late := not_told(_participants(reader), rotation):
        problems.append(
            f"{', '.join(late)} do not know the new CA yet: daemons fetch it with their next call, so see that they run"
        )
    if old := not_listing(_open_runs(reader), staged):
        problems.append(
            f"the charter of {', '.join(old)} lists only the old CA: let these runs end, and publish a charter that "
            "lists both (`charter draft`) for new ones"
        )
    if problems:
        raise OutOfTurn(f"too early to switch: {'; '.join(problems)}. --force switches all the same")


def _retire(config: Config, folder: PkiFolder, federation: FederationId, *, is_forced: bool) -> None:
    rotation = folder.rotation(federation)
    if step_of(rotation) is Step.NONE:
        raise OutOfTurn("there is one CA only, and nothing to retire")
    if not is_forced:
        with _reading(config) as reader:
            late = of_former([*_participants(reader), *_operators(config)], rotation)
        if late:
            raise OutOfTurn(
                f"too early to retire: {', '.join(late)} still have a certificate of the former CA. Participants renew "
                "with their next call; operators: `operator renew NAME`. --force retires it all the same"
            )
    retired = folder.retire_authorities(federation)
    authority = folder.load_authority(federation)
    folder.ensure_server_certificate(authority, config.host_names, SystemClock())
    _tell_operators(config, folder)
    append_locally(config, "ca_retired", "ca", count=len(retired), forced=is_forced)


def _tell_operators(config: Config, folder: PkiFolder) -> None:
    """Put the CAs that count into the folders of operators on this host; others fetch them with `ca trust`."""
    for certificate in config.operators_folder.glob(f"*/{OPERATOR_CERTIFICATE}"):
        write_durably(certificate.parent / OPERATOR_CA, folder.trust_bundle().encode())


# --- what there is ------------------------------------------------------------------------------------------------


def _show(config: Config, rotation: Rotation, options: argparse.Namespace) -> Exit:
    with _reading(config) as reader:
        participants = list(_participants(reader))
        old_runs = not_listing(_open_runs(reader), rotation.staged) if rotation.staged is not None else ()
    untold = not_told(participants, rotation)
    step = step_of(rotation)
    rows = [
        {
            "name": one.name,
            "ca": issuer_of(one, rotation),
            "knows_staged": step is not Step.STAGED or one.name not in untold,
        }
        for one in participants
    ] + [{"name": one.name, "ca": issuer_of(one, rotation), "knows_staged": True} for one in _operators(config)]
    if options.json:
        print_json(
            {
                "step": step.name.lower(),
                "authorities": described(rotation),
                "certificates": rows,
                "runs_without_staged": list(old_runs),
            }
        )
        return Exit.OK
    print_facts([("step", step.value), ("next", NEXT[step]), ("runs under the old CA alone", list(old_runs))])
    print_text("")
    print_table(("ca", "sha256", "ends"), [list(row.values()) for row in described(rotation)])
    if rows:
        print_text("")
        print_table(
            ("certificate", "issued by", "knows the staged CA"),
            [(row["name"], row["ca"], "yes" if row["knows_staged"] else "no") for row in rows],
        )
    return Exit.OK


def _trust(options: argparse.Namespace) -> Exit:
    with open_client(options) as client:
        bundle = str(client.federation()["trust_bundle"])
    if not bundle:
        raise NotFound("this coordinator has no CA of its own; its operators have the CA file of its organisation")
    if options.json:
        print_json({"trust_bundle": bundle})
    elif options.out is None:
        print_text(bundle.rstrip())
    else:
        try:
            write_durably(options.out, bundle.encode())
        except OSError as error:
            raise StorageFailed(f"cannot write {options.out}: {error.strerror}") from error
        print_note(f"wrote {bundle.count('BEGIN CERTIFICATE')} CA certificates to {options.out}")
    return Exit.OK


@contextmanager
def _reading(config: Config) -> Iterator[Reader]:
    with closing(open_store(config.database_url)) as store, store.read() as reader:
        yield reader


def _participants(reader: Reader) -> Iterator[Holder]:
    """Active participants whose certificate the coordinator's CA has issued."""
    for row in reader.participants(states=(ParticipantState.ACTIVE,)).rows:
        try:
            newest = reader.certificate(row.certificate_serial)
        except NotFound:
            continue  # its organisation's own PKI has issued it
        yield Holder(f"participants/{row.name}", newest.chain, newest.issued_at)


def _operators(config: Config) -> Iterator[Holder]:
    revoked = PkiFolder(config.pki_folder).revoked_serials()
    for path in sorted(config.operators_folder.glob(f"*/{OPERATOR_CERTIFICATE}")):
        holder = Holder(f"operators/{path.parent.name}", _text(path))
        if not holder.is_over(revoked=revoked, now=SystemClock().now()):
            yield holder


def _open_runs(reader: Reader) -> Iterator[OpenRun]:
    certified = tuple(holder.name.removeprefix("participants/") for holder in _participants(reader))
    for run in reader.runs(states=OPEN_RUNS).rows:
        yield OpenRun(f"runs/{run.name}", charter_of(reader, run), certified)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise ConfigInvalid(f"cannot read {path}: {error.strerror}") from error
