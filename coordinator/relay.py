"""Carries rings of this process's bells to other coordinators on the same database, and theirs to the bells here."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from coordinator.store.signals import Signals
from coordinator.wakeups import Bell, Wakeups, nobody_hears

# A word that this version does not know was said by another one; it is let go.
DRIVER: Final = "driver"
POLLS: Final = "polls"


class Relay:
    """`run` is to be a task of the event loop that the bells belong to.

    Rings that come while others are being said are said together: however many messages arrive, one word is under way.
    """

    def __init__(self, wakeups: Wakeups, signals: Signals) -> None:
        self._signals = signals
        self._bells: dict[str, Bell] = {DRIVER: wakeups.driver, POLLS: wakeups.polls}
        self._words: set[str] = set()
        self._has_words = asyncio.Event()

    async def run(self) -> None:
        """Carry until cancelled."""
        loop = asyncio.get_running_loop()
        for word, bell in self._bells.items():
            bell.on_ring = partial(loop.call_soon_threadsafe, self._note, word)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._signals.hear(self._heard, missed=self._missed), name="signals-heard")
                tasks.create_task(self._say(), name="signals-said")
        finally:
            for bell in self._bells.values():
                bell.on_ring = nobody_hears

    def _note(self, word: str) -> None:
        self._words.add(word)
        self._has_words.set()

    async def _say(self) -> None:
        while True:
            await self._has_words.wait()
            self._has_words.clear()
            words, self._words = self._words, set()
            await self._signals.send(words)

    def _heard(self, word: str) -> None:
        if word in self._bells:
            self._bells[word].ring_here()

    def _missed(self) -> None:
        for bell in self._bells.values():
            bell.ring_here()
