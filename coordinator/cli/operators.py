"""`operator`: certificates for the people who run the federation. Works with the CA's key, so on its host."""

from __future__ import annotations

import argparse
from datetime import datetime, timedelta
from pathlib import Path

from common.certificates import identity_of, parse_certificates, serial_text
from common.cli.output import print_json, print_table
from common.clock import SystemClock
from common.durable import OWNER_ONLY, write_durably
from common.errors import AlreadyExists, ConfigInvalid, InvalidArgument, NotFound, StorageFailed
from common.identifiers import (
    FederationId,
    OperatorId,
    OperatorIdentity,
    Role,
    operator_name,
    parse_operator_id,
    parse_operator_role,
)
from coordinator.cli.exits import Exit
from coordinator.cli.facts import print_facts
from coordinator.cli.files import OPERATOR_CA, OPERATOR_CERTIFICATE, OPERATOR_KEY, find_config
from coordinator.cli.local_audit import append_locally
from coordinator.config import Config, PkiMode, load_config
from coordinator.keystore import PkiFolder


def execute(options: argparse.Namespace) -> Exit:
    config = load_config(find_config(options.config))
    match options.action:
        case "create":
            return _create(config, options)
        case "list":
            return _list(config, options)
        case "renew":
            return _renew(config, options)
        case _:
            return _revoke(config, options)


def make_operator(config: Config, operator: OperatorId, role: Role, folder: Path) -> dict[str, str]:
    """Write a new key, its certificate and the CA into `folder`. Raises AlreadyExists rather than overwrite a key."""
    key_file = folder / OPERATOR_KEY
    if key_file.exists():
        raise AlreadyExists(f"{key_file} exists and is not overwritten; choose another name or another --out folder")
    return _write_operator(config, operator, role, folder)


def _write_operator(config: Config, operator: OperatorId, role: Role, folder: Path) -> dict[str, str]:
    if config.certificates.mode is PkiMode.FILES:
        raise ConfigInvalid('certificates.mode is "files": operators\' certificates come from your own PKI')
    key_file = folder / OPERATOR_KEY
    federation, pki = FederationId(config.federation), PkiFolder(config.pki_folder)
    authority = pki.load_authority(federation)
    issued = authority.issue_operator(
        OperatorIdentity(federation, operator, role),
        now=SystemClock().now(),
        life=timedelta(days=config.certificates.operator_days),
    )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(key_file, issued.key_pem, mode=OWNER_ONLY)
        write_durably(folder / OPERATOR_CERTIFICATE, issued.chain_pem.encode())
        write_durably(folder / OPERATOR_CA, pki.trust_bundle().encode())
    except OSError as error:
        raise StorageFailed(f"cannot write to {folder}: {error.strerror}") from error
    return {
        "operator": operator,
        "role": role.value,
        "certificate": str(folder / OPERATOR_CERTIFICATE),
        "key": str(key_file),
        "ca": str(folder / OPERATOR_CA),
        "serial": serial_text(issued.certificate),
        "expire_time": issued.certificate.not_valid_after_utc.isoformat(),
    }


def _create(config: Config, options: argparse.Namespace) -> Exit:
    operator = parse_operator_id(options.name, field="NAME")
    role = parse_operator_role(options.role, field="--role")
    made = make_operator(config, operator, role, options.out or config.operators_folder / operator)
    return _told(config, "operator_created", made, options)


def _renew(config: Config, options: argparse.Namespace) -> Exit:
    """A certificate of the same person in the same role. A new key: the old one may have been copied meanwhile."""
    operator = parse_operator_id(options.name, field="NAME")
    folder = options.folder or config.operators_folder / operator
    path = folder / OPERATOR_CERTIFICATE
    if not path.is_file():
        raise NotFound(f"{path} does not exist; `operator create {operator}` makes a first certificate")
    identity = identity_of(parse_certificates(path.read_bytes(), what=str(path))[0])
    if not isinstance(identity, OperatorIdentity) or identity.id != operator:
        raise InvalidArgument(f"{path} is the certificate of {identity.uri}, not of operator {operator}")
    return _told(config, "operator_renewed", _write_operator(config, operator, identity.role, folder), options)


def _told(config: Config, action: str, made: dict[str, str], options: argparse.Namespace) -> Exit:
    subject = operator_name(made["operator"])
    append_locally(config, action, subject, role=made["role"], serial=made["serial"], expires_at=made["expire_time"])
    if options.json:
        print_json(made)
    else:
        print_facts(made.items())
    return Exit.OK


def _list(config: Config, options: argparse.Namespace) -> Exit:
    revoked = PkiFolder(config.pki_folder).revoked_serials()
    now = SystemClock().now()
    files = sorted(config.operators_folder.glob(f"*/{OPERATOR_CERTIFICATE}"))
    rows = [_described(path, revoked, now) for path in files]
    if options.json:
        print_json(rows)
    else:
        print_table(("operator", "role", "state", "expires", "serial"), [list(row.values()) for row in rows])
    return Exit.OK


def _described(path: Path, revoked: frozenset[str], now: datetime) -> dict[str, str]:
    certificate = parse_certificates(path.read_bytes(), what=str(path))[0]
    identity = identity_of(certificate)
    serial, ends = serial_text(certificate), certificate.not_valid_after_utc
    state = "revoked" if serial in revoked else "expired" if ends <= now else "active"
    return {
        "operator": path.parent.name,
        "role": identity.role.value if isinstance(identity, OperatorIdentity) else "-",
        "state": state,
        "expire_time": ends.isoformat(),
        "serial": serial,
    }


def _revoke(config: Config, options: argparse.Namespace) -> Exit:
    """Refuse an operator's certificate from its next call on: the coordinator reads the list with every call."""
    serial = options.serial
    if serial is None:
        file = config.operators_folder / parse_operator_id(options.name, field="NAME") / OPERATOR_CERTIFICATE
        if not file.is_file():
            raise NotFound(f"{file} does not exist; name the certificate's serial number with --serial")
        serial = serial_text(parse_certificates(file.read_bytes(), what=str(file))[0])
    PkiFolder(config.pki_folder).revoke_serial(serial)
    append_locally(config, "operator_revoked", operator_name(options.name), serial=serial)
    if options.json:
        print_json({"operator": options.name, "serial": serial, "state": "revoked"})
    else:
        print_facts([("revoked", options.name), ("serial", serial)])
    return Exit.OK
