"""Pages that follow what happens: a stream of server-sent events, each the changed part of a page.

A page that several look at is made once for all of them. Nobody waits for a slow reader, and no stream lasts for ever:
the page's script comes again by itself, after a refusal too.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from common.clock import Clock
from common.errors import AccordError, ResourceExhausted
from common.log import get_logger
from coordinator.wakeups import Bell, Wakeups
from coordinator.web.access import Access, Visitor
from coordinator.web.words import stamp

log: Final = get_logger(__name__)

EVENT: Final = "page"
PING: Final = "ping"
MOST_STREAMS: Final = 128
# A page is made anew at most this often, and at least this often while somebody looks at it.
LEAST_SECONDS: Final = 1.0
MOST_SECONDS: Final = 3.0
# After a page was made, others wait for so many times as long as that took.
REST: Final = 2.0
PING_SECONDS: Final = 5.0
STREAM_SECONDS: Final = 1800.0
WRITE_SECONDS: Final = 10.0
RETRY_MILLISECONDS: Final = 2000
MOST_KEPT: Final = 64
# The standard's: a carriage return in what somebody has said must not begin a line of the stream's own.
_ENDS_OF_LINES: Final = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A page's changing part, and when it was made, by the loop's clock."""

    content: str
    digest: str
    made_at: float


class Live:
    """Sends pages to those who look at them, whenever they change. Belongs to one event loop."""

    def __init__(self, access: Access, wakeups: Wakeups, clock: Clock) -> None:
        self._clock = clock
        self._access = access
        self._wakeups = wakeups
        self._bell: Bell = wakeups.polls
        self._made: OrderedDict[str, Rendered] = OrderedDict()
        self._making: dict[str, asyncio.Lock] = {}
        self._turn = asyncio.Lock()
        self._streams = 0

    async def stream(
        self, request: web.Request, visitor: Visitor, key: str, make: Callable[[], Awaitable[str]]
    ) -> web.StreamResponse:
        """Serve one reader until it goes. key: what is the same for all who may share what `make` makes.

        Raises ResourceExhausted if too many look already, and before the first event whatever `make` raises.
        """
        if self._streams >= MOST_STREAMS:
            raise ResourceExhausted(f"{MOST_STREAMS} pages are open already; this one follows when another is closed")
        self._streams += 1
        response: web.StreamResponse | None = None
        try:
            first = await self._fresh(key, make)
            response = web.StreamResponse(
                headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            )
            await response.prepare(request)
            await _write(response, f"retry: {RETRY_MILLISECONDS}\n\n{self._event(EVENT, first.content)}")
            with suppress(ConnectionError, TimeoutError):  # the reader has gone, or does not read
                await self._follow(response, visitor, key, make, first.digest)
        except AccordError as error:
            if response is None:
                raise
            log.info("web_stream_ended", caller=visitor.caller.actor, reason=error.reason, error=error.message)
        except Exception:
            # A broken page ends its stream: the answer has begun, so that there is no other way to say it.
            if response is None:
                raise
            log.exception("web_stream_failed", path=request.path)
        finally:
            self._streams -= 1
        return response

    async def _follow(
        self,
        response: web.StreamResponse,
        visitor: Visitor,
        key: str,
        make: Callable[[], Awaitable[str]],
        seen: str,
    ) -> None:
        loop = asyncio.get_running_loop()
        ends_at, spoke_at = loop.time() + STREAM_SECONDS, loop.time()
        while loop.time() < ends_at and not self._wakeups.is_over:
            ticket = self._bell.ticket()
            # What changes in a burst is shown once.
            await asyncio.sleep(LEAST_SECONDS)
            await self._bell.wait(ticket, seconds=MOST_SECONDS - LEAST_SECONDS)
            await self._access.recheck(visitor)
            found = await self._fresh(key, make)
            if found.digest != seen:
                await _write(response, self._event(EVENT, found.content))
                seen, spoke_at = found.digest, loop.time()
            elif loop.time() - spoke_at > PING_SECONDS:
                await _write(response, self._event(PING, ""))
                spoke_at = loop.time()

    async def _fresh(self, key: str, make: Callable[[], Awaitable[str]]) -> Rendered:
        """What `make` makes, or what it made a moment ago."""
        lock = self._making.setdefault(key, asyncio.Lock())
        async with lock:
            known = self._made.get(key)
            loop = asyncio.get_running_loop()
            if known is not None and loop.time() - known.made_at < LEAST_SECONDS:
                return known
            try:
                content = await self._made_in_turn(make)
            except BaseException:
                self._making.pop(key, None)
                raise
            found = Rendered(content, hashlib.sha256(content.encode()).hexdigest(), loop.time())
            self._made[key] = found
            self._made.move_to_end(key)
            while len(self._made) > MOST_KEPT:
                gone, _ = self._made.popitem(last=False)
                self._making.pop(gone, None)
            return found

    async def _made_in_turn(self, make: Callable[[], Awaitable[str]]) -> str:
        """One page at a time, and a rest after each: however many look, rounds have most of the process."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            began = loop.time()
            content = await make()
            await asyncio.sleep(REST * (loop.time() - began))
        return content

    def _event(self, name: str, content: str) -> str:
        """Its id is the time, which the page shows as the moment that it is of."""
        lines = "".join(f"data: {line}\n" for line in _ENDS_OF_LINES.split(content))
        return f"event: {name}\nid: {stamp(self._clock.now())}\n{lines}\n"


async def _write(response: web.StreamResponse, text: str) -> None:
    """Raises TimeoutError for a reader that does not read."""
    async with asyncio.timeout(WRITE_SECONDS):
        await response.write(text.encode())
