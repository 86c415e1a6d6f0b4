"""The admin calls about join tokens: invite a participant, list tokens, make one useless."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Final

from accord.v1 import admin_pb2 as pb
from common import identifiers
from common.clock import Clock
from common.errors import CertificateRevoked, InvalidArgument, NotFound, OutOfTurn
from coordinator import audit_lines
from coordinator.rounds.model import ParticipantState
from coordinator.services import convert
from coordinator.services.admin_parts import Inviter
from coordinator.services.answers import Answers
from coordinator.services.fields import page_size
from coordinator.store.interface import Reader, Store, Writer

DEFAULT_LIFE: Final = timedelta(days=1)
MOST_LIFE: Final = timedelta(days=30)


class JoinTokens:
    """Sync, as the store is; AdminServicer calls it from threads. inviter: None where there is no CA to enrol with."""

    def __init__(self, store: Store, clock: Clock, answers: Answers, inviter: Inviter | None) -> None:
        self._store = store
        self._clock = clock
        self._answers = answers
        self._inviter = inviter

    def create(self, request: pb.CreateJoinTokenRequest, actor: str) -> pb.CreateJoinTokenResponse:
        """Raises CertificateRevoked for a participant that is revoked, InvalidArgument for a life that is too long."""
        if self._inviter is None:
            raise OutOfTurn(
                "this coordinator has no CA of its own; participants come with certificates of their organisation's PKI"
            )
        inviter = self._inviter
        participant = identifiers.parse_participant_id(request.participant_id)
        life = timedelta(seconds=request.ttl_seconds) if request.ttl_seconds else DEFAULT_LIFE
        if life > MOST_LIFE:
            raise InvalidArgument(f"ttl_seconds: at most {MOST_LIFE // timedelta(seconds=1)}, which is 30 days")

        def act(writer: Writer) -> pb.CreateJoinTokenResponse:
            if _is_revoked(writer, participant):
                raise CertificateRevoked(f"participants/{participant} is revoked for good; enrol it under another id")
            token, text = inviter.invite(participant, life=life)
            writer.add_join_token(token)
            audit_lines.append(
                writer,
                self._clock,
                actor=actor,
                action="join_token_created",
                subject=identifiers.join_token_name(token.name),
                participant=participant,
                expires_at=token.expires_at.isoformat(),
            )
            return pb.CreateJoinTokenResponse(join_token=convert.join_token(token, now=self._clock.now()), token=text)

        def without_secret(answer: pb.CreateJoinTokenResponse) -> pb.CreateJoinTokenResponse:
            return pb.CreateJoinTokenResponse(join_token=answer.join_token)

        return self._answers.once(actor, request, pb.CreateJoinTokenResponse, act, keep=without_secret)

    def list(self, request: pb.ListJoinTokensRequest) -> pb.ListJoinTokensResponse:
        now = self._clock.now()
        wanted = request.participant_id
        with self._store.read() as reader:
            page = reader.join_tokens(
                participant=identifiers.parse_participant_id(wanted) if wanted else "",
                open_at=now if request.open_only else None,
                page_size=page_size(request.page_size),
                page_token=request.page_token,
            )
        return pb.ListJoinTokensResponse(
            join_tokens=[convert.join_token(row, now=now) for row in page.rows], next_page_token=page.next_token
        )

    def revoke(self, request: pb.RevokeJoinTokenRequest, actor: str) -> pb.RevokeJoinTokenResponse:
        """Harmless if it was revoked before. Raises NotFound, and OutOfTurn if it was used."""
        name = identifiers.parse_join_token_name(request.name)

        def act(writer: Writer) -> pb.RevokeJoinTokenResponse:
            token = writer.join_token(name)
            if token.used_at is not None:
                raise OutOfTurn(
                    f"{request.name} was used; revoke participants/{token.participant} if it should not have been"
                )
            if token.revoked_at is None:
                token = replace(token, revoked_at=self._clock.now())
                writer.update_join_token(token)
                audit_lines.append(
                    writer,
                    self._clock,
                    actor=actor,
                    action="join_token_revoked",
                    subject=request.name,
                    participant=token.participant,
                )
            return pb.RevokeJoinTokenResponse(join_token=convert.join_token(token, now=self._clock.now()))

        return self._answers.once(actor, request, pb.RevokeJoinTokenResponse, act)


def _is_revoked(reader: Reader, participant: str) -> bool:
    try:
        return reader.participant(participant).state is ParticipantState.REVOKED
    except NotFound:
        return False
