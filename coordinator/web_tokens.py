"""Web tokens: the secret that opens the web page, and what is kept of it.

The text is shown once to the operator who makes it; the coordinator keeps its SHA-256. Knows nothing of HTTP, nor of
who may make one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from common.errors import NotFound, Unauthenticated
from common.join_token import new_secret
from coordinator.rounds.model import WebToken
from coordinator.store.interface import Reader

PREFIX: Final = "accord-web-"
TOKEN_ID_BYTES: Final = 8

_TEXT: Final = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")


def issue(
    label: str, *, creator: str, life: timedelta, now: datetime, random: Callable[[int], bytes]
) -> tuple[WebToken, str]:
    """A row to be stored, and the text that is shown once. `random` is `secrets.token_bytes`."""
    text = PREFIX + new_secret(random)
    row = WebToken(
        name=random(TOKEN_ID_BYTES).hex(),
        label=label,
        creator=creator,
        secret_sha256=_digest(text),
        created_at=now,
        expires_at=now + life,
    )
    return row, text


def admit(reader: Reader, text: str, *, now: datetime) -> WebToken:
    """The token that `text` is. Raises Unauthenticated if it is unknown, was revoked or is over; never repeats it."""
    if not _TEXT.fullmatch(text):
        raise Unauthenticated(
            f"this is not a web token: one begins with {PREFIX} and has {len(PREFIX) + 43} characters"
        )
    try:
        token = reader.web_token_by_secret(_digest(text))
    except NotFound:
        raise Unauthenticated("nobody here knows this web token; ask the federation's operator for one") from None
    if token.revoked_at is not None:
        raise Unauthenticated("this web token was revoked; ask the federation's operator for another")
    if token.expires_at <= now:
        raise Unauthenticated("this web token has ended; ask the federation's operator for another")
    return token


def _digest(text: str) -> str:
    """256 random bits need no slow hash."""
    return hashlib.sha256(text.encode()).hexdigest()
