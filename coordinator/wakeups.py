"""Wakes those who wait for a change of state: the driver, and the long polls of participants.

Only a hint: whoever wakes reads the store again, and nobody relies on being woken. A change that another replica has
made rings here too (`coordinator.relay`), if nothing is in the way. Belongs to one event loop; bells may be rung from
any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

# A waiter looks at the store this often even when nobody wakes it.
FALLBACK_SECONDS: Final = 5.0


def nobody_hears() -> None:
    """There is no other process."""


class Bell:
    """A broadcast. Take a ticket, look at the store, then wait with the ticket: no change in between is missed."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event = asyncio.Event()
        # Told of every ring of this process, so that it is heard elsewhere too; called from any thread.
        self.on_ring: Callable[[], object] = nobody_hears

    def ticket(self) -> asyncio.Event:
        """What `wait` waits for; take it before looking at the store. Call on the event loop."""
        self._loop = asyncio.get_running_loop()
        return self._event

    def ring(self) -> None:
        """Wake everybody who waits now, in every process that hears of it."""
        self.ring_here()
        self.on_ring()

    def ring_here(self) -> None:
        """Wake everybody who waits now in this process."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self, ticket: asyncio.Event, *, seconds: float) -> None:
        """Return when woken, or after `seconds`, or after FALLBACK_SECONDS."""
        # Not wait_for: before Python 3.12 it loses a cancellation that comes in the moment of the ring, and a driver
        # that is told to stop would never end.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, FALLBACK_SECONDS)):
                await ticket.wait()


class Wakeups:
    """Two bells, because a participant's message concerns the driver alone: no other site's answer changes by it.

    driver: something has arrived that may make a step due. polls: something has changed that participants are told.
    """

    def __init__(self) -> None:
        self.driver: Final = Bell()
        self.polls: Final = Bell()
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether nobody should wait any longer, because the process is about to end."""
        return self._is_over

    def end(self) -> None:
        """Wake everybody for the last time, so that long polls are answered and do not hold up the end."""
        self._is_over = True
        self.driver.ring_here()
        self.polls.ring_here()

    def notify(self) -> None:
        """Wake everybody who waits now."""
        self.driver.ring()
        self.polls.ring()
