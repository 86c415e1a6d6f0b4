"""Bells that ring in other coordinators on the same PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from coordinator.relay import Relay
from coordinator.store.opening import open_signals
from coordinator.store.signals import Signals
from coordinator.wakeups import Bell, Wakeups
from tests.postgresql import PostgresServer, postgres_server

# Longer than a lost word would ever be waited for here, shorter than a test may take.
LONG = 30.0


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as started:
        yield started


@pytest.fixture
def url(server: PostgresServer) -> str:
    return server.create()


def signals_of(url: str, name: str) -> Signals:
    signals = open_signals(url, name=name)
    assert signals is not None
    return signals


@asynccontextmanager
async def coordinator(url: str, name: str) -> AsyncIterator[Wakeups]:
    """The bells of one coordinator, once it listens to the others."""
    wakeups = Wakeups()
    begun = wakeups.driver.ticket()
    relay = asyncio.create_task(Relay(wakeups, signals_of(url, name)).run())
    await rung(begun)
    yield wakeups
    relay.cancel()
    await asyncio.wait({relay})


async def rung(ticket: asyncio.Event) -> None:
    async with asyncio.timeout(LONG):
        await ticket.wait()


def bells(wakeups: Wakeups) -> dict[str, Bell]:
    return {"driver": wakeups.driver, "polls": wakeups.polls}


@pytest.mark.parametrize(("bell", "other"), [("driver", "polls"), ("polls", "driver")])
async def test_a_ring_is_heard_by_the_same_bell_of_every_other_coordinator(url: str, bell: str, other: str) -> None:
    async with coordinator(url, "a") as a, coordinator(url, "b") as b, coordinator(url, "c") as c:
        heard = [bells(one)[bell].ticket() for one in (b, c)]
        silent = [bells(one)[other].ticket() for one in (a, b, c)]
        await asyncio.to_thread(bells(a)[bell].ring)
        for ticket in heard:
            await rung(ticket)
        assert not any(ticket.is_set() for ticket in silent)


async def test_a_ring_that_was_heard_is_not_told_again(url: str) -> None:
    async with coordinator(url, "a") as a, coordinator(url, "b") as b:
        told: list[None] = []
        heard, back = b.driver.ticket(), a.polls.ticket()
        b.driver.on_ring = lambda: told.append(None)
        a.driver.ring()
        await rung(heard)
        b.polls.ring()  # What is said later arrives later: were the ring an echo, it would have come before this.
        await rung(back)
        assert told == []


async def test_who_was_cut_off_listens_again_and_looks_for_what_it_has_missed(server: PostgresServer, url: str) -> None:
    async with coordinator(url, "a") as a, coordinator(url, "b") as b:
        again = b.driver.ticket(), b.polls.ticket()
        await asyncio.to_thread(server.cut, url.rsplit("/", 1)[-1])
        for ticket in again:
            await rung(ticket)
        heard = b.polls.ticket()
        a.polls.ring()  # Its connection is lost, too, and this word with it; the next one goes by a new one.
        a.polls.ring()
        async with asyncio.timeout(LONG):
            while not heard.is_set():
                a.polls.ring()
                await b.polls.wait(heard, seconds=0.2)


async def test_a_coordinator_that_ends_wakes_its_own_and_nobody_else(url: str) -> None:
    async with coordinator(url, "a") as a, coordinator(url, "b") as b:
        own, others = a.polls.ticket(), b.polls.ticket()
        a.end()
        await rung(own)
        after = b.driver.ticket()
        a.driver.ring()
        await rung(after)
        assert not others.is_set()


async def test_sqlite_has_one_coordinator_and_no_signals(tmp_path: object) -> None:
    assert open_signals(f"sqlite:///{tmp_path}/coordinator.sqlite", name="a") is None
