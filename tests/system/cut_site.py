"""A site's process that stops at named points and goes on when it is told to, for the tests of partitions.

    python -m tests.system.cut_site POINTS FOLDER participant.toml

Its training is made up as in benchmarks/made_up_site.py. A point is CALL@NUMBER, of a round or key epoch: before that
call is made; or mid-upload@NUMBER: when the coordinator has a part of the round's upload on disk, and not all of it.
FOLDER takes a file for each point that was reached, and the test puts another there to let the site go on.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, Final, cast

from accord.v1 import secure_aggregation_pb2 as pb
from benchmarks import made_up_site
from coordinator.uploads import SEGMENT_CHUNKS
from participant.client import CoordinatorClient
from tests.system.faulty_site import Sending, sendings_file
from tests.system.kills import POLL_SECONDS

CALLS: Final = ("deposit_shares", "report_prepared", "reveal_shares")
MID_UPLOAD: Final = "mid-upload"


class Halts:
    """The points of one site, and the folder where it meets the test."""

    def __init__(self, folder: Path, site: str, points: frozenset[str] = frozenset()) -> None:
        self.folder = folder
        self._site = site
        self._points = points

    def reach(self, point: str) -> None:
        """The site's side: wait here, once, if that is one of its points."""
        if not self.is_due(point):
            return
        self._marker(point).touch()
        while not self._marker(point, "go").exists():
            time.sleep(POLL_SECONDS)

    def is_due(self, point: str) -> bool:
        return point in self._points and not self._marker(point).exists()

    def wait_for(self, point: str, *, require: Callable[[], None]) -> None:
        """The test's side: until the site is at the point. require: raises if it never will be."""
        while not self._marker(point).exists():
            require()
            time.sleep(POLL_SECONDS)

    def release(self, point: str) -> None:
        self._marker(point, "go").touch()

    def _marker(self, point: str, kind: str = "reached") -> Path:
        return self.folder / f"{self._site}.{point}.{kind}"


def install(halts: Halts, *, site: str) -> None:
    """Put the points into this process's client."""
    upload = CoordinatorClient.upload

    def noted_upload(self: CoordinatorClient, run: str, round_: int, *, first_chunk: int, **rest: Any) -> None:
        with sendings_file(halts.folder, site).open("a") as file:
            file.write(json.dumps(asdict(Sending(round_, first_chunk, datetime.now(UTC).isoformat()))) + "\n")
        stub = self._uploads
        if halts.is_due(f"{MID_UPLOAD}@{round_}"):
            self._uploads = cast(Any, _HaltedUpload(self, stub, halts, run, round_))
        try:
            upload(self, run, round_, first_chunk=first_chunk, **rest)
        finally:
            self._uploads = stub

    CoordinatorClient.upload = noted_upload  # type: ignore[method-assign]
    for call in CALLS:
        _wrap(halts, call)


def _wrap(halts: Halts, call: str) -> None:
    original: Callable[..., object] = getattr(CoordinatorClient, call)

    @wraps(original)
    def wrapped(self: CoordinatorClient, run: str, number: int, *values: object, **names: object) -> object:
        halts.reach(f"{call}@{number}")
        return original(self, run, number, *values, **names)

    setattr(CoordinatorClient, call, wrapped)


class _HaltedUpload:
    """The upload's stub, whose stream stops once the coordinator has the first segment on disk."""

    def __init__(self, client: CoordinatorClient, stub: Any, halts: Halts, run: str, round_: int) -> None:
        self._client = client
        self._stub = stub
        self._halts = halts
        self._place = (run, round_)

    def UploadMaskedUpdate(self, messages: Iterator[pb.UploadMaskedUpdateRequest], *, timeout: float) -> object:
        return self._stub.UploadMaskedUpdate(self._halting(messages), timeout=timeout)

    def _halting(self, messages: Iterator[pb.UploadMaskedUpdateRequest]) -> Iterator[pb.UploadMaskedUpdateRequest]:
        for _ in range(1 + SEGMENT_CHUNKS):
            yield next(messages)
        while not self._client.upload_state(*self._place).durable_chunks:
            time.sleep(POLL_SECONDS)
        self._halts.reach(f"{MID_UPLOAD}@{self._place[1]}")
        yield from messages


def main() -> None:
    points, folder, config = frozenset(sys.argv[1].split(",")), Path(sys.argv[2]), Path(sys.argv[3])
    site = config.parent.name
    install(Halts(folder, site, points), site=site)
    # The program below finds its configuration where it always is.
    sys.argv = [sys.argv[0], str(config)]
    made_up_site.main()


if __name__ == "__main__":
    main()
