"""The daemon's side of the training process: start it, hear its progress, end it, and turn its end into a result.

Imports no torch. Blocks until the child is gone; call it from a thread of its own or from a sync loop.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, Protocol

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
from participant.training.blend_job import BLEND_JOB_FILE, BLEND_RESULT_FILE, BlendJob, BlendResult
from participant.training.job import JOB_FILE, TrainingJob
from participant.training.result import (
    ERROR_FILE,
    LOG_FILE,
    RESULT_FILE,
    ExitCode,
    JobError,
    JobResult,
    Progress,
)

OnProgress = Callable[[Progress], None]

_WORKER_MODULE: Final = "participant.training.worker"
_BLEND_MODULE: Final = "participant.training.blend"
_PREPARE_MODULE: Final = "participant.training.sources"
_POLL_SECONDS: Final = 0.2
_PREPARE_GRACE_SECONDS: Final = 1.0  # a conversion has nothing to save: it starts anew
_LAST_WORDS_BYTES: Final = 2_000

# What the child may have found wrong, as the daemon raises it again. Anything else is TrainingFailed.
_ERRORS: Final[Mapping[str, type[AccordError]]] = {
    error.reason: error
    for error in (
        BaseModelMismatch,
        BaseModelUnavailable,
        DataInvalid,
        DigestMismatch,
        InvalidArgument,
        PlanInvalid,
        ShapeMismatch,
        StorageFailed,
        TrainingStopped,
    )
}


class StopSignal(Protocol):
    """What tells a running job to stop; `threading.Event` is one."""

    def is_set(self) -> bool: ...


class RunJob(Protocol):
    """Does the job in a folder, to its end, as `run_worker` does."""

    def __call__(self, job_folder: Path, on_progress: OnProgress, *, stop: StopSignal | None = None) -> JobResult: ...


def run_worker(
    job_folder: Path,
    on_progress: OnProgress,
    *,
    stop: StopSignal | None = None,
    grace_seconds: float = 30.0,
    python: str = sys.executable,
) -> JobResult:
    """Run the job in `job_folder` (see `job.write_job`) in a child process, to its end.

    May be called again on the same folder after any kind of death: a finished job answers at once, an unfinished one
    goes on from its last checkpoint and ends with the same bits. on_progress is called in this thread.
    stop: once set, the child writes a checkpoint and ends; after grace_seconds it is killed.

    Raises TrainingStopped, InvalidArgument or PlanInvalid (the job), DataInvalid, BaseModelUnavailable,
    BaseModelMismatch, DigestMismatch or ShapeMismatch (the global adapter), StorageFailed, and TrainingFailed for
    everything else: non-finite numbers, out of memory, a crash; its message has the child's last words.
    """
    job = TrainingJob.from_json(_read(job_folder / JOB_FILE))
    command = [python, "-m", _WORKER_MODULE, str(job_folder)]
    _do(command, job_folder, on_progress, threads=job.resources.threads, stop=stop, grace_seconds=grace_seconds)
    return JobResult.from_json(_read(job_folder / RESULT_FILE))


def run_blend(
    job_folder: Path,
    on_progress: OnProgress,
    *,
    stop: StopSignal | None = None,
    grace_seconds: float = 30.0,
    python: str = sys.executable,
) -> BlendResult:
    """Run the search in `job_folder` (see `blend_job.write_blend_job`) in a child process. Raises as `run_worker`."""
    job = BlendJob.from_json(_read(job_folder / BLEND_JOB_FILE))
    command = [python, "-m", _BLEND_MODULE, str(job_folder)]
    _do(command, job_folder, on_progress, threads=job.resources.threads, stop=stop, grace_seconds=grace_seconds)
    return BlendResult.from_json(_read(job_folder / BLEND_RESULT_FILE))


def _do(
    command: Sequence[str],
    job_folder: Path,
    on_progress: OnProgress,
    *,
    threads: int,
    stop: StopSignal | None,
    grace_seconds: float,
) -> None:
    """Run a child in its job's folder. Raises what it has failed with."""
    (job_folder / ERROR_FILE).unlink(missing_ok=True)
    log = job_folder / LOG_FILE
    code = _run_child(command, on_progress, log=log, threads=threads, stop=stop, grace_seconds=grace_seconds)
    if code != ExitCode.OK:
        raise failure_of(code, job_folder)


