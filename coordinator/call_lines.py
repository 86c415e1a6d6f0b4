"""Calls in the audit log: those that were refused, and those that only read and leave no line of their own.

Of one caller and one kind the first call is a line at once; those that follow are counted, and a line says how many
there were when the period is over. Of all callers together there are so many lines in a period, and one more that
counts the rest: whoever opens a thousand connections writes a few lines, whatever it calls itself; and a page that is
looked at all day is a line a day for each call that it makes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from common import errors
from common.clock import Clock
from common.errors import AccordError
from common.identifiers import Role
from common.log import get_logger
from common.rpc.identity import Caller
from coordinator import audit_lines
from coordinator.authorization import READING
from coordinator.store.interface import Store

REFUSALS_SECONDS: Final = 600.0
MOST_REFUSALS: Final = 100
READS_SECONDS: Final = 86_400.0
MOST_READS: Final = 1000
WRITE_EVERY_SECONDS: Final = 1.0
ADDRESS: Final = "address"

# What a participant's ordinary day brings: asked too early, twice, or while the coordinator is away.
ORDINARY: Final = (
    errors.OutOfTurn,
    errors.NotFound,
    errors.AlreadyExists,
    errors.TransitionNotAllowed,
    errors.VersionConflict,
    errors.LeaseLost,
    errors.UploadIncomplete,
    errors.Unavailable,
    errors.StorageFailed,
)

log: Final = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Line:
    """One line for the audit log. reason: of a refusal; "" for a call that was answered. count: calls it stands for."""

    actor: str
    method: str
    reason: str
    message: str
    count: int


@dataclass(slots=True)
class _Count:
    method: str
    reason: str
    message: str
    more: int = 0


@dataclass(slots=True)
class CallBook:
    """Decides which calls are lines: each actor's of each kind. Pure: times are the caller's, in seconds."""

    period_seconds: float
    most_lines: int
    _counts: dict[tuple[str, str], _Count] = field(default_factory=dict)
    _ready: list[Line] = field(default_factory=list)
    _began: float = 0.0
    _written: int = 0
    _unlisted: int = 0

    def note(self, actor: str, method: str, *, reason: str = "", message: str = "", now: float) -> None:
        """Count one call. Its kind is a refusal's reason, or the method of one that was answered."""
        self._turn(now)
        kind = reason or method
        known = self._counts.get((actor, kind))
        if known is not None:
            known.more += 1
        elif self._written < self.most_lines:
            self._written += 1
            self._counts[actor, kind] = _Count(method, reason, message)
            self._ready.append(Line(actor, method, reason, message, 1))
        else:
            self._unlisted += 1

    def take(self, now: float) -> list[Line]:
        """The lines that are due."""
        self._turn(now)
        ready, self._ready = self._ready, []
        return ready

    def close(self, now: float) -> list[Line]:
        """The lines that are due, and those that count what followed until now: nobody counts on."""
        self._settle(now)
        return self.take(now)

    def _turn(self, now: float) -> None:
        """Begin another period where one is over."""
        if now - self._began >= self.period_seconds:
            self._settle(now)

    def _settle(self, now: float) -> None:
        """End the period with the lines that count what followed the first of each."""
        for (actor, _), count in self._counts.items():
            if count.more:
                self._ready.append(Line(actor, count.method, count.reason, count.message, count.more))
        if self._unlisted:
            message = f"the log takes {self.most_lines} callers and kinds of call in {self.period_seconds:.0f} s"
            self._ready.append(Line("many", "", "NOT_LISTED", message, self._unlisted))
        self._counts.clear()
        self._began, self._written, self._unlisted = now, 0, 0


class CallLines:
    """Hears of calls on the event loop, counts them, and writes the lines. `run` is a task of that loop."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        on_refused: Callable[[str, str], None],
        stopwatch: Callable[[], float] = time.monotonic,
    ) -> None:
        """on_refused: hears role and reason of each refusal, for the metric."""
        self._store = store
        self._clock = clock
        self._on_refused = on_refused
        self._stopwatch = stopwatch
        self._refused = CallBook(REFUSALS_SECONDS, MOST_REFUSALS, _began=stopwatch())
        self._answered = CallBook(READS_SECONDS, MOST_READS, _began=stopwatch())

    def answered(self, method: str, caller: Caller) -> None:
        """A call was answered. All that change something write a line of their own, in their own transaction."""
        if method in READING:
            self._answered.note(caller.actor, method, now=self._stopwatch())

    def refused(self, method: str, caller: Caller, peer: str, error: AccordError) -> None:
        """A call was refused. An operator's is always told; of others what an ordinary day brings is not."""
        if isinstance(error, ORDINARY) and not caller.role.is_operator:
            return
        self._on_refused(caller.role.value, error.reason)
        actor = f"{ADDRESS}/{_host(peer)}" if caller.role is Role.ANONYMOUS else caller.actor
        self._note_refusal(actor, method, error.reason, error.message)

    def disconnected(self, address: str, actor: str, reason: str) -> None:
        """A connection was shut down. actor: who has called over it, "" where nobody was known to be behind it."""
        self._on_refused(Role.ANONYMOUS.value, reason)
        self._note_refusal(actor or f"{ADDRESS}/{address}", "", reason, f"connections from {address} were shut down")

    def _note_refusal(self, actor: str, method: str, reason: str, message: str) -> None:
        self._refused.note(actor, method, reason=reason, message=message[:500], now=self._stopwatch())

    async def run(self) -> None:
        """Write what is due until cancelled."""
        while True:
            await asyncio.sleep(WRITE_EVERY_SECONDS)
            now = self._stopwatch()
            await self._write(self._refused.take(now), self._answered.take(now))

    async def close(self) -> None:
        """Write what is due and what was counted: nothing is heard any more."""
        now = self._stopwatch()
        await self._write(self._refused.close(now), self._answered.close(now))

    async def _write(self, refused: list[Line], answered: list[Line]) -> None:
        if not refused and not answered:
            return
        try:
            await asyncio.to_thread(self._append, refused, answered)
        except AccordError as error:
            count = len(refused) + len(answered)
            log.error("calls_not_written", count=count, reason=error.reason, message=error.message)

    def _append(self, refused: list[Line], answered: list[Line]) -> None:
        with self._store.write() as writer:
            for line in refused:
                audit_lines.append(
                    writer,
                    self._clock,
                    actor=line.actor,
                    action="call_refused",
                    subject=line.method,
                    reason=line.reason,
                    message=line.message,
                    count=line.count,
                )
            for line in answered:
                audit_lines.append(
                    writer, self._clock, actor=line.actor, action="call_answered", subject=line.method, count=line.count
                )


def _host(peer: str) -> str:
    """The address of a peer without its port, which changes with every connection."""
    return peer.partition(":")[2].rpartition(":")[0].replace("%5B", "").replace("%5D", "") or "unknown"
