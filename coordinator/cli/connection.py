"""How a command reaches the admin listener: by the configuration on the coordinator's host, or by flags elsewhere."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from common.errors import ConfigInvalid, NotFound, Unavailable
from coordinator.cli.files import OPERATOR_CA, OPERATOR_CERTIFICATE, OPERATOR_KEY, find_config
from coordinator.config import Config, load_config
from coordinator.services.admin_client import AdminClient, OperatorIdentity


def open_client(options: argparse.Namespace) -> AdminClient:
    """A client for the command's flags. Raises ConfigInvalid or NotFound that says which flag is missing."""
    given: tuple[Path | None, Path | None, Path | None] = (options.cert, options.key, options.ca)
    if options.address and all(given):
        certificate, key, authority = (Path(path) for path in given if path is not None)
        return AdminClient(options.address, _identity(certificate, key, authority))
    if any(given) and not all(given):
        raise ConfigInvalid("--cert, --key and --ca belong together")
    config = load_config(find_config(options.config))
    address = options.address or _address(config)
    if all(given):
        certificate, key, authority = (Path(path) for path in given if path is not None)
    else:
        folder = _operator_folder(config, options.operator)
        certificate, key = folder / OPERATOR_CERTIFICATE, folder / OPERATOR_KEY
        authority = folder / OPERATOR_CA
    return AdminClient(address, _identity(certificate, key, authority))


def _address(config: Config) -> str:
    """Where the running coordinator listens; it says so in a file, since port 0 means any."""
    try:
        found = json.loads(config.listeners_file.read_bytes())
        return str(found["admin"])
    except FileNotFoundError as error:
        raise Unavailable(
            f"no coordinator runs here ({config.listeners_file} is missing); start `accord-coordinator serve`, or name "
            "another host's with --address"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigInvalid(f"cannot read {config.listeners_file}; name the listener with --address") from error


def _operator_folder(config: Config, operator: str | None) -> Path:
    if operator:
        folder = config.operators_folder / operator
        if not folder.is_dir():
            raise NotFound(f"{folder} does not exist; `accord-coordinator operator create {operator}` makes it")
        return folder
    found = sorted(path.parent for path in config.operators_folder.glob(f"*/{OPERATOR_CERTIFICATE}"))
    if not found:
        raise NotFound(
            f"no operator's certificate in {config.operators_folder}; make one with `accord-coordinator operator "
            "create NAME`, or name yours with --cert, --key and --ca"
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ConfigInvalid(f"there are several operators here ({names}); choose one with --operator")
    return found[0]


def _identity(certificate: Path, key: Path, authority: Path) -> OperatorIdentity:
    try:
        return OperatorIdentity(certificate.read_bytes(), key.read_bytes(), authority.read_bytes())
    except OSError as error:
        raise ConfigInvalid(f"cannot read {error.filename}: {error.strerror}") from error
