"""The web page's listener: TLS, and bounds that keep whoever reaches its port away from the rest of the process.

Connections are counted from the moment they are accepted: those beyond the bound wait in the kernel. One that does not
finish its handshake, or asks for nothing, is closed. An error here ends a connection, never more.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from common.errors import ConfigInvalid
from common.log import get_logger

log: Final = get_logger(__name__)

BACKLOG: Final = 64
ACCEPT_AGAIN_SECONDS: Final = 1.0

_END_OF_HEAD: Final = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class WebLimits:
    """Bounds of the listener. silence_seconds: until the first request has come; keepalive_seconds: between two."""

    connections: int = 256
    handshake_seconds: float = 10.0
    silence_seconds: float = 10.0
    keepalive_seconds: float = 30.0
    line_bytes: int = 4096


class WebListener:
    """Serves an aiohttp application on one address, in the running loop."""

    def __init__(self, application: web.Application, tls: ssl.SSLContext, limits: WebLimits) -> None:
        self._tls = tls
        self._limits = limits
        self._runner = web.AppRunner(
            application,
            handle_signals=False,
            access_log=None,
            keepalive_timeout=limits.keepalive_seconds,
            max_line_size=limits.line_bytes,
            max_field_size=limits.line_bytes,
            shutdown_timeout=1.0,
        )
        self._room = asyncio.Semaphore(limits.connections)
        self._open: set[asyncio.Task[None]] = set()
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port; 0 takes any free one. Raises ConfigInvalid if the address cannot be had."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise ConfigInvalid(f"web: cannot listen on {host}:{port}: {error.strerror or error}") from error
        listening.setblocking(False)
        self._socket = listening
        await self._runner.setup()
        self._accepting = asyncio.create_task(self._accept(listening), name="web-accept")
        self._accepting.add_done_callback(_stopped)
        return int(listening.getsockname()[1])

    async def stop(self) -> None:
        """Close every connection; streams are ended."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
        await self._runner.cleanup()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError as error:
                # The process is out of descriptors, or the client has gone before it was accepted.
                self._room.release()
                log.warning("web_not_accepting", error=str(error))
                await asyncio.sleep(ACCEPT_AGAIN_SECONDS)
                continue
            except BaseException:
                self._room.release()
                raise
            task = asyncio.create_task(self._serve(accepted), name="web-connection")
            self._open.add(task)
            task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        self._room.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("web_connection_failed", error=repr(error))

    async def _serve(self, accepted: socket.socket) -> None:
        """One connection, from its handshake to its end."""
        server = self._runner.server
        if server is None:
            accepted.close()
            return
        connection = _Connection(server())
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=self._limits.handshake_seconds,
                ssl_shutdown_timeout=self._limits.handshake_seconds,
            )
        except (OSError, ssl.SSLError, TimeoutError, asyncio.IncompleteReadError) as error:
            log.debug("web_handshake_failed", error=str(error))
            accepted.close()
            return
        try:
            async with asyncio.timeout(self._limits.silence_seconds):
                await connection.spoke.wait()
        except TimeoutError:
            transport.abort()
        finally:
            try:
                await connection.ended.wait()
            except asyncio.CancelledError:
                transport.abort()
                raise


def _stopped(accepting: asyncio.Task[None]) -> None:
    if not accepting.cancelled() and (error := accepting.exception()) is not None:
        # The page is gone until the next start; rounds go on.
        log.error("web_listener_failed", error=repr(error))


class _Connection(asyncio.Protocol):
    """aiohttp's protocol of one connection, and beside it: whether the client has said anything, and the end."""

    def __init__(self, inner: asyncio.Protocol) -> None:
        self._inner = inner
        self._tail = b""
        self.spoke = asyncio.Event()
        self.ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if not self.spoke.is_set():
            # The end of a request's head, which may come in two pieces.
            if _END_OF_HEAD in self._tail + data:
                self.spoke.set()
            self._tail = (self._tail + data)[1 - len(_END_OF_HEAD) :]
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set()
        self.spoke.set()
        self._inner.connection_lost(error)
