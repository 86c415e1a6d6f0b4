"""`accord-participant enroll`: a join token becomes this site's identity."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.certificates import spki_sha256
from common.cli.output import print_json, print_note, print_text
from common.clock import SystemClock
from common.errors import ConfigInvalid, JoinTokenInvalid, StorageFailed
from participant.cli.exits import Exit
from participant.config import CharterMode, ParticipantConfig, load_unpinned_config
from participant.enrollment import enroll
from participant.identity import IdentityFolder, SiteIdentity


def execute(options: argparse.Namespace) -> Exit:
    """Enroll, and say what comes next. A repeat with the same token gets the same certificate again."""
    config = load_unpinned_config(options.config)
    identity = enroll_site(config, options.token if options.token is not None else read_token(options.token_file))
    key_sha256 = spki_sha256(identity.certificate.public_key())
    if options.json:
        print_json(
            {
                "federation": identity.federation,
                "participant": identity.participant,
                "coordinator_address": identity.coordinator_address,
                "identity_directory": str(config.identity_directory),
                "identity_key_sha256": key_sha256,
                "certificate_expire_time": identity.expires_at.isoformat(),
            }
        )
        return Exit.OK
    print_text(
        f"""This site is {identity.participant} of federation {identity.federation}.
  coordinator   {identity.coordinator_address}
  certificate   valid until {identity.expires_at:%Y-%m-%d %H:%M} UTC; the daemon renews it
  identity key  {key_sha256}
  kept in       {config.identity_directory}"""
    )
    print_note(_next_steps(config.charter.mode, options.config))
    return Exit.OK


def enroll_site(config: ParticipantConfig, token: str) -> SiteIdentity:
    """Make the state directory and enroll. Raises ConfigInvalid for a site with a PKI of its own, StorageFailed, and as
    `enrollment.enroll` does."""
    if config.certificates is not None:
        raise ConfigInvalid(
            "this site's certificates come from its own PKI ([certificates] in the configuration), so it does not "
            "enroll: the federation's operator puts that PKI's CA into the charter. To enroll, take [certificates] out"
        )
    try:
        config.state_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = IdentityFolder(config.identity_directory)
        return enroll(folder, token, SystemClock(), line_to=config.coordinator.line_to)
    except OSError as error:
        raise StorageFailed(
            f"cannot write the identity to {config.identity_directory}: {error.strerror}; "
            "run the command as the daemon's user, or give that user the state directory"
        ) from error


def _next_steps(mode: CharterMode, config: Path) -> str:
    steps = ["Tell the other members the identity key by another way than the coordinator: the charter pins it."]
    if mode is CharterMode.PINNED:
        steps.append(f"accord-participant charter pin --config {config}")
    steps.append(f"accord-participant check --config {config}")
    steps.append("Start the service (accord-participant run), and look at accord-participant status.")
    return "\nNext:\n" + "\n".join(f"  {number}. {step}" for number, step in enumerate(steps, start=1))


def read_token(file: Path) -> str:
    """The text of a join token's file, "-" for standard input. Raises JoinTokenInvalid."""
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise JoinTokenInvalid(f"cannot read the join token in {file}: {why}") from None
