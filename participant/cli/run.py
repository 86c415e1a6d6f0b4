"""`accord-participant run`: the daemon, in the foreground until it is stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.clock import SystemClock
from common.errors import AccordError, ClockWrong, ConfigInvalid, Unauthenticated
from participant.cli.enroll import enroll_site, read_token
from participant.cli.exits import Exit
from participant.config import ParticipantConfig, load_config, load_unpinned_config
from participant.preflight import Site, hindrances

_OF_IDENTITY = frozenset({"identity", "certificate"})


def execute(options: argparse.Namespace) -> Exit:
    """Read the configuration and hand it to the composition root."""

    def read() -> ParticipantConfig:
        config = load_config(options.config)
        _require_startable(options.config)
        return config

    token: Path | None = options.join_token_file
    if token is not None and token.exists():
        _enroll_once(options.config, token)
    config = read()
    from participant import app

    app.run(config, read_again=read)
    return Exit.OK


def _enroll_once(file: Path, token: Path) -> None:
    """Enroll a site that is not. Before the charter is pinned: its members first hear of this site's key by this."""
    config = load_unpinned_config(file)
    if not config.identity.is_there:
        enroll_site(config, read_token(token))


def _require_startable(file: Path) -> None:
    """Raises for what only somebody at this site can put right, so that no service manager tries it again and again."""
    found = hindrances(Site(file, clock=SystemClock()))
    if not found:
        return
    said = "\n".join(f"  {finding.check}: {finding.found}\n    {finding.action}".rstrip() for finding in found)
    kind: type[AccordError] = Unauthenticated if {one.check for one in found} <= _OF_IDENTITY else ConfigInvalid
    if {one.reason for one in found} == {ClockWrong.reason}:
        kind = ClockWrong  # which may be right in a moment, when this machine has heard from its time server
    raise kind(f"this site cannot start:\n{said}")
