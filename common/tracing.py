"""Traces of both services: spans of calls, steps and jobs, where an operator has named a collector; else nothing.

Without `configure` every function here is a few instructions, and nothing of OpenTelemetry is loaded. With it, all that
belongs to a round is one trace, whoever saw it: its id follows from the names of federation and run and the round's
number alone, so that a coordinator that took over and a site that was restarted go on with the same one. Attributes are
names, numbers of rounds, phases and reasons: never a record, a figure, a key or a secret.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc

from common.errors import ConfigInvalid
from common.version import software_version

if TYPE_CHECKING:
    from common.otlp import Traces

EXTRA: Final = "pip install 'accord[tracing]'"

_traces: Traces | None = None


def configure(*, endpoint: str, ca: Path | None, service: str, instance: str, federation: str) -> Callable[[], None]:
    """Send spans to an OTLP collector from now on; returns what flushes and ends that. Once a process.

    endpoint: "http://HOST:PORT" or "https://HOST:PORT", "" for none. service: "accord-coordinator", say; instance:
    which one. Raises ConfigInvalid if OpenTelemetry is not installed or the CA's file cannot be read.
    """
    global _traces
    if not endpoint:
        return lambda: None
    try:
        module = importlib.import_module("common.otlp")
    except ImportError as error:
        raise ConfigInvalid(f"tracing.endpoint is set, and OpenTelemetry is not installed: {EXTRA}") from error
    try:
        trusted = ca.read_bytes() if ca is not None else None
    except OSError as error:
        raise ConfigInvalid(f"tracing.ca: cannot read {ca}: {error.strerror}") from error
    resource = {
        "service.name": service,
        "service.version": software_version(),
        "service.instance.id": instance,
        "accord.federation": federation,
    }
    made: Traces = module.Traces(endpoint, trusted, resource, federation=federation)
    _traces = made
    return _end


def _end() -> None:
    global _traces
    ending, _traces = _traces, None
    if ending is not None:
        ending.close()


@contextmanager
def span(name: str, *, run: str = "", round_: int | None = None, **attributes: str | int) -> Iterator[None]:
    """A span around the block: within the present one, or else in the trace of its round. An error is its status."""
    if _traces is None:
        yield
        return
    with _traces.span(name, run=run, round_=round_, attributes=attributes):
        yield


def over(name: str, *, run: str, round_: int, started: datetime, ended: datetime, **attributes: str | int) -> None:
    """A span of a round that is known once it is over, as a phase is."""
    if _traces is not None:
        _traces.over(name, run=run, round_=round_, started=started, ended=ended, attributes=attributes)


def round_over(*, run: str, round_: int, started: datetime, ended: datetime, **attributes: str | int) -> None:
    """The span that all others of a round lie in."""
    if _traces is not None:
        _traces.round_over(run=run, round_=round_, started=started, ended=ended, attributes=attributes)


def traced_channel(channel: grpc.Channel) -> grpc.Channel:
    """The channel, with a span around each call, which the other side goes on from."""
    return channel if _traces is None else _traces.traced_channel(channel)


def server_interceptors() -> tuple[grpc.aio.ServerInterceptor, ...]:
    """What a listener needs for spans of the calls that it serves."""
    return () if _traces is None else (_traces.server_interceptor(),)
