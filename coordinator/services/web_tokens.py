"""The admin calls about web tokens: make one, list them, make one useless."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Final

from accord.v1 import admin_pb2 as pb
from common.clock import Clock
from common.errors import InvalidArgument
from common.identifiers import parse_web_token_name, web_token_name
from coordinator import audit_lines, web_tokens
from coordinator.services import convert
from coordinator.services.answers import Answers
from coordinator.services.fields import page_size
from coordinator.store.interface import Store, Writer

DEFAULT_LIFE: Final = timedelta(days=7)
MOST_LIFE: Final = timedelta(days=90)
MOST_LABEL: Final = 80


class WebTokens:
    """Sync, as the store is; AdminServicer calls it from threads."""

    def __init__(self, store: Store, clock: Clock, answers: Answers) -> None:
        self._store = store
        self._clock = clock
        self._answers = answers

    def create(self, request: pb.CreateWebTokenRequest, actor: str) -> pb.CreateWebTokenResponse:
        """Raises InvalidArgument for a label that says nothing or a life that is too long."""
        label = request.label.strip()
        if not label or len(label) > MOST_LABEL or not label.isprintable():
            raise InvalidArgument(
                f'label: say whom the token is for in 1 to {MOST_LABEL} characters, such as "wallboard"'
            )
        life = timedelta(seconds=request.ttl_seconds) if request.ttl_seconds else DEFAULT_LIFE
        if life > MOST_LIFE:
            raise InvalidArgument(f"ttl_seconds: at most {MOST_LIFE // timedelta(seconds=1)}, which is 90 days")

        def act(writer: Writer) -> pb.CreateWebTokenResponse:
            now = self._clock.now()
            token, text = web_tokens.issue(label, creator=actor, life=life, now=now, random=secrets.token_bytes)
            writer.add_web_token(token)
            audit_lines.append(
                writer,
                self._clock,
                actor=actor,
                action="web_token_created",
                subject=web_token_name(token.name),
                label=label,
                expires_at=token.expires_at.isoformat(),
            )
            return pb.CreateWebTokenResponse(web_token=convert.web_token(token, now=now), token=text)

        def without_secret(answer: pb.CreateWebTokenResponse) -> pb.CreateWebTokenResponse:
            return pb.CreateWebTokenResponse(web_token=answer.web_token)

        return self._answers.once(actor, request, pb.CreateWebTokenResponse, act, keep=without_secret)

    def list(self, request: pb.ListWebTokensRequest) -> pb.ListWebTokensResponse:
        with self._store.read() as reader:
            page = reader.web_tokens(page_size=page_size(request.page_size), page_token=request.page_token)
        now = self._clock.now()
        return pb.ListWebTokensResponse(
            web_tokens=[convert.web_token(row, now=now) for row in page.rows], next_page_token=page.next_token
        )

    def revoke(self, request: pb.RevokeWebTokenRequest, actor: str) -> pb.RevokeWebTokenResponse:
        """Harmless if it was revoked before. Raises NotFound."""
        name = parse_web_token_name(request.name)

        def act(writer: Writer) -> pb.RevokeWebTokenResponse:
            now = self._clock.now()
            if writer.web_token(name).revoked_at is None:
                writer.revoke_web_token(name, at=now)
                audit_lines.append(writer, self._clock, actor=actor, action="web_token_revoked", subject=request.name)
            return pb.RevokeWebTokenResponse(web_token=convert.web_token(writer.web_token(name), now=now))

        return self._answers.once(actor, request, pb.RevokeWebTokenResponse, act)
