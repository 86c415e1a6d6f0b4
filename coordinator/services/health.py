"""Whether this coordinator should get calls: said to gRPC probes, to HTTP probes and to Prometheus.

Ready means that the database answers, the driver turns, and the listeners' certificate is valid. Alive means that the
event loop turns; a coordinator that is alive and not ready is not to be restarted, it waits for something.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from common.clock import Clock
from common.errors import AccordError
from common.log import get_logger
from coordinator.metrics import Metrics

log: Final = get_logger(__name__)

CHECK_EVERY_SECONDS: Final = 2.0
CHECK_TIMEOUT_SECONDS: Final = 5.0
MOST_REQUEST_BYTES: Final = 8 * 1024
REQUEST_TIMEOUT_SECONDS: Final = 5.0

Check = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Readiness:
    """What was found last: reasons by the name of the check that failed; ready if there is none."""

    reasons: Mapping[str, str]
    checked_at: datetime | None

    @property
    def is_ready(self) -> bool:
        return self.checked_at is not None and not self.reasons


class Health:
    """Runs the checks on and on, and tells everybody who asks.

    checks: by name; each raises an AccordError that says what is wrong. services: full names for grpc.health.v1.
    """

    def __init__(
        self, *, checks: Mapping[str, Check], services: tuple[str, ...], clock: Clock, metrics: Metrics
    ) -> None:
        self._checks = dict(checks)
        self._services = ("", *services)
        self._clock = clock
        self._metrics = metrics
        self._readiness = Readiness({"start": "the first check has not ended"}, None)
        self._grpc = health.aio.HealthServicer()
        self._is_stopping = False

    @property
    def readiness(self) -> Readiness:
        return self._readiness

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve grpc.health.v1 on a listener."""
        # The library's function asks for its sync servicer's type.
        health_pb2_grpc.add_HealthServicer_to_server(cast(Any, self._grpc), server)

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await self.check()
            await asyncio.sleep(CHECK_EVERY_SECONDS)

    async def check(self) -> Readiness:
        """Run every check once."""
        found = await asyncio.gather(*(self._reason(name, check) for name, check in self._checks.items()))
        reasons = {name: reason for name, reason in zip(self._checks, found, strict=True) if reason is not None}
        if self._is_stopping:
            reasons["stopping"] = "the coordinator is shutting down"
        await self._tell(Readiness(reasons, self._clock.now()))
        return self._readiness

    async def stop(self) -> None:
        """Say from now on that no calls should come, so that balancers turn away before the listeners close."""
        self._is_stopping = True
        await self._tell(Readiness({"stopping": "the coordinator is shutting down"}, self._clock.now()))

    async def _reason(self, name: str, check: Check) -> str | None:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                await check()
        except AccordError as error:
            return error.message
        except TimeoutError:
            return f"no answer within {CHECK_TIMEOUT_SECONDS:.0f} s"
        except Exception:
            # A broken check means not ready, and must not end the checks.
            log.exception("health_check_failed", check=name)
            return "the check itself failed; see the log"
        return None

    async def _tell(self, readiness: Readiness) -> None:
        if readiness.reasons != self._readiness.reasons:
            log.info("readiness_changed", ready=readiness.is_ready, reasons=dict(readiness.reasons))
        self._readiness = readiness
        self._metrics.ready.set(1 if readiness.is_ready else 0)
        status = (
            health_pb2.HealthCheckResponse.SERVING if readiness.is_ready else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for service in self._services:
            await self._grpc.set(service, status)


class HealthHttp:
    """GET /healthz, /readyz and /metrics over plain HTTP/1.1; everything else is 404. One answer a connection."""

    def __init__(self, health: Health, metrics: Metrics | None) -> None:
        """metrics: None where they are shown elsewhere."""
        self._health = health
        self._metrics = metrics

    async def start(self, host: str, port: int) -> asyncio.Server:
        """Listen; port 0 takes any free port."""
        return await asyncio.start_server(self._serve, host, port, limit=MOST_REQUEST_BYTES)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._answer(head.split(b"\r\n", 1)[0]))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            return  # a probe that went away, or nothing that speaks HTTP
        finally:
            writer.close()

    async def _answer(self, request_line: bytes) -> bytes:
        method, _, rest = request_line.partition(b" ")
        path = rest.split(b" ", 1)[0].split(b"?", 1)[0]
        if method not in (b"GET", b"HEAD"):
            status, kind, body = "405 Method Not Allowed", "text/plain", b"GET only\n"
        else:
            status, kind, body = await self._content(path)
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (b"" if method == b"HEAD" else body)

    async def _content(self, path: bytes) -> tuple[str, str, bytes]:
        match path:
            case b"/healthz":
                return "200 OK", "text/plain", b"ok\n"
            case b"/readyz":
                readiness = self._health.readiness
                body = json.dumps({"ready": readiness.is_ready, "reasons": dict(readiness.reasons)}).encode() + b"\n"
                return "200 OK" if readiness.is_ready else "503 Service Unavailable", "application/json", body
            case b"/metrics" if self._metrics is not None:
                # Text of a few thousand series takes milliseconds; streams go on meanwhile.
                body = await asyncio.to_thread(self._metrics.exposition)
                return "200 OK", self._metrics.content_type, body
            case _:
                return "404 Not Found", "text/plain", b"/healthz, /readyz or /metrics\n"
