"""A site's process that kills itself once at each named event, for the tests of restarts.

    python -m tests.system.faulty_site EVENTS FOLDER participant.toml

Its training is made up as in benchmarks/made_up_site.py. FOLDER takes a file for each event that has happened, and one
with a line for each upload that the site begins. It is one for all sites of a federation: a round is opened as soon as
a quorum has revealed, so those that are not to die of their reveal wait with theirs until the others have. A site
without events does not wait.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, Final, cast

from accord.v1 import secure_aggregation_pb2 as pb
from benchmarks import made_up_site
from coordinator.uploads import SEGMENT_CHUNKS
from participant.client import CoordinatorClient
from participant.trainer import Preparation, Prepared
from tests.system.kills import POLL_SECONDS, Kills, alive_through

# What each site dies of; "before" and "after" are before a call is made and after it was answered. Everything that a
# call says is in the journal before it is made.
EVENTS: Final[dict[str, tuple[str, ...]]] = {
    "site-0": ("before advertise_keys", "mid-preparation", "mid-upload"),
    "site-1": ("after advertise_keys", "before report_prepared", "before reveal_shares"),
    "site-2": ("before deposit_shares", "after report_prepared", "before upload"),
    "site-3": ("after deposit_shares", "before confirm_shares", "after upload"),
    "site-4": ("after confirm_shares", "before evidence", "after reveal_shares"),
}
CALLS: Final = (
    "advertise_keys",
    "deposit_shares",
    "confirm_shares",
    "report_prepared",
    "upload",
    "evidence",
    "reveal_shares",
)
OF_REVEALING: Final = ("before evidence", "before reveal_shares", "after reveal_shares")


@dataclass(frozen=True, slots=True)
class Sending:
    """An upload that a site has begun. at: UTC, ISO 8601."""

    round: int
    first_chunk: int
    at: str


def sendings(folder: Path, site: str) -> list[Sending]:
    """All of a site's, in order."""
    return [Sending(**json.loads(line)) for line in sendings_file(folder, site).read_text().splitlines()]


def sendings_file(folder: Path, site: str) -> Path:
    return folder / f"{site}.sendings"


def install(kills: Kills, *, site: str) -> None:
    """Put the fault points into this process's classes."""
    upload, prepare = CoordinatorClient.upload, made_up_site.MadeUpTrainer.prepare

    def noted_upload(self: CoordinatorClient, run: str, round_: int, *, first_chunk: int, **rest: Any) -> None:
        with sendings_file(kills.folder, site).open("a") as file:
            sending = Sending(round_, first_chunk, datetime.now(UTC).isoformat())
            file.write(json.dumps(asdict(sending)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if kills.is_due("mid-upload"):
            self._uploads = cast(Any, _HalfUpload(self, self._uploads, kills, run, round_))
        upload(self, run, round_, first_chunk=first_chunk, **rest)

    def prepare_by_half(self: made_up_site.MadeUpTrainer, work: Preparation, **rest: Any) -> Prepared:
        if kills.is_due("mid-preparation"):
            work.trained_adapter.parent.mkdir(parents=True, exist_ok=True)
            work.trained_adapter.write_bytes(b"half of it")
            kills.reach("mid-preparation")
        return prepare(self, work, **rest)

    CoordinatorClient.upload = noted_upload  # type: ignore[method-assign]
    made_up_site.MadeUpTrainer.prepare = prepare_by_half  # type: ignore[method-assign]
    for call in CALLS:
        _wrap(kills, call)


def _wrap(kills: Kills, call: str) -> None:
    original: Callable[..., object] = getattr(CoordinatorClient, call)

    @wraps(original)
    def wrapped(self: CoordinatorClient, *values: object, **names: object) -> object:
        if call == "reveal_shares" and kills.events and not kills.events.intersection(OF_REVEALING):
            kills.wait_for([event for events in EVENTS.values() for event in events if event in OF_REVEALING])
        kills.reach(f"before {call}")
        answer = original(self, *values, **names)
        kills.reach(f"after {call}")
        return answer

    setattr(CoordinatorClient, call, wrapped)


class _HalfUpload:
    """The upload's stub, whose stream ends with the process once the coordinator has the first segment on disk."""

    def __init__(self, client: CoordinatorClient, stub: Any, kills: Kills, run: str, round_: int) -> None:
        self._client = client
        self._stub = stub
        self._kills = kills
        self._place = (run, round_)

    def UploadMaskedUpdate(self, messages: Iterator[pb.UploadMaskedUpdateRequest], *, timeout: float) -> object:
        return self._stub.UploadMaskedUpdate(self._first_of(messages), timeout=timeout)

    def _first_of(self, messages: Iterator[pb.UploadMaskedUpdateRequest]) -> Iterator[pb.UploadMaskedUpdateRequest]:
        for _ in range(1 + SEGMENT_CHUNKS):
            yield next(messages)
        while not self._client.upload_state(*self._place).durable_chunks:
            time.sleep(POLL_SECONDS)
        self._kills.reach("mid-upload")


def main() -> None:
    told = Kills.parse(*sys.argv[1:3])
    config = Path(sys.argv[3])
    install(told, site=config.parent.name)
    # The program below finds its configuration where it always is.
    sys.argv = [sys.argv[0], str(config)]
    alive_through(told, made_up_site.main)


if __name__ == "__main__":
    main()
