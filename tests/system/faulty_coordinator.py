"""A coordinator process that kills itself once at each named event, for the tests of restarts.

    python -m tests.system.faulty_coordinator EVENTS FOLDER serve --config FILE

EVENTS are names of `EVENTS`, between commas; FOLDER takes a file for each that has happened. "before" and "after" are
before and after the commit of the transaction that does what the event says.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final

from common.secagg import StreamSum, Words
from coordinator import aggregation
from coordinator.__main__ import main
from coordinator.aggregation import OpenSum
from coordinator.checkpoints import GrowingFiles
from coordinator.rounds.model import Upload
from coordinator.store.interface import Writer
from coordinator.store.sql import SqlStore
from coordinator.store.writer import SqlWriter
from tests.system.kills import Kills, alive_through

# In the order in which they happen, but for key set-up, which goes on beside forming and training.
EVENTS: Final = {
    "before round forming": "the run is started, no round is open",
    "after round forming": "FORMING; the first key epoch is ADVERTISING",
    "after message advertisement": "ADVERTISING, one site's keys are there",
    "before round training": "FORMING, everybody is there",
    "after round training": "TRAINING",
    "after epoch sharing": "SHARING",
    "after message deposit": "SHARING, one site's shares are there",
    "after epoch confirming": "CONFIRMING",
    "after message confirmation": "CONFIRMING, one site has confirmed",
    "after epoch ready": "the keys are there, training goes on",
    "before round collecting": "TRAINING, everybody is prepared",
    "after round collecting": "COLLECTING, nothing has arrived",
    "after upload half": "COLLECTING, the first segment of an upload is durable",
    "after upload whole": "COLLECTING, all of an upload is durable, its receipt is not",
    "after upload acknowledged": "COLLECTING, an upload is received, and its site does not know",
    "after round unmasking": "UNMASKING",
    "after message reveal": "UNMASKING, one site's reveal is there",
    "after round aggregating": "AGGREGATING",
    "aggregating half way": "AGGREGATING, a part of the sum is open",
    "aggregating half durable": "AGGREGATING, what was made of some chunks is durable",
    "before round succeeded": "AGGREGATING, the adapter is made and not published",
    "after round succeeded": "between rounds",
}
HALF_WAY_CHUNK: Final = 2
DURABLE_CHUNKS: Final = 3
LOADED_BEFORE_THE_FORK: Final = ("coordinator.app", "coordinator.cli.serve", "coordinator.store.schema")


class _Noted(threading.local):
    """What this thread's transaction has done so far."""

    def __init__(self) -> None:
        self.names: list[str] = []


def install(kills: Kills) -> None:
    """Put the fault points into this process's classes."""
    noted = _Noted()

    def note(method: str, name_of: Callable[[Any], str]) -> None:
        original = getattr(SqlWriter, method)

        @wraps(original)
        def noting(self: SqlWriter, row: Any) -> object:
            done: object = original(self, row)
            noted.names.append(name_of(row))
            return done

        setattr(SqlWriter, method, noting)

    note("add_round", lambda round_: f"round {round_.state.value}")
    note("update_round", lambda round_: f"round {round_.state.value}")
    note("add_epoch", lambda epoch: f"epoch {epoch.state.value}")
    note("update_epoch", lambda epoch: f"epoch {epoch.state.value}")
    note("add_message", lambda message: f"message {message.kind.value}")
    note("put_upload", _upload_name)
    write = SqlStore.write

    @contextmanager
    def noted_write(self: SqlStore) -> Iterator[Writer]:
        noted.names.clear()
        with write(self) as writer:
            yield writer
            for name in noted.names:
                kills.reach(f"before {name}")
        for name in tuple(noted.names):
            kills.reach(f"after {name}")

    words = OpenSum.words

    def counted_words(self: OpenSum, chunk: int, unmasker: StreamSum) -> Words:
        if chunk == HALF_WAY_CHUNK:
            kills.reach("aggregating half way")
        return words(self, chunk, unmasker)

    checkpoint = GrowingFiles.checkpoint

    def awaited_checkpoint(self: GrowingFiles) -> None:
        checkpoint(self)
        if self.chunks == DURABLE_CHUNKS:
            self.wait()
            kills.reach("aggregating half durable")

    # Of five chunks none would be durable before the last.
    aggregation.DURABLE_AFTER_MADE_BYTES = 1  # type: ignore[misc]
    GrowingFiles.checkpoint = awaited_checkpoint  # type: ignore[method-assign]
    SqlStore.write = noted_write  # type: ignore[method-assign]
    OpenSum.words = counted_words  # type: ignore[method-assign]


def _upload_name(upload: Upload) -> str:
    if upload.is_complete:
        return "upload acknowledged"
    if upload.durable_chunks == upload.chunk_count:
        return "upload whole"
    return "upload half" if upload.durable_chunks else "upload begun"


if __name__ == "__main__":
    for name in LOADED_BEFORE_THE_FORK:
        importlib.import_module(name)
    told = Kills.parse(*sys.argv[1:3])
    install(told)
    alive_through(told, lambda: main(sys.argv[3:]))
