"""The bells of the coordinator: nobody misses a ring, and whoever is told to stop stops."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.wakeups import Wakeups


async def test_a_ring_between_the_ticket_and_the_wait_is_not_missed():
    wakeups = Wakeups()
    ticket = wakeups.driver.ticket()
    wakeups.driver.ring()
    async with asyncio.timeout(2):
        await wakeups.driver.wait(ticket, seconds=60)


async def test_a_waiter_that_is_cancelled_in_the_moment_of_the_ring_is_cancelled():
    """Lost before: the last ring and the cancellation came together, and the driver went on for ever."""
    wakeups = Wakeups()

    async def drive() -> None:
        while True:
            await wakeups.driver.wait(wakeups.driver.ticket(), seconds=60)

    driver = asyncio.create_task(drive())
    await asyncio.sleep(0)
    wakeups.end()
    # The ring is delivered by the loop's next turn; the cancellation comes in the same one.
    asyncio.get_running_loop().call_soon(driver.cancel)
    done, _ = await asyncio.wait({driver}, timeout=2)
    assert done, "the driver went on after it was cancelled"
    with pytest.raises(asyncio.CancelledError):
        driver.result()