def prepare_base_model(
    source: str,
    *,
    cache_folder: Path,
    on_progress: OnProgress,
    stop: StopSignal | None = None,
    threads: int = 1,
    python: str = sys.executable,
) -> Path:
    """Make a local safetensors folder of a base model source (see `sources.parse_source`) in a child process.

    Quick where there is nothing left to do. Raises BaseModelUnavailable, StorageFailed, TrainingStopped, or
    TrainingFailed if the child crashes.
    """
    cache_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder, prefix=".prepare-") as name:
        folder = Path(name)
        code = _run_child(
            [python, "-m", _PREPARE_MODULE, source, str(cache_folder), str(folder)],
            on_progress,
            log=folder / LOG_FILE,
            threads=threads,
            stop=stop,
            grace_seconds=_PREPARE_GRACE_SECONDS,
        )
        if stop is not None and stop.is_set():
            raise TrainingStopped("asked to stop while the base model was being prepared; call again to go on")
        if code != ExitCode.OK:
            raise failure_of(code, folder)
        return Path(str(json.loads(_read(folder / RESULT_FILE))))


def _run_child(
    command: Sequence[str],
    on_progress: OnProgress,
    *,
    log: Path,
    threads: int,
    stop: StopSignal | None,
    grace_seconds: float,
) -> int:
    """Exit code of the child, or minus the signal that ended it. The child is gone when this returns or raises."""
    with log.open("wb") as errors:
        child = subprocess.Popen(
            command,
            # The child reads its standard input and ends when the pipe does: it never outlives us, however we die.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_environment(threads),
            start_new_session=True,  # Ctrl-C in a terminal is ours to handle
        )
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    assert child.stdout is not None  # noqa: S101  (for mypy: we have asked for a pipe)
    reader = threading.Thread(target=_read_lines, args=(child.stdout, lines), name="training-output", daemon=True)
    reader.start()
    try:
        _pass_on(lines, on_progress, child, stop=stop, grace_seconds=grace_seconds)
        return child.wait()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        reader.join()
        child.stdout.close()
        if child.stdin is not None:
            child.stdin.close()


def _pass_on(
    lines: queue.SimpleQueue[bytes | None],
    on_progress: OnProgress,
    child: subprocess.Popen[bytes],
    *,
    stop: StopSignal | None,
    grace_seconds: float,
) -> None:
    polls_left = -1  # until the kill, once asked to stop
    while True:
        if stop is not None and stop.is_set() and polls_left < 0:
            child.send_signal(signal.SIGTERM)
            polls_left = max(1, int(grace_seconds / _POLL_SECONDS))
        try:
            line = lines.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            if polls_left > 0:
                polls_left -= 1
                if polls_left == 0:
                    child.kill()
            continue
        if line is None:
            return
        try:
            progress = jsonform.decode(line, Progress, what="progress")
        except InvalidArgument:
            continue  # a library that writes to standard output behind our back is no reason to fail
        on_progress(progress)


def _read_lines(stream: IO[bytes], lines: queue.SimpleQueue[bytes | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _environment(threads: int) -> dict[str, str]:
    """The parent's, with threads that sleep when idle: spinning ones take a busy machine to a fifth of its speed."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


def failure_of(code: int, folder: Path) -> AccordError:
    """The error that the child wrote down, or one made of its exit code and last words."""
    try:
        written = jsonform.decode((folder / ERROR_FILE).read_bytes(), JobError, what="training error")
    except (OSError, InvalidArgument):
        written = None
    if written is not None:
        return _ERRORS.get(written.reason, TrainingFailed)(written.message)
    if code == -signal.SIGKILL:
        return TrainingFailed(
            "the training process was killed (signal 9): most often the system ran out of memory; "
            "lower micro_batch_size or max_length, or give the machine more memory"
        )
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return TrainingFailed(f"the training process ended with {how}; its last words: {_last_words(folder / LOG_FILE)}")


def _last_words(log: Path) -> str:
    try:
        with log.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - _LAST_WORDS_BYTES))
            text = stream.read().decode(errors="replace").strip()
    except OSError:
        text = ""
    return text or "(none)"


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise TrainingFailed(f"cannot read {file}: {error.strerror}") from error
