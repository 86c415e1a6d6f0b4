"""The guard of every listener: who calls, may they, were they revoked, and what an error looks like from outside.

It is the outermost interceptor. Deny by default: a method without a rule has no callers. Handlers raise errors of
`common.errors`; anything else is logged with its traceback and leaves as a bare INTERNAL, since the text of an
exception is nobody's business outside. Handlers must be coroutines or async generators.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NoReturn, Protocol, cast

import grpc

from common.clock import Clock
from common.errors import (
    AccordError,
    CertificateRevoked,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
)
from common.identifiers import FederationId, Role
from common.log import bound, get_logger
from common.rpc.channels import TIME_METADATA, VERSION_METADATA
from common.rpc.handlers import Context, Handler, Unreadable, behaviour_of, reading_anything
from common.rpc.identity import ANONYMOUS, Caller, CallerReader, set_current_caller
from common.rpc.status import status_code, to_status
from common.version import software_version

log: Final = get_logger(__name__)

RECHECK_SECONDS: Final = 2.0

Rules = Mapping[str, frozenset[Role]]
OnCall = Callable[[str, grpc.StatusCode, float], None]
OnRefused = Callable[[str, Caller, str, AccordError], None]
OnAnswered = Callable[[str, Caller], None]


class Revocations(Protocol):
    """Who may no longer call, though its certificate still verifies."""

    async def check(self, caller: Caller) -> None:
        """Raises CertificateRevoked if the caller or its certificate was revoked."""


class NobodyRevoked:
    """For listeners whose callers have no certificate."""

    async def check(self, caller: Caller) -> None:
        return None


def check_rule(rules: Rules, method: str, caller: Caller) -> None:
    """Raises Unauthenticated or PermissionDenied unless a rule lets the caller's role call the method."""
    allowed = rules.get(method, frozenset())
    if caller.role in allowed:
        return
    if caller.role is Role.ANONYMOUS:
        raise Unauthenticated("this call needs a client certificate")
    if not allowed:
        raise PermissionDenied(f"nobody may call {method}: there is no rule for it")
    may = ", ".join(sorted(role.value for role in allowed))
    raise PermissionDenied(f"{caller.actor} has role {caller.role.value}; {method} is for: {may}")


def check_not_over(caller: Caller, *, now: datetime) -> None:
    """Raises Unauthenticated at the end of the certificate's life.

    The handshake checked it once; a connection may outlive the certificate by months.
    """
    if caller.not_after is not None and now >= caller.not_after:
        raise Unauthenticated(f"the certificate of {caller.actor} expired at {caller.not_after.isoformat()}; renew it")


def _not_measured(method: str, code: grpc.StatusCode, seconds: float) -> None:
    return None


def _not_told(method: str, caller: Caller, peer: str, error: AccordError) -> None:
    return None


def _not_heard(method: str, caller: Caller) -> None:
    return None


def _not_proven(peer: str, actor: str) -> None:
    return None


@dataclass(eq=False, slots=True)
class _OpenCall:
    """A call that is being served, and the error it was ended with from outside."""

    caller: Caller
    task: asyncio.Task[Any]
    refusal: AccordError | None = None


