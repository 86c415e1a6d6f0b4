"""Makes join tokens: the row that is stored, and the text for the partner's operator that is shown once.

Knows nothing of who may ask for one; what a token is exchanged for lies in `coordinator.services.enrollment`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from common import join_token
from common.clock import Clock
from common.identifiers import FederationId, ParticipantId
from common.join_token import Invitation
from coordinator.rounds.model import JoinToken

TOKEN_ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class Inviter:
    """Invites participants to one federation. Addresses are HOST:PORT as partners dial them; `authority` gives PEM."""

    federation: FederationId
    enrollment_address: str
    coordinator_address: str
    authority: Callable[[], str]
    clock: Clock
    random: Callable[[int], bytes] = secrets.token_bytes

    def invite(self, participant: ParticipantId, *, life: timedelta) -> tuple[JoinToken, str]:
        """A row to be stored, and the text for the partner's operator, which is the only place of its secret."""
        now = self.clock.now()
        secret = join_token.new_secret(self.random)
        row = JoinToken(
            name=self.random(TOKEN_ID_BYTES).hex(),
            participant=participant,
            secret_sha256=join_token.secret_sha256(secret),
            created_at=now,
            expires_at=now + life,
        )
        text = join_token.to_text(
            Invitation(
                federation=self.federation,
                participant=participant,
                enrollment_address=self.enrollment_address,
                coordinator_address=self.coordinator_address,
                authority=self.authority(),
                secret=secret,
            )
        )
        return row, text
