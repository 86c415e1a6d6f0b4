"""Fault points: a process that kills itself, once, at each event that it is told to, and is started again.

`alive_through` is the parent of such a process: it waits for its child's end and forks another one when that was
SIGKILL at a fault point. A fork and not a new interpreter, because loading gRPC and SQL takes longer than a round.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

# Of a file that another process makes.
POLL_SECONDS: Final = 0.01
DIED_BY_SIGKILL: Final = -signal.SIGKILL


class Kills:
    """The events of one process, and the folder in which each leaves a file when it has happened."""

    def __init__(self, events: Collection[str], folder: Path) -> None:
        self.events = frozenset(events)
        self.folder = folder

    @classmethod
    def parse(cls, events: str, folder: str) -> Kills:
        """events: as `Kills.text` gives them."""
        return cls([event for event in events.split(",") if event], Path(folder))

    @staticmethod
    def text(events: Collection[str]) -> str:
        return ",".join(events)

    def marker(self, event: str) -> Path:
        return self.folder / event.replace(" ", "_")

    def has_happened(self, event: str) -> bool:
        return self.marker(event).exists()

    def is_due(self, event: str) -> bool:
        return event in self.events and not self.has_happened(event)

    def reach(self, event: str) -> None:
        """Here the process is at `event`: it dies if that is one of its own and happens for the first time."""
        if not self.is_due(event):
            return
        # Several threads may be here at once: whoever makes the file is the one that is killed with it.
        with suppress(FileExistsError):
            os.close(os.open(self.marker(event), os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)

    def wait_for(self, events: Collection[str]) -> None:
        """Wait until other processes have died of these."""
        while not all(map(self.has_happened, events)):
            time.sleep(POLL_SECONDS)


def alive_through(kills: Kills, main: Callable[[], int | None]) -> NoReturn:
    """Run `main` in a child as often as it kills itself, and exit as the last one does."""
    # For the child alone, which ends in good order; this process ends with it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    while True:
        before = {event for event in kills.events if kills.has_happened(event)}
        child = os.fork()
        if child == 0:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            os._exit(main() or 0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        has_killed_itself = code == DIED_BY_SIGKILL and any(map(kills.has_happened, kills.events - before))
        if not has_killed_itself:
            os._exit(code if code >= 0 else 128 - code)
