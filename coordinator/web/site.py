"""The page's addresses: who is let in, which page an address means, and what answers look like from outside.

Nothing is changed here but whether a browser remembers a token. Every answer carries the rules by which browsers must
show it: nothing from elsewhere, no script but the two files of ours, no frame around it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

from aiohttp import hdrs, web

from common.clock import Clock
from common.errors import (
    AccordError,
    CertificateRevoked,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    StorageFailed,
    Unauthenticated,
    Unavailable,
)
from common.identifiers import parse_participant_id, parse_run_id
from common.log import get_logger
from coordinator.rates import RateLimit
from coordinator.wakeups import Wakeups
from coordinator.web.access import Access, Visitor, drop_cookie, set_cookie, shows_token
from coordinator.web.history import RoundHistory
from coordinator.web.live import Live
from coordinator.web.page import Ask, Page
from coordinator.web.reads import Reads
from coordinator.web.rendering import ASSETS, Frame, Templates, asset, asset_path
from coordinator.web.views.adapters import adapter, adapters
from coordinator.web.views.audit import audit_log
from coordinator.web.views.overview import overview
from coordinator.web.views.participants import participant, participants
from coordinator.web.views.rounds import round_
from coordinator.web.views.runs import run, runs

log: Final = get_logger(__name__)

HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    # Not "no-referrer": then browsers send "Origin: null" with our own forms.
    "Referrer-Policy": "same-origin",
    "Server": "Accord",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
STATUS_OF: Final[Mapping[type[AccordError], int]] = {
    InvalidArgument: 400,
    Unauthenticated: 401,
    CertificateRevoked: 403,
    PermissionDenied: 403,
    NotFound: 404,
    ResourceExhausted: 429,
    StorageFailed: 503,
    Unavailable: 503,
}
EVENT_STREAM: Final = "text/event-stream"
FORM_BYTES: Final = 2048
FORM_SECONDS: Final = 10.0
PAGE_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 30.0
# Templates are made in threads of our own: a page of a thousand participants takes long enough for a round to notice.
RENDERERS: Final = 2
# Tokens that were tried in vain, by address. Nobody guesses one; this keeps guessers from the database.
TRIES_A_SECOND: Final = 1.0
TRIES_AT_ONCE: Final = 30

Answer = Callable[[Ask, Mapping[str, str]], Awaitable[Page]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_LOCAL: Final = re.compile(r"/(?![/\\])[!-~]*")


@dataclass(frozen=True, slots=True)
class SiteParts:
    """What the pages are made from. federation: its name. health: why the coordinator is not ready, by what failed.

    pages_a_second, pages_at_once: how often one visitor may ask.
    """

    federation: str
    reads: Reads
    access: Access
    clock: Clock
    wakeups: Wakeups
    health: Callable[[], Mapping[str, str]]
    pages_a_second: float
    pages_at_once: int


class Site:
    """The pages as an aiohttp application."""

    def __init__(self, parts: SiteParts) -> None:
        self._parts = parts
        self._templates = Templates()
        self._history = RoundHistory()
        self._live = Live(parts.access, parts.wakeups, parts.clock)
        self._rate = RateLimit(calls_per_second=parts.pages_a_second, burst=parts.pages_at_once)
        self._tries = RateLimit(calls_per_second=TRIES_A_SECOND, burst=TRIES_AT_ONCE)
        self._threads = ThreadPoolExecutor(RENDERERS, thread_name_prefix="web")
        self.application: Final = web.Application(middlewares=[self._answered], client_max_size=FORM_BYTES)
        self.application.on_cleanup.append(self._stop)
        add = self.application.router.add_route
        for path, answer in _PAGES.items():
            add(hdrs.METH_GET, path, self._page(answer))
            add(hdrs.METH_HEAD, path, self._page(answer))
        add(hdrs.METH_GET, "/static/{digest}/{name}", self._asset)
        add(hdrs.METH_GET, "/login", self._door)
        add(hdrs.METH_POST, "/login", self._enter)
        add(hdrs.METH_POST, "/logout", self._leave)

    async def _stop(self, _application: web.Application) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- pages ----------------------------------------------------------------------------------------------------

    def _page(self, answer: Answer) -> Handler:
        async def serve(request: web.Request) -> web.StreamResponse:
            visitor = await self._let_in(request)
            if EVENT_STREAM in request.headers.get(hdrs.ACCEPT, ""):
                key = f"{visitor.caller.role.value} {request.path_qs}"
                return await self._live.stream(request, visitor, key, lambda: self._part(request, visitor, answer))
            page = await self._made(request, visitor, answer)
            frame = Frame(self._parts.federation, visitor.name, bool(visitor.token))
            content = await self._in_thread(
                lambda: self._templates.whole(page, frame, path=request.path, now=self._parts.clock.now())
            )
            return _html(content)

        return serve

    async def _let_in(self, request: web.Request) -> Visitor:
        """Raises what `Access.visitor` raises, ResourceExhausted for who asks too often."""
        tries = shows_token(request)
        if tries:
            self._tries.require(request.remote or "")
        try:
            visitor = await self._parts.access.visitor(request)
        except Unauthenticated:
            if tries:
                self._tries.take(request.remote or "")
            raise
        self._rate.take(visitor.caller.actor)
        return visitor

    async def _made(self, request: web.Request, visitor: Visitor, answer: Answer) -> Page:
        ask = Ask(
            reads=self._parts.reads,
            caller=visitor.caller,
            now=self._parts.clock.now(),
            path=request.path,
            query=dict(request.query),
            history=self._history,
            health=self._parts.health,
        )
        try:
            async with asyncio.timeout(PAGE_SECONDS):
                return await answer(ask, request.match_info)
        except TimeoutError:
            raise Unavailable(f"this page was not ready within {PAGE_SECONDS:.0f} s; try again") from None

    async def _part(self, request: web.Request, visitor: Visitor, answer: Answer) -> str:
        page = await self._made(request, visitor, answer)
        if not page.is_followed:
            raise InvalidArgument("this page does not follow what happens; load it again")
        return await self._in_thread(lambda: self._templates.part(page, path=request.path, now=self._parts.clock.now()))

    async def _in_thread(self, make: Callable[[], str]) -> str:
        return await asyncio.get_running_loop().run_in_executor(self._threads, make)

    async def _asset(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in ASSETS or request.path != asset_path(name):
            raise NotFound("there is no such file")
        kind, _, charset = ASSETS[name].partition("; charset=")
        return web.Response(
            body=asset(name),
            content_type=kind,
            charset=charset or None,
            headers={"Cache-Control": "public, max-age=31536000, immutable"},
        )

    # --- the door -------------------------------------------------------------------------------------------------

    async def _door(self, request: web.Request) -> web.StreamResponse:
        return self._door_page(request, next_=_local(request.query.get("next", "")), message="", status=200)

    async def _enter(self, request: web.Request) -> web.StreamResponse:
        """Take a token from the form and remember it in the browser."""
        _require_own_form(request)
        self._tries.take(request.remote or "")
        async with asyncio.timeout(FORM_SECONDS):
            form = await request.post()
        text, next_ = str(form.get("token", "")).strip(), _local(str(form.get("next", "")))
        if not self._parts.access.tokens:
            raise PermissionDenied("tokens do not count here; come with an operator's certificate")
        try:
            visitor = await self._parts.access.of_token(text)
        except Unauthenticated as error:
            log.info("web_token_refused", address=request.remote, error=str(error))
            return self._door_page(request, next_=next_, message=error.message, status=401)
        log.info("web_token_used", caller=visitor.caller.actor, label=visitor.name, address=request.remote)
        response = _elsewhere(next_)
        set_cookie(response, visitor, clock=self._parts.clock)
        return response

    async def _leave(self, request: web.Request) -> web.StreamResponse:
        _require_own_form(request)
        response = _elsewhere("/login")
        drop_cookie(response)
        return response

    def _door_page(self, request: web.Request, *, next_: str, message: str, status: int) -> web.Response:
        content = self._templates.bare(
            "door.html",
            title="Sign in",
            federation=self._parts.federation,
            tokens=self._parts.access.tokens,
            next=next_,
            message=message,
        )
        return _html(content, status=status)

    # --- answers --------------------------------------------------------------------------------------------------

    @web.middleware
    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every request gets an answer with the same headers, whatever happens; nobody's slowness is waited for."""
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = self._error(request, error.status, error.reason)
        except AccordError as error:
            response = self._refusal(request, error)
        except (ConnectionError, TimeoutError):
            # The reader has gone, or does not read: there is nobody to answer.
            return _closing(web.Response(status=408))
        except Exception:
            # A broken page must not be more than that.
            log.exception("web_page_failed", path=request.path)
            response = self._error(request, 500, "This page failed; the coordinator's log says why.")
        if response.prepared:
            return response
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Cache-Control", "no-store")
        return await self._sent(request, response)

    async def _sent(self, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        return response

    def _refusal(self, request: web.Request, error: AccordError) -> web.StreamResponse:
        status = next((code for kind, code in STATUS_OF.items() if isinstance(error, kind)), 500)
        if status == 500:
            log.error("web_page_failed", path=request.path, reason=error.reason, error=str(error))
        if isinstance(error, Unauthenticated) and self._is_browser_at_a_page(request):
            if request.headers.get("Sec-Fetch-Site") == "cross-site":
                # A link from a chat or a mail: browsers keep a strict cookie back until the page itself asks again.
                return _html(self._templates.bare("again.html", title="One moment", path=request.path_qs))
            if self._parts.access.tokens:
                return _elsewhere(f"/login?{urlencode({'next': _local(request.path_qs)})}")
        return self._error(request, status, error.message)

    def _is_browser_at_a_page(self, request: web.Request) -> bool:
        return (
            request.method in (hdrs.METH_GET, hdrs.METH_HEAD)
            and hdrs.AUTHORIZATION not in request.headers
            and EVENT_STREAM not in request.headers.get(hdrs.ACCEPT, "")
        )

    def _error(self, request: web.Request, status: int, message: str) -> web.Response:
        content = self._templates.bare(
            "error.html", title=_TITLES.get(status, "Not possible"), status=status, message=message
        )
        return _html(content, status=status)


def _plain(answer: Callable[[Ask], Awaitable[Page]]) -> Answer:
    async def page(ask: Ask, _path: Mapping[str, str]) -> Page:
        return await answer(ask)

    return page


async def _run(ask: Ask, path: Mapping[str, str]) -> Page:
    return await run(ask, parse_run_id(path["run"], field="run"))


async def _round(ask: Ask, path: Mapping[str, str]) -> Page:
    return await round_(ask, parse_run_id(path["run"], field="run"), int(path["number"]))


async def _adapters(ask: Ask, path: Mapping[str, str]) -> Page:
    return await adapters(ask, parse_run_id(path["run"], field="run"))


async def _adapter(ask: Ask, path: Mapping[str, str]) -> Page:
    return await adapter(ask, parse_run_id(path["run"], field="run"), path["digest"])


async def _participant(ask: Ask, path: Mapping[str, str]) -> Page:
    return await participant(ask, parse_participant_id(path["participant"], field="participant"))


# The addresses are the API's resource names.
_PAGES: Final[Mapping[str, Answer]] = {
    "/": _plain(overview),
    "/runs": _plain(runs),
    "/runs/{run}": _run,
    r"/runs/{run}/rounds/{number:\d{1,9}}": _round,
    "/runs/{run}/adapters": _adapters,
    "/runs/{run}/adapters/{digest}": _adapter,
    "/participants": _plain(participants),
    "/participants/{participant}": _participant,
    "/audit": _plain(audit_log),
}
_TITLES: Final = {
    400: "That address has a mistake",
    401: "Please show who you are",
    403: "You may not see this",
    404: "There is nothing here",
    405: "This page only reads",
    429: "Too many at once",
    500: "This page failed",
    503: "Not ready",
}


def _html(content: str, *, status: int = 200) -> web.Response:
    return web.Response(text=content, content_type="text/html", charset="utf-8", status=status)


def _elsewhere(address: str) -> web.Response:
    return web.Response(status=303, headers={hdrs.LOCATION: address})


def _closing(response: web.Response) -> web.Response:
    response.force_close()
    return response


def _local(address: str) -> str:
    """An address on this site, "/" for any other."""
    return address if _LOCAL.fullmatch(address) and not address.startswith("/login") else "/"


def _require_own_form(request: web.Request) -> None:
    """Raises PermissionDenied for a form that another site has sent."""
    origin = request.headers.get(hdrs.ORIGIN)
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    if site not in ("same-origin", "none") or origin not in (None, f"https://{request.host}"):
        raise PermissionDenied("this form was sent from another site")
