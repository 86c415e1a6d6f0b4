"""Tells the service manager, from within the event loop, that the coordinator gets on and what it does.

Alive means what it means to a probe: the loop turns and the driver comes round. A coordinator that waits for its
database is alive and not ready; it is not restarted, and the status line says what it waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from common.errors import AccordError
from common.log import get_logger
from common.service_manager import ServiceManager
from common.states import RunState
from coordinator.services.health import Readiness
from coordinator.store.interface import Reader, Store

STATUS_EVERY_SECONDS: Final = 5.0
SIGNS_PER_WATCHDOG: Final = 4
MOST_RUNS: Final = 3

_OPEN: Final = tuple(state for state in RunState if not state.is_over)

log: Final = get_logger(__name__)


class Watch:
    """`run` is to be a task of the event loop that serves the calls."""

    def __init__(
        self,
        manager: ServiceManager,
        *,
        store: Store,
        check_driver: Callable[[], Awaitable[None]],
        readiness: Callable[[], Readiness],
    ) -> None:
        """check_driver: raises while the driver hangs."""
        self._manager = manager
        self._store = store
        self._check_driver = check_driver
        self._readiness = readiness

    async def run(self) -> None:
        """Tell until cancelled."""
        watchdog = self._manager.watchdog_seconds
        pause = min(STATUS_EVERY_SECONDS, watchdog / SIGNS_PER_WATCHDOG) if watchdog else STATUS_EVERY_SECONDS
        while True:
            await asyncio.sleep(pause)
            try:
                await self._check_driver()
            except AccordError as error:
                log.error("driver_does_not_get_on", reason=error.reason, message=error.message)
                self._manager.status(error.message)
            else:
                self._manager.alive()
                self._manager.status(await self._status())

    async def _status(self) -> str:
        readiness = self._readiness()
        if not readiness.is_ready:
            return "not ready: " + "; ".join(f"{name}: {reason}" for name, reason in readiness.reasons.items())
        try:
            async with asyncio.timeout(STATUS_EVERY_SECONDS):
                return await asyncio.to_thread(self._read)
        except (AccordError, TimeoutError):
            return "serving; the database does not say what is going on"

    def _read(self) -> str:
        with self._store.read() as reader:
            return going_on(reader)


def going_on(reader: Reader) -> str:
    """The open runs and their rounds in one line."""
    runs = reader.runs(states=_OPEN).rows
    if not runs:
        return "serving; no run is going on"
    said = []
    for run in runs[:MOST_RUNS]:
        round_ = reader.round(run.name, run.latest_round) if run.latest_round else None
        where = f", round {round_.number} {round_.state.value}" if round_ is not None else ""
        said.append(f"run {run.name} {run.state.value}{where}")
    more = f"; and {len(runs) - MOST_RUNS} more" if len(runs) > MOST_RUNS else ""
    return f"serving; {'; '.join(said)}{more}"
