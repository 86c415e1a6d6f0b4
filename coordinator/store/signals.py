"""Words between the coordinators on one PostgreSQL: LISTEN and NOTIFY.

Without them a coordinator would notice what another one has taken only when it looks at the database the next time,
which is seconds later, in every phase of a round. They are no more than hints: a word is said after the commit that it
is about, one that gets lost costs those seconds, and nobody relies on it. So nothing is stored and nothing repeated.
Polling alone would be simpler, and either slow or busy; a message broker would be one more thing to run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final, Protocol

import psycopg
from sqlalchemy import create_engine

from common.log import get_logger
from coordinator.store.engine import parse_url
from coordinator.store.postgresql import driver_url

CHANNEL: Final = "accord"
AGAIN_SECONDS: Final = 1.0

log: Final = get_logger(__name__)


class Signals(Protocol):
    """What coordinators tell each other. Belongs to one event loop."""

    async def send(self, words: Collection[str]) -> None:
        """Say words to the others; what cannot be said is dropped."""

    async def hear(self, heard: Callable[[str], None], *, missed: Callable[[], None]) -> None:
        """Listen until cancelled. missed: called whenever listening begins, because words may have been lost."""


class PostgresSignals:
    """`Signals` over two connections of their own: who waits for words cannot say any meanwhile."""

    def __init__(self, url: str, *, name: str) -> None:
        """name: this coordinator's, so that it does not listen to itself. Connects to nothing."""
        engine = create_engine(driver_url(parse_url(url)))
        _, self._settings = engine.dialect.create_connect_args(engine.url)
        self._settings.pop("context", None)  # the store's own ways with values
        self._name = name
        self._mouth: psycopg.AsyncConnection[tuple[object, ...]] | None = None

    async def send(self, words: Collection[str]) -> None:
        try:
            if self._mouth is None or self._mouth.closed:
                self._mouth = await self._connect()
            for word in sorted(words):
                await self._mouth.execute("SELECT pg_notify(%s, %s)", (CHANNEL, f"{self._name} {word}"))
        except psycopg.Error:
            log.info("signal_not_sent", words=sorted(words))
            await self._shut(self._mouth)
            self._mouth = None

    async def hear(self, heard: Callable[[str], None], *, missed: Callable[[], None]) -> None:
        is_said = False

        def begun() -> None:
            nonlocal is_said
            is_said = False
            missed()

        try:
            while True:
                try:
                    await self._listen(heard, missed=begun)
                except psycopg.Error as error:
                    if not is_said:  # once for each time that the database is away
                        log.warning("signals_not_heard", sqlstate=error.sqlstate or "")
                    is_said = True
                await asyncio.sleep(AGAIN_SECONDS)
        finally:
            await self._shut(self._mouth)

    async def _listen(self, heard: Callable[[str], None], *, missed: Callable[[], None]) -> None:
        connection = await self._connect()
        try:
            await connection.execute(f"LISTEN {CHANNEL}".encode())
            missed()
            async for notification in connection.notifies():
                name, _, word = notification.payload.partition(" ")
                if name != self._name:
                    heard(word)
        finally:
            await self._shut(connection)

    async def _connect(self) -> psycopg.AsyncConnection[tuple[object, ...]]:
        return await psycopg.AsyncConnection.connect(autocommit=True, **self._settings)

    async def _shut(self, connection: psycopg.AsyncConnection[tuple[object, ...]] | None) -> None:
        if connection is not None:
            with suppress(psycopg.Error):
                await connection.close()
