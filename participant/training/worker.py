"""The training process: `python -m participant.training.worker JOB_FOLDER`, started by `process.run_worker`.

Reads job.json; writes progress to standard output, and at the end result.json and adapter/, or error.json and an exit
code. What can be found wrong without torch is found before its slow import.
"""

from __future__ import annotations

import contextlib
import fcntl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from common import basemodel
from common.adapters import ADAPTER_FILE, AdapterLayout, FlatVector, check_file_digest, open_flat
from common.errors import BaseModelMismatch, InvalidArgument, ShapeMismatch
from participant.training import data
from participant.training.child import Reporter, StopRequest, run_child, write_atomically
from participant.training.job import JOB_FILE, TrainingJob
from participant.training.result import RESULT_FILE, JobResult, Phase, Progress

if TYPE_CHECKING:
    from participant.training.model import LoadBase

LOCK_FILE: Final = "worker.lock"

_CHECKS: Final = 3


def run_job(folder: Path, report: Reporter, stop: StopRequest, *, base_from: LoadBase | None = None) -> None:
    """Do the job in `folder`, or what is left of it. Raises what `run_child` turns into exit codes.

    base_from: gives the base model where one is in memory already.
    """
    with _locked(folder):
        try:
            written = TrainingJob.from_json((folder / JOB_FILE).read_bytes())
        except OSError as error:
            raise InvalidArgument(f"cannot read {folder / JOB_FILE}: {error.strerror}") from error
        if _is_finished(folder, written.digest):
            return
        (folder / RESULT_FILE).unlink(missing_ok=True)
        job = written.resolved(folder.resolve())
        report(Progress(phase=Phase.LOAD, step=1, total_steps=_CHECKS, detail="check base model and global adapter"))
        model = _checked_model(job)
        layout = job.layout(model.layers)
        start = _checked_adapter(job, layout)
        report(Progress(phase=Phase.LOAD, step=2, total_steps=_CHECKS, detail="read records"))
        records = data.load(job.data)
        report(Progress(phase=Phase.LOAD, step=3, total_steps=_CHECKS, detail="load the base model"))

        from participant.training.beneath import over  # the slow imports
        from participant.training.execute import Execution
        from participant.training.model import load_base

        execution = Execution(
            folder,
            job,
            job_digest=written.digest,
            base_model_name=model.name,
            report=report,
            stop=stop,
            base_from=over(base_from or load_base, model.layers, job.beneath),
        )
        write_atomically(folder / RESULT_FILE, execution.run(records, layout=layout, start=start).to_json())
        execution.tidy()


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
    return run_child(lambda report, stop: run_job(folder, report, stop), folder=folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