class CallGuard(grpc.aio.ServerInterceptor):
    """Lets a call through to its handler, or ends it with the status of a typed error.

    rules: roles by method, "accord.v1.RoundService/GetPlan". on_call(method, code, seconds): called once per call of a
    known method. Open calls are checked anew every `recheck_seconds`, so that a revocation or the end of a
    certificate's life also ends a stream; `recheck` does it at once.

    on_refused(method, caller, peer, error): called once per call that an error ended. on_answered(method, caller): once
    per call that was answered. on_known(peer, actor): somebody
    with a certificate that counts has called over this connection. most_open_calls: how many calls one caller (one
    address without a certificate) may have open at once; 0 for any number.
    """

    def __init__(
        self,
        *,
        federation: FederationId,
        rules: Rules,
        revocations: Revocations,
        clock: Clock,
        on_call: OnCall = _not_measured,
        on_refused: OnRefused = _not_told,
        on_answered: OnAnswered = _not_heard,
        on_known: Callable[[str, str], None] = _not_proven,
        most_open_calls: int = 0,
        recheck_seconds: float = RECHECK_SECONDS,
        stopwatch: Callable[[], float] = time.monotonic,
    ) -> None:
        self._callers = CallerReader(federation)
        self._rules = rules
        self._revocations = revocations
        self._clock = clock
        self._on_call = on_call
        self._on_refused = on_refused
        self._on_answered = on_answered
        self._on_known = on_known
        self._most_open_calls = most_open_calls
        self._open_of: Counter[str] = Counter()
        self._recheck_seconds = recheck_seconds
        self._stopwatch = stopwatch
        self._version = software_version()
        self._open: set[_OpenCall] = set()
        self._watch: asyncio.Task[None] | None = None

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # the library answers UNIMPLEMENTED
        return self._guarded(handler_call_details.method.removeprefix("/"), handler)

    async def recheck(self) -> None:
        """Check the callers of all open calls, and end the calls of those who may no longer call."""
        calls_of: dict[Caller, list[_OpenCall]] = {}
        for call in self._open:
            calls_of.setdefault(call.caller, []).append(call)
        for caller, calls in calls_of.items():
            try:
                await self._check_caller(caller)
            except (CertificateRevoked, Unauthenticated, PermissionDenied) as error:
                for call in calls:
                    if call in self._open:  # it may have ended while its caller was looked up
                        call.refusal = error
                        call.task.cancel()
            except AccordError as error:
                # The store does not answer: new calls fail for that reason, open ones are asked again next time.
                log.warning("open_calls_not_rechecked", caller=caller.actor, reason=error.reason, error=str(error))

    # --- one call ----------------------------------------------------------------------------------------------

    def _guarded(self, method: str, handler: Handler) -> Handler:
        """The same handler, with the guard around its behaviour."""
        serve = behaviour_of(handler)
        produce = _written if handler.response_streaming else _awaited
        readable = _readable_stream if handler.request_streaming else _readable

        async def guarded(request: object, context: Context) -> object:
            return await self._serve(method, context, lambda: produce(serve(readable(request), context), context))

        return reading_anything(handler, guarded)

    async def _serve(self, method: str, context: Context, produce: Callable[[], Awaitable[object]]) -> object:
        """Run one call and end it with the right status, whatever happens."""
        started = self._stopwatch()
        code = grpc.StatusCode.OK
        # Beside whatever the answer is, so that a participant's preflight can tell a wrong clock.
        context.set_trailing_metadata(self._facts())
        try:
            with bound(method=method):
                return await self._answer(method, context, produce)
        except AccordError as error:
            code = status_code(error)
            await self._refuse(context, error)
        except grpc.aio.AbortError:  # health and reflection end their calls themselves
            code = _code_of(context)
            raise
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.InternalError as error:  # the caller has gone in the middle of an answer
            code = grpc.StatusCode.CANCELLED
            raise asyncio.CancelledError from error
        except Exception:
            code = grpc.StatusCode.INTERNAL
            log.exception("rpc_failed", method=method)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")
        finally:
            self._on_call(method, code, self._stopwatch() - started)

    async def _answer(self, method: str, context: Context, produce: Callable[[], Awaitable[object]]) -> object:
        caller = ANONYMOUS
        try:
            caller = self._callers.read(context.auth_context())
            check_rule(self._rules, method, caller)
            await self._check_caller(caller)
            set_current_caller(caller)
            if caller.role is not Role.ANONYMOUS:
                self._on_known(context.peer(), caller.actor)
                context.set_trailing_metadata((*self._facts(), (VERSION_METADATA, self._version)))
            with bound(caller=caller.actor), self._opened(caller, context.peer()) as call:
                try:
                    answer = await produce()
                except asyncio.CancelledError:
                    if call.refusal is None:
                        raise  # the client has gone, or the server stops
                    call.task.uncancel()
                    raise call.refusal from None
                if call.refusal is not None:  # the handler held on to its answer when it was cancelled
                    raise call.refusal
                self._on_answered(method, caller)
                return answer
        except AccordError as error:
            # Whoever is refused for making too many calls would fill the log as well; the audit log counts them.
            tell = log.debug if isinstance(error, ResourceExhausted) else log.info
            tell("rpc_refused", caller=caller.actor, reason=error.reason, error=str(error), cause=_cause(error))
            self._on_refused(method, caller, context.peer(), error)
            raise

    def _facts(self) -> tuple[tuple[str, str], ...]:
        return ((TIME_METADATA, self._clock.now().isoformat()),)

    async def _refuse(self, context: Context, error: AccordError) -> NoReturn:
        await context.abort_with_status(to_status(error))

    async def _check_caller(self, caller: Caller) -> None:
        if caller.role is Role.ANONYMOUS:
            return
        check_not_over(caller, now=self._clock.now())
        await self._revocations.check(caller)

    # --- open calls --------------------------------------------------------------------------------------------

    @contextmanager
    def _opened(self, caller: Caller, peer: str) -> Iterator[_OpenCall]:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call is served outside a task")
        # Without a certificate the address is all that tells one caller from another.
        key = peer.rpartition(":")[0] if caller.role is Role.ANONYMOUS else caller.actor
        if self._most_open_calls and self._open_of[key] >= self._most_open_calls:
            raise ResourceExhausted(
                f"{key} has {self._most_open_calls} calls open, which is as many as one caller may; end some first"
            )
        self._open_of[key] += 1
        call = _OpenCall(caller=caller, task=task)
        if caller.role is not Role.ANONYMOUS:
            self._open.add(call)
            self._keep_watch()
        try:
            yield call
        finally:
            self._open.discard(call)
            self._open_of[key] -= 1
            if not self._open_of[key]:
                del self._open_of[key]
            if not self._open and self._watch is not None:
                self._watch.cancel()  # else it would still sleep when the server has stopped and its loop is closed
                self._watch = None

    def _keep_watch(self) -> None:
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._recheck_while_open(), name="recheck-open-calls")

    async def _recheck_while_open(self) -> None:
        while self._open:
            await asyncio.sleep(self._recheck_seconds)
            try:
                await self.recheck()
            except Exception:
                # Never without a watch: the next turn tries again.
                log.exception("recheck_failed")


