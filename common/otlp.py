"""Spans by OpenTelemetry, sent by OTLP over gRPC. Loaded by `common.tracing` alone, where a collector is named."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final, cast

import grpc
import structlog
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from common.rpc.handlers import Context, Handler, behaviour_of, with_behaviour

Attributes = Mapping[str, str | int]

ROUND_SPAN: Final = "round"
EXPORT_SECONDS: Final = 5
_SAMPLED: Final = trace.TraceFlags(trace.TraceFlags.SAMPLED)
_PROPAGATOR: Final = TraceContextTextMapPropagator()
# Fields of requests and of the log's context that name what a call is about.
_SUBJECT: Final = ("run", "round", "epoch")


class Traces:
    """One process's spans. Methods are for any thread."""

    def __init__(self, endpoint: str, ca: bytes | None, resource: Mapping[str, str], *, federation: str) -> None:
        """ca: PEM, None for the system's."""
        self._federation = federation
        is_plain = endpoint.startswith("http://")
        exporter = OTLPSpanExporter(
            endpoint=endpoint,
            insecure=is_plain,
            credentials=None if is_plain else grpc.ssl_channel_credentials(ca),
            timeout=EXPORT_SECONDS,
        )
        self._ids = _Ids()
        # The environment's OTEL_ variables may add to the resource; nothing of ours is in them.
        self._provider = TracerProvider(
            resource=Resource.create(dict(resource)), id_generator=self._ids, shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("accord")

    def close(self) -> None:
        """Send what has not been sent, for a few seconds at most."""
        self._provider.force_flush(EXPORT_SECONDS * 1000)
        self._provider.shutdown()

    @contextmanager
    def span(self, name: str, *, run: str, round_: int | None, attributes: Attributes) -> Iterator[None]:
        parent = _parent(self._federation, run, round_)
        with self._tracer.start_as_current_span(name, context=parent, attributes=_about(run, round_, attributes)):
            yield

    def over(
        self, name: str, *, run: str, round_: int, started: datetime, ended: datetime, attributes: Attributes
    ) -> None:
        self._tracer.start_span(
            name,
            context=_in_round(self._federation, run, round_),
            attributes=_about(run, round_, attributes),
            start_time=_nanoseconds(started),
        ).end(_nanoseconds(ended))

    def round_over(self, *, run: str, round_: int, started: datetime, ended: datetime, attributes: Attributes) -> None:
        with self._ids.given(*_round_ids(self._federation, run, round_)):
            made = self._tracer.start_span(
                ROUND_SPAN,
                context=contexts.Context(),
                attributes=_about(run, round_, attributes),
                start_time=_nanoseconds(started),
            )
        made.end(_nanoseconds(ended))

    def traced_channel(self, channel: grpc.Channel) -> grpc.Channel:
        interceptor = _ClientSpans(self._tracer, self._federation)
        return grpc.intercept_channel(channel, cast(Any, interceptor))

    def server_interceptor(self) -> grpc.aio.ServerInterceptor:
        return _ServerSpans(self._tracer)


class _Ids(IdGenerator):
    """Random ids, but for the spans that two processes must be able to name without having spoken."""

    def __init__(self) -> None:
        self._random = RandomIdGenerator()
        self._given: ContextVar[tuple[int, int] | None] = ContextVar("given_ids", default=None)

    @contextmanager
    def given(self, trace_id: int, span_id: int) -> Iterator[None]:
        token = self._given.set((trace_id, span_id))
        try:
            yield
        finally:
            self._given.reset(token)

    def generate_trace_id(self) -> int:
        given = self._given.get()
        return given[0] if given is not None else self._random.generate_trace_id()

    def generate_span_id(self) -> int:
        given = self._given.get()
        return given[1] if given is not None else self._random.generate_span_id()


def _round_ids(federation: str, run: str, round_: int) -> tuple[int, int]:
    """Ids of a round's trace and of its outermost span. Both are public: a collector tells them to whoever looks."""
    digest = hashlib.sha256(f"accord/trace/v1/{federation}/{run}/{round_}".encode()).digest()
    return int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:24], "big")


def _in_round(federation: str, run: str, round_: int) -> contexts.Context:
    trace_id, span_id = _round_ids(federation, run, round_)
    parent = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=_SAMPLED)
    return trace.set_span_in_context(trace.NonRecordingSpan(parent), contexts.Context())


