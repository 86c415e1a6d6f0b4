"""Rounds being prepared: one at a time, in a thread of its own beside the daemon's loop.

The work survives a kill: the journal says that a round is being prepared, and the trainer goes on where it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import AccordError, StorageFailed, TrainingStopped
from common.log import get_logger

log = get_logger(__name__)

RoundKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Running:
    key: RoundKey
    thread: threading.Thread
    stop: threading.Event


class Preparations:
    """Starts and stops preparations. Methods are for the daemon's thread."""

    def __init__(self) -> None:
        self._running: _Running | None = None

    def is_running(self, key: RoundKey) -> bool:
        running = self._running
        return running is not None and running.key == key and running.thread.is_alive()

    def start(
        self,
        key: RoundKey,
        work: Callable[[threading.Event], None],
        on_failure: Callable[[AccordError], None],
    ) -> None:
        """Run `work(stop)` in a thread; one for another round of the same run is stopped first: that round is over.

        While another run's is prepared nothing happens: this one is asked for again, and is due when that is done.
        on_failure: called in that thread with whatever went wrong, but for a stop and what a stop has brought about.
        """
        running = self._running
        if running is not None and running.key[0] != key[0] and running.thread.is_alive():
            log.info("preparation_waits", run=key[0], round=key[1], waits_for=f"{running.key[0]}/{running.key[1]}")
            return
        self.stop()
        stop = threading.Event()

        def failed(error: AccordError) -> None:
            if stop.is_set():
                log.info("preparation_stopped", run=key[0], round=key[1], reason=error.reason, message=error.message)
            else:
                on_failure(error)

        def body() -> None:
            try:
                work(stop)
            except TrainingStopped:
                log.info("preparation_stopped", run=key[0], round=key[1])
            except AccordError as error:
                failed(error)
            except OSError as error:
                failed(StorageFailed(f"a file operation failed: {error}; is the disk full?"))
            except Exception as error:
                log.exception("preparation_broken", run=key[0], round=key[1])
                failed(AccordError(f"{type(error).__name__} in the participant; its log has the details"))

        thread = threading.Thread(target=body, name=f"prepare-{key[0]}-{key[1]}", daemon=True)
        self._running = _Running(key, thread, stop)
        thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the running preparation, if any, has ended by itself. False if it has not within `seconds`."""
        running = self._running
        if running is None:
            return True
        running.thread.join(seconds)
        return not running.thread.is_alive()

    def ask_to_stop(self) -> None:
        """Let the running preparation, if any, end soon; `stop` waits for that. For any thread."""
        running = self._running
        if running is not None:
            running.stop.set()

    def stop(self, key: RoundKey | None = None) -> None:
        """End the running preparation (if it is `key`'s, when one is named) and wait until it is gone."""
        running = self._running
        if running is None or (key is not None and running.key != key):
            return
        running.stop.set()
        running.thread.join()
        self._running = None
