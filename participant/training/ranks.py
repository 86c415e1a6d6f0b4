"""The processes of one job beside the first: started by it, watched by it, ended with it.

A process beside the first ends by itself only where something is wrong with it, and then all of them end; the job goes
on from its checkpoint when it is started again. Imports no torch, and knows nothing of what the processes do together.

What torchrun and accelerate's launcher do, without their agent beside the job: that one listens on a TCP port to bring
the processes together, starts all of them again when one dies, and answers to no daemon's wish to stop. Here a file
brings them together, the job folder says why one died, and the daemon that asked for the job decides about another try.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from common import jsonform
from common.errors import InvalidArgument, TrainingFailed, TrainingStopped
from participant.training.child import run_child, write_atomically
from participant.training.result import ERROR_FILE, ExitCode, JobError

_MODULE: Final = "participant.training.ranks"
_PREFIX: Final = ".ranks-"
_STORE: Final = "store"
_NOTICE_SECONDS: Final = 5.0  # between a peer's broken connection and the news of its end


@dataclass(frozen=True, slots=True)
class Seat:
    """One process's place. rank: from 0 to size - 1; room: a folder that only this job's processes of now use."""

    room: Path
    rank: int
    size: int

    @property
    def store(self) -> Path:
        """The file by which the processes find each other."""
        return self.room / _STORE


@contextlib.contextmanager
def started(folder: Path, *, size: int) -> Iterator[Seat]:
    """The first process's seat, with all others started; they are gone when this is left.

    Raises TrainingFailed, or ends this process with that error told in the job folder, if another one ends.
    """
    for left in folder.glob(f"{_PREFIX}*"):  # of a job that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_PREFIX) as name:
        crew = _Crew(folder, [Seat(Path(name), rank, size) for rank in range(1, size)])
        try:
            crew.watch()
            yield Seat(Path(name), 0, size)
        except RuntimeError:
            crew.wait_for_an_end(_NOTICE_SECONDS)  # a peer's end shows as a broken connection first
            raise
        finally:
            crew.dismiss()


class _Crew:
    """The other processes. Each reads its standard input, a pipe of ours, and ends when we do, however we end."""

    def __init__(self, folder: Path, seats: Sequence[Seat]) -> None:
        self._folder = folder
        self._is_dismissed = False
        self._lock = threading.Lock()
        self._children: list[tuple[Seat, subprocess.Popen[bytes]]] = []
        for seat in seats:
            own = seat.room / str(seat.rank)
            own.mkdir()
            command = [sys.executable, "-m", _MODULE, str(folder), str(seat.room), str(seat.rank), str(seat.size)]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            self._children.append((seat, child))

    def watch(self) -> None:
        """From now on, another process's end is ours: we may be waiting for it where no exception can reach us."""
        for _, child in self._children:
            threading.Thread(target=self._watch, args=(child,), name="rank-watch", daemon=True).start()

    def _watch(self, child: subprocess.Popen[bytes]) -> None:
        child.wait()
        with self._lock:
            if self._is_dismissed:
                return
            error = self._error()
            with contextlib.suppress(OSError):
                written = JobError(error.reason, error.message)
                write_atomically(self._folder / ERROR_FILE, jsonform.encode(written, JobError))
            os._exit(ExitCode.CRASHED)

    def wait_for_an_end(self, seconds: float) -> None:
        """Give the watch the time to end this process in its words, where another one's end is what went wrong."""
        time.sleep(seconds)

    def _error(self) -> TrainingFailed:
        told = [_end_of(seat, code) for seat, child in self._children if (code := child.poll()) is not None]
        return TrainingFailed(
            f"{'; '.join(told)}; the job's other processes were ended with it. Started again, the job goes on from its "
            "last checkpoint"
        )

    def dismiss(self) -> None:
        with self._lock:
            self._is_dismissed = True
        for _, child in self._children:
            child.kill()
            child.wait()
            if child.stdin is not None:
                child.stdin.close()


def _end_of(seat: Seat, code: int) -> str:
    who = f"process {seat.rank + 1} of {seat.size}"
    try:
        told = jsonform.decode((seat.room / str(seat.rank) / ERROR_FILE).read_bytes(), JobError, what="error")
    except (OSError, InvalidArgument):
        how = f"was killed (signal {-code})" if code < 0 else f"ended with exit code {code}, see the job's log"
        return f"{who} {how}"
    return f"{who}: {told.message}"


def _sit(folder: Path, seat: Seat) -> NoReturn:
    """Do this process's part, and wait to be ended by the first."""
    from participant.training.worker import help_job  # the slow imports

    # What all processes find at the same step is the first one's to tell, and its checkpoint may be being written.
    with contextlib.suppress(TrainingStopped, TrainingFailed):
        help_job(folder, seat)
    while True:
        time.sleep(_NOTICE_SECONDS)


def main(arguments: list[str]) -> int:
    """Exit code of a process beside the first (`result.ExitCode`)."""
    if len(arguments) != 4:
        print(f"started by the training process alone: python -m {_MODULE} FOLDER ROOM RANK SIZE", file=sys.stderr)
        return 2
    seat = Seat(Path(arguments[1]), int(arguments[2]), int(arguments[3]))
    return run_child(lambda _report, _stop: _sit(Path(arguments[0]), seat), folder=seat.room / str(seat.rank))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
