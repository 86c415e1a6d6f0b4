"""Audit lines of what is done on the coordinator's host, beside the running coordinator and without its API."""

from __future__ import annotations

import getpass
from contextlib import closing
from typing import Final

from common.cli.output import print_note
from common.clock import SystemClock
from common.errors import StorageFailed
from coordinator import audit_lines
from coordinator.config import Config
from coordinator.store.opening import open_store

# Who has a shell on the host is not an operator by certificate: the line says so, and names the account.
HOST: Final = "host"


def append_locally(config: Config, action: str, subject: str, **details: object) -> None:
    """Append a line to the log. What was done stays done where the database cannot be written, and a note says so."""
    try:
        with closing(open_store(config.database_url)) as store, store.write() as writer:
            audit_lines.append(
                writer, SystemClock(), actor=HOST, action=action, subject=subject, account=_account(), **details
            )
    except StorageFailed as error:
        print_note(f"not in the audit log ({action} of {subject}): {error.message}")


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return ""
