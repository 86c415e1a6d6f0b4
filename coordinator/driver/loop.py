"""The driver's loop: wakes when something has changed or a deadline has come, and takes every due step of every run.

Several processes may drive one store: a run is driven by whoever holds its lease. A lease is short, and renewed beside
the work: a coordinator that dies is followed by another one in seconds. Leases go by the clocks of those who take them
(`coordinator.app` keeps those within seconds of the database's), and only save work: what makes a second driver
harmless is that every step is committed with a version check.
"""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common import tracing
from common.clock import Clock
from common.errors import AccordError, LeaseLost, VersionConflict
from common.log import bound, get_logger
from common.states import RunState
from coordinator.driver.epochs import step_epoch
from coordinator.driver.rounds import step_round
from coordinator.driver.runs import step_run
from coordinator.driver.work import Observer, View, Work, look
from coordinator.store.blobs import BlobStore
from coordinator.store.interface import Store
from coordinator.wakeups import FALLBACK_SECONDS, Wakeups

LEASE: Final = timedelta(seconds=6)
# A driver that has shown no sign of life for so long does not keep its leases.
STANDSTILL: Final = timedelta(minutes=5)
_ENDED: Final = tuple(state for state in RunState if state.is_over)
_STEPS: Final = (("run", step_run), ("epoch", step_epoch), ("round", step_round))
_OPEN: Final = tuple(state for state in RunState if not state.is_over)

log = get_logger(__name__)


