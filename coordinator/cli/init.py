"""`init`: everything that a coordinator needs before it serves for the first time. Never overwrites a key."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.cli.output import print_json, print_note, print_text
from common.clock import SystemClock
from common.durable import write_durably
from common.errors import ConfigInvalid
from common.identifiers import FederationId, Role, parse_operator_id
from coordinator.cli.exits import Exit
from coordinator.cli.files import CONFIG_FILE
from coordinator.cli.operators import make_operator
from coordinator.cli.template import render
from coordinator.config import Config, PkiMode, load_config, parse_config
from coordinator.keystore import PkiFolder, ensure_signing_key
from coordinator.manifests import public_key_hex


def execute(options: argparse.Namespace) -> Exit:
    path: Path = options.config or Path(CONFIG_FILE)
    made: list[str] = []
    if path.exists():
        config = _existing(path, options)
    else:
        config = _new(path, options)
        made.append(str(path.resolve()))
    made += _make_keys(config)
    operator = _make_first_operator(config, options.operator)
    made += [str(operator)] if operator is not None else []
    key = public_key_hex(ensure_signing_key(config.signing_key_file))
    if options.json:
        print_json(
            {
                "config": str(path.resolve()),
                "federation": config.federation,
                "data_folder": str(config.data_folder),
                "coordinator_public_key": key,
                "made": made,
            }
        )
        return Exit.OK
    for name in made:
        print_text(f"made   {name}")
    if not made:
        print_text("everything was there already; nothing was changed")
    print_note(
        f"\nThe coordinator's signing key is {key}.\n"
        f"Keep {config.keys.folder or config.data_folder} readable for the service alone, and back it up.\n"
        f"Next:\n  accord-coordinator check-config --config {path}\n  accord-coordinator serve --config {path}\n"
        "  accord-coordinator token create NAME"
    )
    return Exit.OK


def _existing(path: Path, options: argparse.Namespace) -> Config:
    config = load_config(path)
    if options.federation and options.federation != config.federation:
        raise ConfigInvalid(f"{path} is of federation {config.federation}, and --federation says {options.federation}")
    if options.data_folder and Path(options.data_folder).resolve() != config.data_folder:
        raise ConfigInvalid(f"{path} says data_folder {config.data_folder}, and --data-folder says another")
    return config


def _new(path: Path, options: argparse.Namespace) -> Config:
    if not options.federation:
        raise ConfigInvalid(f"{path} does not exist; --federation NAME is needed to write it")
    data_folder = Path(options.data_folder or path.parent / "data").expanduser().resolve()
    text = render(federation=options.federation, data_folder=str(data_folder), host_names=options.host or ["localhost"])
    config = parse_config(text, folder=path.resolve().parent, name="the new configuration")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, text.encode())
    return config


def _make_keys(config: Config) -> list[str]:
    made: list[str] = []
    if not config.data_folder.is_dir():
        config.data_folder.mkdir(mode=0o700, parents=True)
        made.append(str(config.data_folder))
    if not config.signing_key_file.exists():
        ensure_signing_key(config.signing_key_file)
        made.append(str(config.signing_key_file))
    folder = PkiFolder(config.pki_folder)
    if config.certificates.mode is PkiMode.FILES:
        return made
    federation = FederationId(config.federation)
    if folder.authority_certificate.exists() or folder.authority_key.exists():
        folder.load_authority(federation)  # half a CA is an error to be looked at, not to be replaced
    else:
        folder.create_authority(federation, SystemClock())
        made.append(str(folder.authority_certificate))
    return made


def _make_first_operator(config: Config, name: str) -> Path | None:
    """A certificate for the person at this host, unless there is any operator already."""
    if config.certificates.mode is PkiMode.FILES:
        return None
    if config.operators_folder.is_dir() and any(config.operators_folder.iterdir()):
        return None
    operator = parse_operator_id(name, field="--operator")
    folder = config.operators_folder / operator
    make_operator(config, operator, Role.OPERATOR, folder)
    return folder
