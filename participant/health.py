"""The participant's /metrics and /health over HTTP: what Prometheus scrapes and probes ask.

Alive is not healthy: /health says 200 only while the coordinator answers and the certificate holds, and else 503 with
the reasons. Reads the metrics, so that a probe and an alert never disagree. Serves no secret and no figure of data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import make_wsgi_app

from common.clock import Clock
from common.http_listener import HttpTls, has_certificate, serving_http

# Several long polls and the longest wait between two tries: a coordinator's restart makes no site unhealthy.
MOST_SILENCE: Final = timedelta(minutes=5)
LEAST_CERTIFICATE_LEFT: Final = timedelta(days=1)

_LAST_CONTACT: Final = "accord_participant_last_contact_timestamp_seconds"
_CERTIFICATE_EXPIRY: Final = "accord_participant_certificate_expiry_timestamp_seconds"


def problems(registry: CollectorRegistry, *, started_at: datetime, now: datetime) -> tuple[str, ...]:
    """Why this site is not healthy; empty if it is. A site that has just started is given time to be heard."""
    found: list[str] = []
    contact = _time(registry, _LAST_CONTACT)
    silence = now - max(contact or started_at, started_at)
    if silence > MOST_SILENCE:
        found.append(f"the coordinator has not answered for {silence.total_seconds():.0f} s")
    expiry = _time(registry, _CERTIFICATE_EXPIRY)
    if expiry is not None and expiry - now < LEAST_CERTIFICATE_LEFT:
        found.append(f"the certificate ends at {expiry.isoformat()}")
    return tuple(found)


@contextmanager
def serving_health(
    host: str, port: int, *, registry: CollectorRegistry, clock: Clock, tls: HttpTls | None = None
) -> Iterator[int]:
    """Serve until the end of the block; yields the port (that was taken, if 0 was asked for).

    tls: then /metrics is for those with a certificate. Raises ConfigInvalid if the port cannot be had.
    """
    with serving_http(host, port, _application(registry, clock), tls=tls) as taken:
        yield taken


def _application(registry: CollectorRegistry, clock: Clock) -> WSGIApplication:
    metrics: Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]] = make_wsgi_app(registry)
    started_at = clock.now()

    def answer(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environment.get("PATH_INFO", "")
        if path == "/metrics":
            if not has_certificate(environment):
                start("403 Forbidden", [("Content-Type", "text/plain")])
                return [b"/metrics needs a client certificate\n"]
            return metrics(environment, start)
        if path != "/health":
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"there are /metrics and /health\n"]
        found = problems(registry, started_at=started_at, now=clock.now())
        status = "503 Service Unavailable" if found else "200 OK"
        start(status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
        return [json.dumps({"healthy": not found, "problems": list(found)}).encode() + b"\n"]

    return answer


def _time(registry: CollectorRegistry, name: str) -> datetime | None:
    seconds = registry.get_sample_value(name)
    return datetime.fromtimestamp(seconds, UTC) if seconds else None
