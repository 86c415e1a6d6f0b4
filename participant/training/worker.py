"""The training process: `python -m participant.training.worker JOB_FOLDER`, started by `process.run_worker`.

Reads job.json; writes progress to standard output, and at the end result.json and adapter/, or error.json and an exit
code. What can be found wrong without torch is found before its slow import.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from common import basemodel
from common.adapters import ADAPTER_FILE, AdapterLayout, FlatVector, check_file_digest, open_flat
from common.errors import BaseModelMismatch, InvalidArgument, ShapeMismatch
from participant.training import data
from participant.training.child import Reporter, StopRequest, run_child, write_atomically
from participant.training.data import Dataset
from participant.training.job import JOB_FILE, JobKind, Sharding, TrainingJob
from participant.training.ranks import Seat, started
from participant.training.result import RESULT_FILE, JobResult, Phase, Progress

if TYPE_CHECKING:
    from participant.training.execute import Execution
    from participant.training.group import Group
    from participant.training.model import LoadBase

OnProgress = Callable[[Progress], None]

LOCK_FILE: Final = "worker.lock"

_CHECKS: Final = 3


def run_job(folder: Path, report: Reporter, stop: StopRequest, *, base_from: LoadBase | None = None) -> None:
    """Do the job in `folder`, or what is left of it. Raises what `run_child` turns into exit codes.

    A job of several processes is this one's to start and to end. base_from: gives the base model where one is in memory
    already, to a job of one process.
    """
    with _locked(folder):
        written = _written(folder)
        if _is_finished(folder, written.digest):
            return
        (folder / RESULT_FILE).unlink(missing_ok=True)
        if base_from is not None and written.resources.processes > 1:
            raise InvalidArgument("a base model that is in memory is one process's: set processes = 1")
        prepared = _prepared(folder, written, report)

        with _group(folder, written) as group:
            execution = _execution(folder, prepared, report, stop.is_set, group=group, base_from=base_from)
            result = execution.run(prepared.records, layout=prepared.layout, start=prepared.start)
        write_atomically(folder / RESULT_FILE, result.to_json())
        execution.tidy()


def help_job(folder: Path, seat: Seat) -> None:
    """The part of a process beside the first in the job in `folder`; only the first one is asked to stop."""
    from participant.training.group import joined

    written = _written(folder)
    prepared = _prepared(folder, written, lambda _: None)
    with joined(seat, written.resources) as group:
        execution = _execution(folder, prepared, lambda _: None, lambda: False, group=group)
        execution.help(prepared.records, group, layout=prepared.layout, start=prepared.start)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A job whose files are checked. job: with its paths absolute; digest: of the written one; start: float32[d]."""

    job: TrainingJob
    digest: str
    model: basemodel.BaseModel
    layout: AdapterLayout
    start: FlatVector
    records: Dataset


def _written(folder: Path) -> TrainingJob:
    try:
        return TrainingJob.from_json((folder / JOB_FILE).read_bytes())
    except OSError as error:
        raise InvalidArgument(f"cannot read {folder / JOB_FILE}: {error.strerror}") from error


def _prepared(folder: Path, written: TrainingJob, report: OnProgress) -> _Prepared:
    job = written.resolved(folder.resolve())
    report(Progress(phase=Phase.LOAD, step=1, total_steps=_CHECKS, detail="check base model and global adapter"))
    model = _checked_model(job)
    layout = job.layout(model.layers)
    start = _checked_adapter(job, layout)
    report(Progress(phase=Phase.LOAD, step=2, total_steps=_CHECKS, detail="read records"))
    records = data.load(job.data)
    report(Progress(phase=Phase.LOAD, step=3, total_steps=_CHECKS, detail="load the base model"))
    return _Prepared(job, written.digest, model, layout, start, records)


def _execution(
    folder: Path,
    prepared: _Prepared,
    report: OnProgress,
    should_stop: Callable[[], bool],
    *,
    group: Group | None,
    base_from: LoadBase | None = None,
) -> Execution:
    from participant.training.beneath import over  # the slow imports
    from participant.training.execute import Execution
    from participant.training.model import load_base

    return Execution(
        folder,
        prepared.job,
        job_digest=prepared.digest,
        base_model_name=prepared.model.name,
        report=report,
        should_stop=should_stop,
        base_from=over(base_from or load_base, prepared.model.layers, prepared.job.beneath),
        group=group,
    )


@contextlib.contextmanager
def _group(folder: Path, job: TrainingJob) -> Iterator[Group | None]:
    """The processes that the job takes, with this one as the first; None where it is alone.

    Only training is shared out, but with a sharded base model a score too takes all processes.
    """
    resources = job.resources
    if resources.processes == 1 or (job.kind is JobKind.EVALUATE and resources.sharding is Sharding.NONE):
        yield None
        return
    from participant.training.group import check_devices, joined

    check_devices(resources)
    with started(folder, size=resources.processes) as seat, joined(seat, resources) as group:
        yield group


def _checked_model(job: TrainingJob) -> basemodel.BaseModel:
    model = basemodel.describe(job.base_model)
    if model.digest != job.base_model_digest:
        raise BaseModelMismatch(
            f"the base model in {job.base_model} has digest {model.digest}, the plan names {job.base_model_digest}; "
            "use the plan's model: the same weights in the same precision, with the same tokenizer and chat template"
        )
    return model


def _checked_adapter(job: TrainingJob, layout: AdapterLayout) -> FlatVector:
    """The global adapter's float32[d]; its digest, its shape and its numbers are what they should be."""
    file = job.global_adapter / ADAPTER_FILE
    try:
        check_file_digest(file, job.global_adapter_digest)
        flat: FlatVector = np.array(open_flat(file, layout))
    except OSError as error:
        raise ShapeMismatch(f"cannot read the global adapter {file}: {error.strerror}") from error
    if not np.isfinite(flat).all():
        raise ShapeMismatch(f"the global adapter {file} holds a NaN or an infinity; ask for the last accepted one")
    return flat


def _is_finished(folder: Path, job_digest: str) -> bool:
    try:
        return JobResult.from_json((folder / RESULT_FILE).read_bytes()).job_digest == job_digest
    except (OSError, InvalidArgument):
        return False


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time; a predecessor that is about to die with its parent is waited for."""
    try:
        stream = (folder / LOCK_FILE).open("ab")
    except OSError as error:
        raise InvalidArgument(f"cannot write to the job folder {folder}: {error.strerror}") from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def main(arguments: list[str]) -> int:
    """Exit code of the process (`result.ExitCode`)."""
    if len(arguments) != 1:
        print("usage: python -m participant.training.worker JOB_FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    code = run_child(lambda report, stop: run_job(folder, report, stop), folder=folder)
    if "participant.training.group" in sys.modules:
        # All is written. The threads of torch.distributed do not always outlive the interpreter's end in one piece.
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
