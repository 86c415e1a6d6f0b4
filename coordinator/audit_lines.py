"""Writes lines of the audit log: who did what to which resource, with details as canonical JSON."""

from __future__ import annotations

import json

from common.clock import Clock
from coordinator.store.interface import Writer

COORDINATOR = "coordinator"


def append(writer: Writer, clock: Clock, *, actor: str, action: str, subject: str, **details: object) -> None:
    """Append one line in the caller's transaction, so that an act and its line are durable together or not at all."""
    text = json.dumps(details, sort_keys=True, separators=(",", ":"), default=str)
    writer.append_audit(time=clock.now(), actor=actor, action=action, subject=subject, details=text)
