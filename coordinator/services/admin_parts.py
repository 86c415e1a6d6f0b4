"""What AdminServicer is given beside store and clock: facts of the federation, and whom to tell of changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from common.identifiers import FederationId, ParticipantId
from coordinator.pki import Trust
from coordinator.rounds.model import JoinToken


class Inviter(Protocol):
    """Makes join tokens."""

    def invite(self, participant: ParticipantId, *, life: timedelta) -> tuple[JoinToken, str]:
        """A row to be stored, and the text for the partner's operator, which is the only place of its secret."""


@dataclass(frozen=True, slots=True)
class FederationFacts:
    """What does not change while the coordinator runs.

    trust: what the coordinator's own CA is at the moment; None where an organisation's PKI issues certificates.
    """

    federation: FederationId
    coordinator_public_key: str
    trust: Callable[[], Trust | None]


@dataclass(frozen=True, slots=True)
class Notices:
    """Who else has to know of a change. `changed` wakes the driver and long polls; `revoked` ends open calls."""

    changed: Callable[[], None]
    revoked: Callable[[], Awaitable[None]] = field(repr=False)
