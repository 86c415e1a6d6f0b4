"""Who looks at the page: an operator's certificate from the handshake, or a web token from a cookie or a header.

Certificates are read and checked as on the admin listener: same identities, same revocations. What a visitor may see
is decided by the admin calls that a page makes.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from typing import Final

from aiohttp import hdrs, web

from common.clock import Clock
from common.errors import Unauthenticated
from common.identifiers import FederationId, Role
from common.rpc.identity import PEER_CERTIFICATE, Caller, CallerReader
from common.rpc.interceptors import Revocations, check_not_over
from coordinator import web_tokens
from coordinator.rounds.model import WebToken
from coordinator.store.interface import Store

# The prefix makes browsers insist on Secure, on the whole path and on this very host.
COOKIE: Final = "__Host-accord-web"
_BEARER: Final = "Bearer "


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks. `name` is what the page greets them by; `token` is theirs, if they came with one."""

    caller: Caller
    name: str
    token: str = field(default="", repr=False)


class Access:
    """Tells visitors. tokens: whether web tokens count here; without them only certificates do."""

    def __init__(
        self, *, federation: FederationId, revocations: Revocations, store: Store, clock: Clock, tokens: bool
    ) -> None:
        self._callers = CallerReader(federation)
        self._revocations = revocations
        self._store = store
        self._clock = clock
        self.tokens: Final = tokens

    async def visitor(self, request: web.BaseRequest) -> Visitor:
        """Raises Unauthenticated if nobody is told, or by what they showed nobody is let in; CertificateRevoked."""
        certificate = _certificate(request)
        if certificate is not None:
            caller = self._callers.read({PEER_CERTIFICATE: [certificate]})
            visitor = Visitor(caller, caller.id)
            await self.recheck(visitor)
            return visitor
        text = _token(request)
        if not self.tokens or not text:
            raise Unauthenticated(
                "show an operator's certificate, or sign in with a web token" if self.tokens else "show a certificate"
            )
        return await self.of_token(text)

    async def of_token(self, text: str) -> Visitor:
        """Raises Unauthenticated."""
        row = await asyncio.to_thread(self._admit, text)
        # A viewer, whoever holds it; its name is what logs and rate limits know it by.
        caller = Caller(role=Role.VIEWER, id=f"web-token-{row.name}", not_after=row.expires_at)
        return Visitor(caller, row.label, text)

    async def recheck(self, visitor: Visitor) -> None:
        """Raises Unauthenticated or CertificateRevoked once the visitor may no longer look."""
        if visitor.token:
            await asyncio.to_thread(self._admit, visitor.token)
            return
        check_not_over(visitor.caller, now=self._clock.now())
        await self._revocations.check(visitor.caller)

    def _admit(self, text: str) -> WebToken:
        with self._store.read() as reader:
            return web_tokens.admit(reader, text, now=self._clock.now())


def set_cookie(response: web.StreamResponse, visitor: Visitor, *, clock: Clock) -> None:
    """Remember a web token in the browser, until the token ends."""
    ends = visitor.caller.not_after
    seconds = max(0, int((ends - clock.now()).total_seconds())) if ends is not None else 0
    response.set_cookie(COOKIE, visitor.token, max_age=seconds, path="/", secure=True, httponly=True, samesite="Strict")


def drop_cookie(response: web.StreamResponse) -> None:
    response.del_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="Strict")


def shows_token(request: web.BaseRequest) -> bool:
    return bool(_token(request))


def _certificate(request: web.BaseRequest) -> bytes | None:
    """The client's certificate as PEM, verified at the handshake; None if it showed none."""
    transport = request.transport
    connection = transport.get_extra_info("ssl_object") if transport is not None else None
    if not isinstance(connection, ssl.SSLObject):
        return None
    found = connection.getpeercert(binary_form=True)
    return ssl.DER_cert_to_PEM_cert(found).encode() if found else None


def _token(request: web.BaseRequest) -> str:
    authorization = request.headers.get(hdrs.AUTHORIZATION, "")
    if authorization.startswith(_BEARER):
        return authorization.removeprefix(_BEARER).strip()
    return request.cookies.get(COOKIE, "")
