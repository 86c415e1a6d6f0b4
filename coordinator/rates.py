"""How often one caller may call: a token bucket for each, behind the guard that says who is calling."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Final

import grpc

from common.errors import ResourceExhausted
from common.identifiers import Role
from common.rpc.handlers import Context, Handler, behaviour_of, with_behaviour
from common.rpc.identity import current_caller

# Anonymous callers are told apart by their address; the oldest are forgotten, so that a flood fills no memory.
MOST_BUCKETS: Final = 10_000


# Participants' calls that leave a line in the audit log each time: an honest site makes a few of them in a round.
RECORDED: Final = frozenset(
    {
        "accord.v1.EnrollmentService/Enroll",
        "accord.v1.EnrollmentService/RenewCertificate",
        "accord.v1.RoundService/JoinRun",
        "accord.v1.RoundService/DeclineRun",
        "accord.v1.RoundService/ReportFailure",
        "accord.v1.SecureAggregationService/UploadMaskedUpdate",
        "accord.v1.SecureAggregationService/AuditChunks",
    }
)


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class RateLimit(grpc.aio.ServerInterceptor):
    """Ends a call with ResourceExhausted when its caller has used up its calls. Place it inside the guard.

    calls_per_second: how fast calls come back; burst: how many there are at most. Long polls and streams count once.
    methods: the calls that count, None for all.
    """

    def __init__(
        self,
        *,
        calls_per_second: float,
        burst: int,
        methods: Collection[str] | None = None,
        stopwatch: Callable[[], float] = time.monotonic,
    ) -> None:
        self._methods = methods
        self._rate = calls_per_second
        self._burst = burst
        self._stopwatch = stopwatch
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, caller: str) -> None:
        """Count one call. Raises ResourceExhausted that says when to try again."""
        self.require(caller)
        self._buckets[caller].tokens -= 1

    def require(self, caller: str) -> None:
        """Count nothing. Raises ResourceExhausted, that says when to try again, if a call would be one too many."""
        now = self._stopwatch()
        bucket = self._buckets.pop(caller, None) or _Bucket(float(self._burst), now)
        bucket.tokens = min(float(self._burst), bucket.tokens + (now - bucket.filled_at) * self._rate)
        bucket.filled_at = now
        self._buckets[caller] = bucket
        while len(self._buckets) > MOST_BUCKETS:
            self._buckets.popitem(last=False)
        if bucket.tokens < 1:
            seconds = (1 - bucket.tokens) / self._rate
            raise ResourceExhausted(
                f"{caller} makes more than {self._what()}; try again in {seconds:.1f} s",
                metadata={"retry_seconds": f"{seconds:.1f}"},
            )

    def _what(self) -> str:
        if self._methods is None:
            return f"{self._rate:g} calls a second"
        return f"{self._rate * 60:g} calls a minute that are kept in the audit log"

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method.removeprefix("/")
        return self._limited(handler) if self._methods is None or method in self._methods else handler

    def _limited(self, handler: Handler) -> Handler:
        """The same handler; a call is counted when it is served, which is after the guard has found its caller."""
        serve = behaviour_of(handler)

        def limited(request: object, context: Context) -> object:
            caller = current_caller()
            self.take(context.peer().rsplit(":", 1)[0] if caller.role is Role.ANONYMOUS else caller.actor)
            return serve(request, context)

        return with_behaviour(handler, limited)
