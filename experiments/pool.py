"""Training without the wait: one process holds the base model in memory and forks a child for every job.

A child does what the product's training process does (`participant.training.worker`), in the same job folder and with
the same result; only the seconds of importing and loading are not spent again. Sites ask for it through `PoolTrainer`,
the arms that train without a federation through `Pool.run`. For CPUs: a forked child has no use of a GPU's context.

    python -m experiments.pool SOCKET BASE_MODEL SLOTS
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from common.errors import InvalidArgument, TrainingFailed, TrainingStopped
from demo.federation import leashed
from experiments.judging import JudgeJob, Judgement, is_judged, write_judge_job
from participant.training.child import Reporter, StopRequest, run_child
from participant.training.job import TrainingJob, write_job
from participant.training.process import StopSignal, failure_of
from participant.training.result import LOG_FILE, RESULT_FILE, ExitCode, JobResult

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Work = Callable[[Path], Callable[[Reporter, StopRequest], None]]

TRAIN: Final = "train"
JUDGE: Final = "judge"
START_SECONDS: Final = 120.0
POLL_SECONDS: Final = 0.1
_WORDS: Final = 4096
_BACKLOG: Final = 64


class Pool:
    """The process and its socket. Use it in a `with` block.

    slots: jobs at the same time, one core each; a job beyond them waits for its turn.
    """

    def __init__(self, folder: Path, *, base_model: Path, slots: int) -> None:
        # A socket's path may have 107 bytes: a folder deep in someone's home has more.
        self.socket = Path(f"/tmp/accord-pool-{os.getpid()}-{threading.get_ident()}.sock")  # noqa: S108
        self._log = folder / "pool.log"
        self._command = [sys.executable, "-m", "experiments.pool", str(self.socket), str(base_model), str(slots)]
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                leashed(self._command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        give_up = time.monotonic() + START_SECONDS
        while not self.socket.exists():
            if self._child.poll() is not None or time.monotonic() > give_up:
                self.__exit__()
                raise TrainingFailed(f"the pool of training processes did not start; {self._log} says why")
            time.sleep(POLL_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
        self.socket.unlink(missing_ok=True)

    def run(self, folder: Path, job: TrainingJob) -> JobResult:
        """Do a job in its folder, once: a finished one answers at once. Raises as `run_job` does."""
        with contextlib.suppress(OSError, InvalidArgument):
            found = JobResult.from_json((folder / RESULT_FILE).read_bytes())
            if found.job_digest == job.digest:
                return found
        write_job(folder, job)
        return run_in_pool(self.socket, folder)

    def judge(self, folder: Path, job: JudgeJob) -> Judgement:
        """Judge a model, once. Raises as judging does."""
        if not is_judged(folder, job):
            write_judge_job(folder, job)
            ask(self.socket, JUDGE, folder)
        return Judgement.from_json((folder / RESULT_FILE).read_bytes())


def run_in_pool(address: Path, folder: Path, *, stop: StopSignal | None = None) -> JobResult:
    """Have the pool do the job in `folder`. Raises what the job failed with, by its reason, and TrainingStopped."""
    ask(address, TRAIN, folder, stop=stop)
    return JobResult.from_json((folder / RESULT_FILE).read_bytes())


def ask(address: Path, what: str, folder: Path, *, stop: StopSignal | None = None) -> None:
    """Wait until the pool has done `what` in `folder`. Raises as `run_in_pool` does."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(address))
        connection.sendall(f"{what}\n{folder.resolve()}".encode())
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(POLL_SECONDS)
        answer = b""
        while True:
            try:
                part = connection.recv(_WORDS)
            except TimeoutError:
                if stop is not None and stop.is_set():
                    raise TrainingStopped("stopped while its job was in the pool; ask again to go on") from None
                continue
            if not part:
                break
            answer += part
    if answer != b"0":
        raise failure_of(int(answer or -signal.SIGKILL), folder)


# --- the process ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Slots:
    """So many files, each held by one job at a time."""

    folder: Path
    count: int

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Wait for a free one."""
        files = [(self.folder / f"slot-{index}").open("ab") for index in range(self.count)]
        try:
            while not any(self._is_taken(file.fileno()) for file in files):
                time.sleep(POLL_SECONDS)
            yield
        finally:
            for file in files:
                file.close()

    @staticmethod
    def _is_taken(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _serve(address: Path, base_model: Path, slots: _Slots) -> None:
    """Load the base model, then fork a child for every connection. Never returns."""
    import torch

    import participant.training.execute  # noqa: F401  (a job imports it when it is due: here once, for all)
    from experiments.judging import run_judge_job
    from participant.training.job import Device, Precision
    from participant.training.model import choose_device, choose_precision, load_base
    from participant.training.worker import run_job

    torch.set_num_threads(1)
    precision = choose_precision(Precision.AUTO, choose_device(Device.CPU))
    warm = load_base(base_model, precision)

    def base_from(folder: Path, wanted: torch.dtype) -> PreTrainedModel:
        return warm if (folder.resolve(), wanted) == (base_model.resolve(), precision) else load_base(folder, wanted)

    works: Mapping[str, Work] = {
        TRAIN: lambda folder: lambda report, stop: run_job(folder, report, stop, base_from=base_from),
        JUDGE: lambda folder: lambda report, stop: run_judge_job(folder, base_from=base_from),
    }
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the children
    # Nobody ever writes: for the children its end is this process's end, and then theirs (`run_child` watches).
    lifeline, held = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        partial = address.with_suffix(".partial")
        listener.bind(str(partial))
        listener.listen(_BACKLOG)
        partial.rename(address)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                os.close(held)
                os.dup2(lifeline, 0)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _child(connection, works, slots)
            connection.close()


def _child(connection: socket.socket, works: Mapping[str, Work], slots: _Slots) -> None:
    """One job, in a process that ends with it."""
    code: int = ExitCode.CRASHED
    try:
        asked = b"".join(iter(lambda: connection.recv(_WORDS), b"")).decode()
        what, _, place = asked.partition("\n")
        folder = Path(place)
        log = os.open(folder / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        with slots.one():
            code = run_child(works[what](folder), folder=folder)
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()  # nobody else would say it: this process ends below, whatever happens
            sys.stderr.flush()
        with contextlib.suppress(OSError):
            connection.sendall(str(int(code)).encode())
        os._exit(int(code))


def main(arguments: list[str]) -> None:
    address, base_model, count = arguments
    slots = _Slots(Path(address).with_suffix(".slots"), int(count))
    slots.folder.mkdir(parents=True, exist_ok=True)
    _serve(Path(address), Path(base_model), slots)


if __name__ == "__main__":
    main(sys.argv[1:])