class Driver:
    """Takes runs forward. `run` is the loop; `step_all` is one turn of it, for tests that move the clock."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: BlobStore,
        wakeups: Wakeups,
        clock: Clock,
        signing_key: Ed25519PrivateKey,
        scratch: Path,
        observer: Observer,
        holder: str,
        kept_rounds: int,
    ) -> None:
        """holder: in whose name leases are held; no two living processes have the same. kept_rounds: see `Work`."""
        self._wakeups = wakeups
        self._clock = clock
        self._store = store
        self._holder = holder
        self._leases: dict[str, datetime] = {}
        self._held_since: dict[str, datetime] = {}
        # Runs that another process drives, and when to ask for them again.
        self._others: dict[str, datetime] = {}
        self._leasing = threading.Lock()
        self._turned_at: datetime | None = None
        self._work = Work(store, blobs, clock, signing_key, scratch, observer, self._require_lease, kept_rounds)

    @property
    def turned_at(self) -> datetime | None:
        """When the loop has last been all the way round; a stale one means that the driver hangs."""
        return self._turned_at

    def driven_since(self, now: datetime) -> dict[str, datetime]:
        """Since when this process drives each run whose lease it holds at that time."""
        return {name: self._held_since[name] for name, until in self._leases.copy().items() if until > now}

    async def run(self) -> None:
        """Drive until cancelled. A step that fails is logged and tried again; the loop never ends by itself."""
        turn: asyncio.Future[float] | None = None
        keeper = asyncio.create_task(self._keep_leases(), name="leases")
        try:
            while True:
                ticket = self._wakeups.driver.ticket()
                turn = asyncio.ensure_future(asyncio.to_thread(self.step_all))
                wait = await asyncio.shield(turn)
                await self._wakeups.driver.wait(ticket, seconds=wait)
        finally:
            keeper.cancel()
            await asyncio.shield(self._end(turn))

    async def _keep_leases(self) -> None:
        """Renew what is held, whatever the step at work is waiting for."""
        while True:
            await asyncio.sleep(LEASE.total_seconds() / 4)
            try:
                await asyncio.to_thread(self._renew)
            except AccordError as error:
                log.warning("leases_not_renewed", reason=error.reason, message=error.message)

    async def _end(self, turn: asyncio.Future[float] | None) -> None:
        """Give the leases back. A turn goes on in its thread though nobody waits for it any more, and may take one."""
        if turn is not None:
            await asyncio.wait({turn})
        await asyncio.to_thread(self._release)

    def step_all(self) -> float:
        """Take every step that is due now, and return in how many seconds the next deadline comes."""
        wait = FALLBACK_SECONDS
        for name in self._runs():
            try:
                wait = min(wait, self._drive(name))
            except (LeaseLost, VersionConflict) as error:
                # Somebody else has moved the run; the next turn sees what they did.
                log.info("driver_step_overtaken", run=name, reason=type(error).reason)
                wait = 0.05
            except AccordError as error:
                self._work.observer.step_failed()
                log.error("driver_step_failed", run=name, reason=type(error).reason, message=error.message)
            except Exception:
                self._work.observer.step_failed()
                log.exception("driver_step_broken", run=name)
        self._turned_at = self._clock.now()
        return wait

    def _runs(self) -> list[str]:
        """Runs that may have work: the open ones, and those that ended last and may still want clearing up."""
        try:
            with self._store.read() as reader:
                open_runs = reader.runs(states=_OPEN).rows
                return [run.name for run in (*open_runs, *reader.runs(states=_ENDED, page_size=4).rows)]
        except AccordError as error:
            self._work.observer.step_failed()
            log.error("driver_cannot_read", reason=error.reason, message=error.message)
            return []

    def _drive(self, name: str) -> float:
        """All due steps of one run; seconds until its next deadline."""
        has_changed = False
        try:
            while True:
                if wait := self._seconds_of_another(name):
                    return wait
                with self._store.read() as reader:
                    view = look(reader, name, now=self._clock.now())
                if not self._has_work(view):
                    return FALLBACK_SECONDS
                if not self._take_lease(name):
                    continue
                if not self._step(view):
                    return _seconds_left(view)
                has_changed = True
        finally:
            # Once for all steps in a row: what lies between them asks nothing of any participant.
            if has_changed:
                self._wakeups.polls.ring()

    def _step(self, view: View) -> bool:
        """Take one due step of a run; False if none is due."""
        for name, step in _STEPS:
            started, began = time.monotonic(), self._clock.now()
            with bound(run=view.run.name, round=view.run.latest_round):
                is_taken = step(self._work, view)
            if is_taken:
                self._work.observer.step_taken(name, time.monotonic() - started)
                if view.round is not None:
                    number, state = view.round.number, view.round.state.value
                    ended = self._clock.now()
                    tracing.over(
                        f"step {name}", run=view.run.name, round_=number, started=began, ended=ended, phase=state
                    )
                return True
        return False

    def _has_work(self, view: View) -> bool:
        if view.run.state is RunState.RUNNING or view.round is not None:
            return True
        return view.epoch is not None and not view.epoch.state.is_over and view.run.state.is_over

    def _seconds_of_another(self, name: str) -> float:
        """How long not to ask for a run that another process drives; 0 for all others."""
        return max(0.0, (self._others.get(name, self._clock.now()) - self._clock.now()).total_seconds())

    def _take_lease(self, name: str) -> bool:
        """Hold the run's lease for at least half its length from now."""
        now = self._clock.now()
        if self._leases.get(name, now) > now + LEASE / 2:
            return True
        with self._leasing:
            return self._acquire(name)

    def _acquire(self, name: str) -> bool:
        now = self._clock.now()
        if not self._store.acquire_lease(_lease(name), holder=self._holder, now=now, until=now + LEASE):
            if self._leases.pop(name, None) is not None:
                self._work.observer.lease_lost()
                log.warning("lease_lost", run=name)
            self._others[name] = now + LEASE / 2
            return False
        self._others.pop(name, None)
        if self._leases.get(name, now) <= now:  # it had run out, or was never there
            self._held_since[name] = now
            log.info("lease_taken", run=name)
        self._leases[name] = now + LEASE
        return True

    def _renew(self) -> None:
        if self._turned_at is not None and self._clock.now() - self._turned_at > STANDSTILL:
            return
        for name in list(self._leases):
            with self._leasing:
                if name in self._leases:  # not given back meanwhile
                    self._acquire(name)

    def _require_lease(self, name: str) -> None:
        # Called from within long steps: a driver that is at work has not hung.
        self._turned_at = self._clock.now()
        if not self._take_lease(name):
            raise LeaseLost(f"another coordinator drives runs/{name} now")

    def _release(self) -> None:
        with self._leasing:
            for name in self._leases:
                self._store.release_lease(_lease(name), holder=self._holder)
            self._leases.clear()


def _lease(run: str) -> str:
    return f"runs/{run}"


def _seconds_left(view: View) -> float:
    """Until the next deadline of the run's round or key epoch."""
    deadlines = [FALLBACK_SECONDS]
    if view.round is not None:
        deadlines.append((view.round.deadline - view.now).total_seconds())
    if view.epoch is not None and view.epoch.state.is_setting_up:
        deadlines.append((view.epoch.deadline - view.now).total_seconds())
    return max(0.05, min(deadlines))
