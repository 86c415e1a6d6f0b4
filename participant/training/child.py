"""What every child process of the daemon does alike: die with its parent, report progress, end with a code.

Knows nothing of what the child works on. Imports no torch: the watch on the parent must run before the slow imports.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Final, TextIO

from common import jsonform
from common.errors import (
    AccordError,
    BaseModelMismatch,
    BaseModelUnavailable,
    DataInvalid,
    DigestMismatch,
    InvalidArgument,
    PlanInvalid,
    ShapeMismatch,
    StorageFailed,
    TrainingFailed,
    TrainingStopped,
)
from participant.training.result import ERROR_FILE, ExitCode, JobError, Progress

_CODES: Final[Mapping[type[AccordError], ExitCode]] = {
    InvalidArgument: ExitCode.BAD_JOB,
    PlanInvalid: ExitCode.BAD_JOB,
    DataInvalid: ExitCode.DATA_INVALID,
    BaseModelUnavailable: ExitCode.MODEL_UNAVAILABLE,
    BaseModelMismatch: ExitCode.MODEL_MISMATCH,
    DigestMismatch: ExitCode.ADAPTER_INVALID,
    ShapeMismatch: ExitCode.ADAPTER_INVALID,
    TrainingFailed: ExitCode.NOT_FINITE,
    StorageFailed: ExitCode.STORAGE_FAILED,
    TrainingStopped: ExitCode.STOPPED,
}
_PARENT_GONE: Final = 3


class Reporter:
    """Writes progress lines to what was standard output; everything else that prints goes to the log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, progress: Progress) -> None:
        self._stream.write(jsonform.encode(progress, Progress) + "\n")
        self._stream.flush()


class StopRequest:
    """Set by SIGTERM; asked between steps."""

    def __init__(self) -> None:
        self._requested = False
        signal.signal(signal.SIGTERM, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._requested = True

    def is_set(self) -> bool:
        return self._requested


def run_child(work: Callable[[Reporter, StopRequest], None], *, folder: Path) -> int:
    """Run `work` and return the process's exit code; write `error.json` into `folder` where there is one to tell."""
    _end_with_parent()
    stop = StopRequest()
    try:
        with _progress_stream() as stream:
            work(Reporter(stream), stop)
    except AccordError as error:
        traceback.print_exc()
        return _leave(folder, error, _CODES.get(type(error), ExitCode.CRASHED))
    except MemoryError as error:
        traceback.print_exc()
        return _leave(folder, _out_of_memory(error), ExitCode.OUT_OF_MEMORY)
    except OSError as error:
        traceback.print_exc()
        return _leave(folder, StorageFailed(f"a file operation failed: {error}"), ExitCode.STORAGE_FAILED)
    except RuntimeError as error:
        # torch has a class of its own for the GPU, and a bare RuntimeError for the CPU's allocator.
        if type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):
            raise
        traceback.print_exc()
        return _leave(folder, _out_of_memory(error), ExitCode.OUT_OF_MEMORY)
    return ExitCode.OK


def _out_of_memory(error: BaseException) -> TrainingFailed:
    first_line = (str(error).strip() or "no detail").splitlines()[0]
    return TrainingFailed(f"out of memory; lower micro_batch_size, evaluation_batch_size or max_length ({first_line})")


def _leave(folder: Path, error: AccordError, code: ExitCode) -> int:
    with contextlib.suppress(OSError):  # a full disk must not hide the exit code
        write_atomically(folder / ERROR_FILE, jsonform.encode(JobError(error.reason, error.message), JobError))
    return code


def write_atomically(file: Path, text: str) -> None:
    """The file has the old text or the new one, whatever happens."""
    temporary = file.with_name(f".{file.name}.partial")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


@contextlib.contextmanager
def _progress_stream() -> Iterator[TextIO]:
    """Keep the parent's pipe to ourselves: whatever a library prints goes to standard error, the log."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as stream:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        yield stream


def _end_with_parent() -> None:
    """Our standard input is a pipe that the parent never writes to: its end means that the parent is gone.

    Works where the parent was killed, and unlike PR_SET_PDEATHSIG not only for the thread that started us.
    """
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return  # started by hand

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        os._exit(_PARENT_GONE)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
