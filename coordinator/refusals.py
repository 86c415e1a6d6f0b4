"""Refused calls in metrics and audit log, so that neither a mistake nor an attack goes unseen, nor fills the log.

Of one caller and one reason the first refusal is a line at once; those that follow are counted, and a line says how
many there were when the period is over. Of all callers together there are so many lines in a period, and one more that
counts the rest: whoever opens a thousand connections writes a few lines, whatever it calls itself.
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
from coordinator.store.interface import Store

PERIOD_SECONDS: Final = 600.0
MOST_LINES: Final = 100
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
    """One line for the audit log. count: refusals that it stands for."""

    actor: str
    reason: str
    method: str
    message: str
    count: int


@dataclass(slots=True)
class _Count:
    began: float
    method: str
    message: str
    more: int = 0


@dataclass(slots=True)
class RefusalBook:
    """Decides which refusals are lines. Pure: times are the caller's, in seconds."""

    period_seconds: float = PERIOD_SECONDS
    most_lines: int = MOST_LINES
    _counts: dict[tuple[str, str], _Count] = field(default_factory=dict)
    _ready: list[Line] = field(default_factory=list)
    _began: float = 0.0
    _written: int = 0
    _unlisted: int = 0

    def note(self, actor: str, reason: str, *, method: str, message: str, now: float) -> None:
        """Count one refusal."""
        self._turn(now)
        known = self._counts.get((actor, reason))
        if known is not None:
            known.more += 1
        elif self._written < self.most_lines:
            self._written += 1
            self._counts[actor, reason] = _Count(now, method, message)
            self._ready.append(Line(actor, reason, method, message, 1))
        else:
            self._unlisted += 1

    def take(self, now: float) -> list[Line]:
        """The lines that are due."""
        self._turn(now)
        ready, self._ready = self._ready, []
        return ready

    def _turn(self, now: float) -> None:
        """Begin another period where one is over, with the lines that count what followed the first of each."""
        if now - self._began < self.period_seconds:
            return
        for (actor, reason), count in self._counts.items():
            if count.more:
                self._ready.append(Line(actor, reason, count.method, count.message, count.more))
        if self._unlisted:
            message = f"the log takes {self.most_lines} callers and reasons in {self.period_seconds:.0f} s"
            self._ready.append(Line("many", "NOT_LISTED", "", message, self._unlisted))
        self._counts.clear()
        self._began, self._written, self._unlisted = now, 0, 0


class Refusals:
    """Hears of refusals on the event loop, counts them, and writes the lines. `run` is a task of that loop."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        on_refused: Callable[[str, str], None],
        book: RefusalBook | None = None,
        stopwatch: Callable[[], float] = time.monotonic,
    ) -> None:
        """on_refused: hears role and reason of each, for the metric."""
        self._store = store
        self._clock = clock
        self._on_refused = on_refused
        self._stopwatch = stopwatch
        self._book = book or RefusalBook(_began=stopwatch())

    def call(self, method: str, caller: Caller, peer: str, error: AccordError) -> None:
        """A call was refused. An operator's is always told; of others what an ordinary day brings is not."""
        if isinstance(error, ORDINARY) and not caller.role.is_operator:
            return
        self._on_refused(caller.role.value, error.reason)
        actor = f"{ADDRESS}/{_host(peer)}" if caller.role is Role.ANONYMOUS else caller.actor
        self._note(actor, error.reason, method, error.message)

    def connection(self, address: str, actor: str, reason: str) -> None:
        """A connection was shut down. actor: who has called over it, "" where nobody was known to be behind it."""
        self._on_refused(Role.ANONYMOUS.value, reason)
        self._note(actor or f"{ADDRESS}/{address}", reason, "", f"connections from {address} were shut down")

    def _note(self, actor: str, reason: str, method: str, message: str) -> None:
        self._book.note(actor, reason, method=method, message=message[:500], now=self._stopwatch())

    async def run(self) -> None:
        """Write what is due until cancelled."""
        while True:
            await asyncio.sleep(WRITE_EVERY_SECONDS)
            await self.write()

    async def write(self) -> None:
        """Write the lines that are due now."""
        lines = self._book.take(self._stopwatch())
        if not lines:
            return
        try:
            await asyncio.to_thread(self._append, lines)
        except AccordError as error:
            log.error("refusals_not_written", count=len(lines), reason=error.reason, message=error.message)

    def _append(self, lines: list[Line]) -> None:
        with self._store.write() as writer:
            for line in lines:
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


def _host(peer: str) -> str:
    """The address of a peer without its port, which changes with every connection."""
    return peer.partition(":")[2].rpartition(":")[0].replace("%5B", "").replace("%5D", "") or "unknown"
