"""What this site reaches alone: an adapter of its own, trained once in a run on its own records, and its losses.

By domain and task, over the same held-out records as the global adapter's: the regret that domains' shares follow is
the difference. The adapter stays in the run's folder and goes with it; of the losses only masked sums leave the site.
Trained for a fixed number of steps and not stopped early: with more steps than a site's records bear, staying alone
looks worse than it is, and its domain's regret smaller.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from common import basemodel, jsonform
from common.adapters import AdapterSpec, write_initial_folder
from common.errors import InvalidArgument
from common.instructions import Task
from common.methods import Method
from participant.training.child import write_atomically
from participant.training.job import JobKind, TrainingJob, write_job
from participant.training.process import OnProgress, RunJob
from participant.training.result import ADAPTER_FOLDER, JobResult

REFERENCE_FOLDER: Final = "reference"
_LOSSES_FILE: Final = "losses.json"

LocalLosses = Mapping[tuple[str, Task], float]
"""By domain and task the mean of the records' mean losses, each at most `LOSS_BOUND`."""


@dataclass(frozen=True, slots=True)
class _CellLoss:
    domain: str
    task: Task
    loss: float


@dataclass(frozen=True, slots=True)
class _Kept:
    losses: tuple[_CellLoss, ...]


def local_reference(
    folder: Path,
    job: TrainingJob,
    *,
    spec: AdapterSpec,
    seed: int,
    steps: int,
    run_job: RunJob,
    on_progress: OnProgress,
    stop: threading.Event,
) -> LocalLosses:
    """The losses, from `folder` where they were found before; else trained and measured now.

    job: a training round's, whose data, templates and hyperparameters are used. Broken off, it goes on from its last
    checkpoint while seed and the rest of the job stay the same. Raises what `run_job` raises.
    """
    kept = _kept(folder)
    if kept is None:
        result = _measured(
            folder, job, spec=spec, seed=seed, steps=steps, run_job=run_job, on_progress=on_progress, stop=stop
        )
        kept = _Kept(
            tuple(_CellLoss(cell.domain, cell.task, cell.loss / cell.rows) for cell in result.cells if cell.rows)
        )
        write_atomically(folder / _LOSSES_FILE, jsonform.encode(kept, _Kept))
    return {(one.domain, one.task): one.loss for one in kept.losses}


def _kept(folder: Path) -> _Kept | None:
    try:
        return jsonform.decode((folder / _LOSSES_FILE).read_bytes(), _Kept, what="kept reference losses")
    except (OSError, InvalidArgument):
        return None


def _measured(
    folder: Path,
    job: TrainingJob,
    *,
    spec: AdapterSpec,
    seed: int,
    steps: int,
    run_job: RunJob,
    on_progress: OnProgress,
    stop: threading.Event,
) -> JobResult:
    """Train an adapter from nothing on this site's records, and score it on its held-out ones."""
    start = folder / "start"
    layers = basemodel.describe(job.base_model).layers
    digest = write_initial_folder(start, layers, spec, seed=seed, base_model_name="reference")
    alone = replace(
        job,
        kind=JobKind.TRAIN,
        global_adapter=start,
        global_adapter_digest=digest,
        adapter=spec,
        method=Method(),
        round=1,
        correction=None,
        correction_digest="",
        candidate_records=0,
        hyperparameters=replace(job.hyperparameters, steps=steps, seed=seed),
        evaluation=replace(job.evaluation, loss_records=0, ner_records=0, instruction_records=0),
    )
    write_job(folder / "train", alone)
    trained = run_job(folder / "train", on_progress, stop=stop)
    scored = replace(
        alone,
        kind=JobKind.EVALUATE,
        global_adapter=folder / "train" / ADAPTER_FOLDER,
        global_adapter_digest=str(trained.adapter_digest),
        evaluation=replace(job.evaluation, ner_records=0, instruction_records=0),
    )
    write_job(folder / "score", scored)
    return run_job(folder / "score", on_progress, stop=stop)