def _parent(federation: str, run: object, round_: object) -> contexts.Context | None:
    """Of a span about a round that is within no other one: the round. None: it is within another one, or alone."""
    if trace.get_current_span().get_span_context().is_valid:
        return None
    return _in_round(federation, run, round_) if isinstance(run, str) and run and isinstance(round_, int) else None


def _about(run: str, round_: int | None, attributes: Attributes) -> dict[str, str | int]:
    about: dict[str, str | int] = {f"accord.{name}": value for name, value in attributes.items()}
    if run:
        about["accord.run"] = run
    if round_ is not None:
        about["accord.round"] = round_
    return about


def _nanoseconds(time: datetime) -> int:
    return int(time.timestamp() * 1e9)


def _subject(fields: Callable[[str], object]) -> dict[str, str | int]:
    found = {f"accord.{name}": fields(name) for name in _SUBJECT}
    return {name: value for name, value in found.items() if isinstance(value, (str, int)) and value}


def _rpc(method: str) -> dict[str, str | int]:
    service, _, name = method.removeprefix("/").rpartition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}


class _ClientSpans(
    grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamUnaryClientInterceptor
):
    """A span for each call, ended when its answer is complete; outside of others it is the named round's."""

    def __init__(self, tracer: trace.Tracer, federation: str) -> None:
        self._tracer = tracer
        self._federation = federation

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._call(continuation, client_call_details, request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._call(continuation, client_call_details, request)

    def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return self._call(continuation, client_call_details, request_iterator)

    def _call(self, continuation: Any, details: Any, request: Any) -> Any:
        method = details.method.decode() if isinstance(details.method, bytes) else details.method
        bound = structlog.contextvars.get_contextvars()
        subject = _subject(lambda name: getattr(request, name, None) or bound.get(name))
        made = self._tracer.start_span(
            f"call {method.rpartition('/')[2]}",
            context=_parent(self._federation, subject.get("accord.run"), subject.get("accord.round")),
            kind=trace.SpanKind.CLIENT,
            attributes=_rpc(method) | subject,
        )
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, context=trace.set_span_in_context(made))
        call = continuation(_WithMetadata(details, [*(details.metadata or ()), *carrier.items()]), request)

        def ended(done: Any) -> None:
            code = done.code()
            made.set_attribute("rpc.grpc.status_code", code.value[0])
            if code is not grpc.StatusCode.OK:
                made.set_status(trace.StatusCode.ERROR, code.name)
            made.end()

        call.add_done_callback(ended)
        return call


class _WithMetadata(grpc.ClientCallDetails):
    """The details of a call with other metadata."""

    def __init__(self, details: Any, metadata: Sequence[tuple[str, str]]) -> None:
        self.method = details.method
        self.timeout = details.timeout
        self.metadata = tuple(metadata)
        self.credentials = details.credentials
        self.wait_for_ready = details.wait_for_ready
        self.compression = details.compression


class _ServerSpans(grpc.aio.ServerInterceptor):
    """A span for each served call, within the caller's. Stands inside the guard: who is refused leaves none."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith("/accord."):
            return handler  # probes and reflection are nobody's work
        method, serve = handler_call_details.method, behaviour_of(handler)
        metadata = {str(key): str(value) for key, value in handler_call_details.invocation_metadata or ()}
        parent = _PROPAGATOR.extract(metadata, context=contexts.Context())

        def opened(request: object) -> trace.Span:
            return self._tracer.start_span(
                f"serve {method.rpartition('/')[2]}",
                context=parent,
                kind=trace.SpanKind.SERVER,
                attributes=_rpc(method) | _subject(lambda name: getattr(request, name, None)),
            )

        if handler.response_streaming:

            async def stream(request: object, context: Context) -> AsyncIterator[object]:
                # Not the present span of this task: a generator may be closed in another one.
                made = opened(request)
                try:
                    async with aclosing(cast("AsyncGenerator[object, None]", serve(request, context))) as messages:
                        async for message in messages:
                            yield message
                finally:
                    made.end()

            return with_behaviour(handler, stream)

        async def answer(request: object, context: Context) -> object:
            with trace.use_span(opened(request), end_on_exit=True, record_exception=False):
                return await cast("Awaitable[object]", serve(request, context))

        return with_behaviour(handler, answer)
