"""The driver's leases: kept while a step is at work, and given back at the end, whatever was taken last."""

from __future__ import annotations

import asyncio
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.clock import SystemClock
from coordinator.driver import loop
from coordinator.driver.loop import Driver
from coordinator.wakeups import Wakeups

RUN = "autumn"


class Leases:
    """The part of a store that keeps leases."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.given_back = threading.Event()

    def acquire_lease(self, name: str, *, holder: str, now: datetime, until: datetime) -> bool:
        self.held.add(name)
        return True

    def release_lease(self, name: str, *, holder: str) -> None:
        self.held.discard(name)


class LateDriver(Driver):
    """Its step takes a lease as late as it can: after leases were given back, if that can be."""

    leases: Leases
    begun: threading.Event
    ended: threading.Event

    def step_all(self) -> float:
        self.begun.set()
        self.leases.given_back.wait(0.2)
        self._require_lease(RUN)
        self.ended.set()
        return 60.0

    def _release(self) -> None:
        super()._release()
        self.leases.given_back.set()


async def test_a_driver_that_is_stopped_in_a_step_leaves_no_lease_behind(tmp_path: Path) -> None:
    leases = Leases()
    driver = LateDriver(
        store=cast(Any, leases),
        blobs=cast(Any, None),
        wakeups=Wakeups(),
        clock=SystemClock(),
        signing_key=Ed25519PrivateKey.generate(),
        scratch=tmp_path,
        observer=cast(Any, None),
        holder="this one",
        kept_rounds=3,
    )
    driver.leases, driver.begun, driver.ended = leases, threading.Event(), threading.Event()
    running = asyncio.create_task(driver.run())
    await asyncio.to_thread(driver.begun.wait)

    running.cancel()
    await asyncio.wait({running})
    await asyncio.to_thread(driver.ended.wait)

    assert leases.given_back.is_set()
    assert leases.held == set(), "the next coordinator would wait for the lease to run out"


class BusyDriver(LateDriver):
    """Its step takes longer than a lease."""

    release: threading.Event

    def step_all(self) -> float:
        self._require_lease(RUN)
        self.begun.set()
        self.release.wait()
        self.ended.set()
        return 60.0


class CountedLeases(Leases):
    def __init__(self) -> None:
        super().__init__()
        self.acquired = threading.Semaphore(0)

    def acquire_lease(self, name: str, *, holder: str, now: datetime, until: datetime) -> bool:
        self.acquired.release()
        return super().acquire_lease(name, holder=holder, now=now, until=until)


async def test_a_lease_is_renewed_beside_a_step_that_takes_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LEASE", timedelta(milliseconds=40))
    leases = CountedLeases()
    driver = BusyDriver(
        store=cast(Any, leases),
        blobs=cast(Any, None),
        wakeups=Wakeups(),
        clock=SystemClock(),
        signing_key=Ed25519PrivateKey.generate(),
        scratch=tmp_path,
        observer=cast(Any, None),
        holder="this one",
        kept_rounds=3,
    )
    driver.leases, driver.begun, driver.ended, driver.release = leases, *(threading.Event() for _ in range(3))
    running = asyncio.create_task(driver.run())
    for _ in range(3):  # once by the step, the others while it is at work
        await asyncio.to_thread(leases.acquired.acquire)
    assert not driver.ended.is_set()

    running.cancel()
    driver.release.set()
    await asyncio.wait({running})
    assert leases.held == set()