def _readable(request: object) -> object:
    """The request. Raises InvalidArgument for bytes that are no message of this call."""
    if isinstance(request, Unreadable):
        raise InvalidArgument(f"the request's {request.size_bytes} bytes are no message of this call")
    return request


async def _readable_stream(requests: object) -> AsyncGenerator[object]:
    async for request in cast("AsyncIterator[object]", requests):
        yield _readable(request)


async def _awaited(result: object, context: Context) -> object:
    if not isinstance(result, Awaitable):
        raise TypeError("a handler must be a coroutine function")
    return await result


async def _written(result: object, context: Context) -> None:
    """Write what an async generator yields; a coroutine (health's Watch) writes for itself."""
    if isinstance(result, AsyncGenerator):
        async with aclosing(result) as messages:  # its `finally` runs now, not when it is collected
            async for message in messages:
                await context.write(message)
    elif isinstance(result, Awaitable):
        await result
    else:
        raise TypeError("a streaming handler must be an async generator function or a coroutine function")


def _code_of(context: Context) -> grpc.StatusCode:
    code: object = context.code()  # the library hands out its own number, whatever the stubs say
    if isinstance(code, grpc.StatusCode):
        return code
    return next((known for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.UNKNOWN)


def _cause(error: AccordError) -> str | None:
    return repr(error.__cause__) if error.__cause__ is not None else None
