"""What this process shows to Prometheus: keeps the levels current, and serves /metrics on a listener of its own."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Final
from wsgiref.types import StartResponse, WSGIEnvironment

from common.clock import Clock
from common.errors import AccordError
from common.http_listener import has_certificate, serving_http
from common.log import get_logger
from coordinator import gauges
from coordinator.config import Config, MetricsConfig, split_address
from coordinator.identity import ServingIdentity
from coordinator.metrics import Metrics
from coordinator.store.interface import Store

EVERY_SECONDS: Final = 5.0

log: Final = get_logger(__name__)


class Monitoring:
    """`run` is a task of the event loop."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        config: Config,
        store: Store,
        clock: Clock,
        identity: ServingIdentity,
        leases: Callable[[datetime], Mapping[str, datetime]],
    ) -> None:
        """leases: since when this process drives each run whose lease it holds at a time (`Driver.driven_since`)."""
        self._metrics = metrics
        self._folder = config.data_folder
        self._store = store
        self._clock = clock
        self._identity = identity
        self._leases = leases

    async def run(self) -> None:
        """Keep the levels current until cancelled."""
        while True:
            try:
                await asyncio.to_thread(self.observe)
            except (AccordError, OSError) as error:
                log.warning("gauges_not_observed", error=str(error))
            await asyncio.sleep(EVERY_SECONDS)

    def observe(self) -> None:
        """Look at everything once. Blocks."""
        now, metrics, identity = self._clock.now(), self._metrics, self._identity
        disk = shutil.disk_usage(self._folder)
        metrics.data_free_bytes.set(disk.free)
        metrics.data_size_bytes.set(disk.total)
        metrics.set_days_left("server", identity.certificate_expires_at(), now=now)
        if identity.own is not None:
            metrics.set_days_left("ca", identity.own.trust().expires_at, now=now)
        with self._store.read() as reader:
            gauges.observe(reader, metrics, leases=self._leases(now), now=now)


@contextmanager
def serving_metrics(metrics: Metrics, config: MetricsConfig) -> Iterator[int]:
    """Serve /metrics on a listener of its own until the end of the block; yields its port, 0 if none is asked for.

    Raises ConfigInvalid if the port cannot be had, or the TLS files cannot be used.
    """
    if not config.listen:
        yield 0
        return

    def answer(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environment.get("PATH_INFO") != "/metrics":
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"there is /metrics\n"]
        if not has_certificate(environment):
            start("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"/metrics needs a client certificate\n"]
        start("200 OK", [("Content-Type", metrics.content_type), ("Cache-Control", "no-store")])
        return [metrics.exposition()]

    host, port = split_address(config.listen)
    with serving_http(host, port, answer, tls=config.tls) as taken:
        yield taken
