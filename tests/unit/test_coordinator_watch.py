"""When the coordinator says that it is alive, and what its status line says."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.errors import Unavailable
from common.service_manager import ServiceManager
from coordinator.services.health import Readiness
from coordinator.store.opening import open_store
from coordinator.store.schema import migrate
from coordinator.watch import Watch

READY = Readiness({}, datetime(2026, 3, 1, tzinfo=UTC))


@pytest.fixture
def store(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'coordinator.sqlite'}"
    migrate(url)
    store = open_store(url)
    yield store
    store.close()


class Ear:
    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    async def next(self) -> str:
        return (await asyncio.get_running_loop().sock_recv(self.socket, 4096)).decode()


@pytest.fixture
def ear(tmp_path):
    ear = Ear(tmp_path / "notify")
    yield ear
    ear.socket.close()


async def heard(ear: Ear, watch: Watch, messages: int) -> list[str]:
    task = asyncio.create_task(watch.run())
    try:
        return [await ear.next() for _ in range(messages)]
    finally:
        task.cancel()


async def gets_on() -> None:
    return None


async def hangs() -> None:
    raise Unavailable("the driver has not come round for an hour")


def watch_of(ear, store, *, check_driver=gets_on, readiness=READY) -> Watch:
    address = str(ear.socket.getsockname())
    return Watch(
        ServiceManager(address, watchdog_seconds=0.2),
        store=store,
        check_driver=check_driver,
        readiness=lambda: readiness,
    )


async def test_a_coordinator_whose_driver_comes_round_is_alive_and_says_what_goes_on(ear, store):
    first, status, again = await heard(ear, watch_of(ear, store), 3)
    assert first == again == "WATCHDOG=1"
    assert status == "STATUS=serving; no run is going on"


async def test_a_coordinator_that_waits_for_its_database_is_alive_and_says_what_it_waits_for(ear, store):
    waiting = Readiness({"database": "no answer within 5 s"}, READY.checked_at)
    first, status, again = await heard(ear, watch_of(ear, store, readiness=waiting), 3)
    assert first == again == "WATCHDOG=1"
    assert status == "STATUS=not ready: database: no answer within 5 s"


async def test_a_driver_that_hangs_is_not_said_to_be_alive(ear, store):
    watch = watch_of(ear, store, check_driver=hangs)
    assert await heard(ear, watch, 1) == ["STATUS=the driver has not come round for an hour"]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await heard(ear, watch, 1)
