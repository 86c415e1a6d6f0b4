"""Preflight checks of the way to the coordinator: name, port, TLS, clock, and one real authenticated call.

Each looks at one layer alone, so that the first that fails is the one to repair. What is looked at, and through which
proxy, is `participant.network`'s; the daemon looks there, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import grpc

from common.clock import Clock
from common.errors import AccordError, CertificateRevoked, ClockWrong, NotFound, PermissionDenied, Unauthenticated
from common.rpc.channels import TIME_METADATA, VERSION_METADATA
from common.version import software_version
from participant.client import CoordinatorClient
from participant.identity import IdentityFiles, SiteIdentity
from participant.network import clocks, looking
from participant.network.dialling import Line, dial
from participant.network.looking import Looked, Obstacle, Papers
from participant.network.route import Route
from participant.preflight.report import Result, failed, ok, skipped, warning

NOTED_SERVER_CERTIFICATE_DAYS: Final = 7
MOST_VERSION_CHARACTERS: Final = 64


@dataclass(frozen=True, slots=True)
class Answer:
    """What the coordinator said to an authenticated call. server_time: None if it does not tell the time.

    software_version: the coordinator's; "" if it does not tell.
    """

    charter: bytes | None
    server_time: datetime | None
    asked: datetime
    answered: datetime
    software_version: str = ""


def name_resolution(route: Route) -> Result:
    """The host (or the proxy's) has an address."""
    return _result(looking.name_resolution(route))


def port(route: Route) -> Result:
    """Something listens at the port, and nothing in between drops the way there."""
    return _result(looking.port(route))


def tls(route: Route, files: IdentityFiles, *, now: datetime) -> Result:
    """Both certificates are accepted, HTTP/2 is spoken behind them, and by the coordinator itself."""
    seen = looking.tls(route, Papers.of(files), now=now)
    ends = seen.expires_at if isinstance(seen, Looked) else None
    if ends is not None and (ends - now).days < NOTED_SERVER_CERTIFICATE_DAYS:
        return warning(
            seen.found, "tell the federation's operator that the coordinator's certificate is about to expire"
        )
    return _result(seen)


def _result(seen: Looked | Obstacle) -> Result:
    return ok(seen.found) if isinstance(seen, Looked) else failed(seen.found, seen.action, kind=seen.kind)


# --- the call ------------------------------------------------------------------------------------------------------


class _MetadataRecorder(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc, type-arg, unused-ignore]
    """Keeps the metadata of the latest call, whether it succeeded or not."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}

    def intercept_unary_unary(self, continuation, details, request):  # type: ignore[no-untyped-def]
        call = continuation(details, request)
        pairs: Sequence[tuple[str, str | bytes]] = [*(call.initial_metadata() or ()), *(call.trailing_metadata() or ())]
        self.seen = {key: value for key, value in pairs if isinstance(value, str)}
        return call


def ask(identity: SiteIdentity, line: Line, *, clock: Clock) -> Answer:
    """One authenticated call that changes nothing: fetch the charter. Raises what the coordinator raised."""
    recorder = _MetadataRecorder()
    with dial(identity, line) as channel:
        client = CoordinatorClient(
            grpc.intercept_channel(channel, recorder), channel, software_version=software_version()
        )
        asked = clock.now()
        try:
            charter: bytes | None = client.charter()
        except NotFound:
            charter = None
        answered = clock.now()
    version = recorder.seen.get(VERSION_METADATA, "")[:MOST_VERSION_CHARACTERS]
    return Answer(charter, clocks.parse_time(recorder.seen.get(TIME_METADATA)), asked, answered, version)


def call_failed(error: AccordError) -> Result:
    """What to do about a call that the coordinator, or the way there, did not let through."""
    if isinstance(error, CertificateRevoked):
        return failed(
            f"the coordinator has revoked this site: {error.message}",
            "ask the federation's operator why; only they can let this site in again",
            kind=type(error),
        )
    if isinstance(error, Unauthenticated | PermissionDenied):
        return failed(
            f"the coordinator does not know this site: {error.message}",
            "check the address (another federation's coordinator?), or enroll again with a new join token",
            kind=type(error),
        )
    return failed(
        f"the call failed: {error.message}",
        "if name, port and TLS are fine, something between does not pass gRPC (HTTP/2), or the coordinator is starting",
        kind=type(error),
    )


def clock_skew(answer: Answer) -> Result:
    """This machine's clock against the coordinator's, as far as the time on the way allows."""
    if answer.server_time is None:
        return skipped("the coordinator does not tell its time")
    skew = clocks.difference(answer.server_time, asked=answer.asked, answered=answer.answered)
    if abs(skew) < clocks.NOTED_SKEW:
        seconds = max(abs(skew).total_seconds(), (answer.answered - answer.asked).total_seconds())
        return ok(f"within {seconds:.1f} s of the coordinator's")
    if abs(skew) > clocks.MOST_SKEW:
        return failed(clocks.told(skew), clocks.ACTION, kind=ClockWrong)
    return warning(clocks.told(skew), clocks.ACTION)
