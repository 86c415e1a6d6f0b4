"""A site's own model: a private adapter on top of the global one (and its domain's), and how much of each to use.

Beside them what the site reaches alone, an adapter of the base model as it is: local and global models are mixed as in
Deng et al. 2020 (APFL, arXiv 2003.13461), with a scale for each. So whoever joins is, by the records that choose, no
worse off than alone, and sees by how much. All of it stays in this site's folders; nothing is ever sent.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from common.adapters import AdapterSpec, write_initial_folder
from common.basemodel import BaseModel
from common.errors import AlreadyExists, StorageFailed
from common.instructions import InstructionSet
from common.methods import Method
from participant.merged import write_merged
from participant.training.blend_job import BlendJob, BlendResult, NamedAdapter, write_blend_job
from participant.training.job import (
    DataSettings,
    EvaluationSettings,
    FrozenAdapter,
    Hyperparameters,
    JobKind,
    Resources,
    TrainingJob,
    write_job,
)
from participant.training.process import run_blend, run_worker
from participant.training.result import ADAPTER_FOLDER, Progress

SITE: Final = "site"
ALONE: Final = "alone"
_START_FOLDER: Final = "start"
_TRAIN_FOLDER: Final = "train"
_BLEND_FOLDER: Final = "blend"
_HELD_FOLDER: Final = "adapters"


@dataclass(frozen=True, slots=True)
class OwnTraining:
    """An adapter that this site trains by itself: its shape, and how."""

    spec: AdapterSpec
    hyperparameters: Hyperparameters


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonalWork:
    """What a site's own model is made from.

    adapters: the global one, and behind it the domain's if there is one. private: on top of them. alone: without them;
    None leaves it out. rows: held-out records for choosing scales and for the table. folder: kept, so that a broken-off
    run goes on there.
    """

    base_model: BaseModel
    base_folder: Path
    adapters: tuple[NamedAdapter, ...]
    private: OwnTraining
    alone: OwnTraining | None
    instruction_set: InstructionSet
    data: DataSettings
    resources: Resources
    rows: int
    folder: Path


def personalise(work: PersonalWork, export: Path, on_progress: Callable[[Progress], None]) -> BlendResult:
    """Train what is this site's own, choose the scales, and write the merged model's adapter to a new folder.

    Called again after a kill it goes on where it was. Raises AlreadyExists for a folder that is there, and what
    `run_worker` raises.
    """
    if export.exists():
        raise AlreadyExists(f"{export} exists; name a folder that does not")
    work = replace(work, adapters=tuple(_held(one, work.folder / _HELD_FOLDER) for one in work.adapters))
    beneath = tuple(one.adapter for one in work.adapters)
    own = [NamedAdapter(name=SITE, adapter=_train(work, work.private, work.folder, on_progress, beneath=beneath))]
    if work.alone is not None:
        alone = _train(work, work.alone, work.folder / ALONE, on_progress)
        own.append(NamedAdapter(name=ALONE, adapter=alone, stands_alone=True))
    adapters = (*work.adapters, *own)
    write_blend_job(
        work.folder / _BLEND_FOLDER,
        BlendJob(
            base_model=work.base_folder,
            base_model_digest=work.base_model.digest,
            adapters=adapters,
            instruction_set=work.instruction_set,
            max_length=work.private.hyperparameters.max_length,
            data=work.data,
            rows=work.rows,
            resources=work.resources,
        ),
    )
    result = run_blend(work.folder / _BLEND_FOLDER, on_progress)
    parts = [(one.adapter, scale) for one, scale in zip(adapters, result.scales, strict=True)]
    arriving = export.with_name(f".{export.name}.partial")
    try:
        shutil.rmtree(arriving, ignore_errors=True)
        write_merged(arriving, work.base_model.layers, parts, base_model_name=work.base_model.name)
        arriving.rename(export)
    except OSError as error:
        raise StorageFailed(f"cannot write {export}: {error.strerror}") from error
    return result


def _held(named: NamedAdapter, place: Path) -> NamedAdapter:
    """The adapter in a folder of this work: the daemon deletes old ones, and training may take as long as a run did."""
    adapter = named.adapter
    folder, arriving = place / adapter.digest, place / f".{adapter.digest}"
    if not folder.exists():
        shutil.rmtree(arriving, ignore_errors=True)
        try:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copytree(adapter.folder, arriving)
            arriving.rename(folder)
        except (OSError, shutil.Error) as error:
            raise StorageFailed(f"cannot copy the adapter {adapter.digest[:12]} to {place}: {error}") from error
    return replace(named, adapter=replace(adapter, folder=folder))


def _train(
    work: PersonalWork,
    own: OwnTraining,
    place: Path,
    on_progress: Callable[[Progress], None],
    *,
    beneath: tuple[FrozenAdapter, ...] = (),
) -> FrozenAdapter:
    """An adapter trained on this site's records, with others frozen beneath it; the work lies in `place`."""
    start = place / _START_FOLDER
    model = work.base_model
    digest = write_initial_folder(
        start, model.layers, own.spec, seed=own.hyperparameters.seed, base_model_name=model.name
    )
    job = TrainingJob(
        kind=JobKind.TRAIN,
        base_model=work.base_folder,
        base_model_digest=work.base_model.digest,
        global_adapter=start,
        global_adapter_digest=digest,
        adapter=own.spec,
        method=Method(),
        hyperparameters=own.hyperparameters,
        instruction_set=work.instruction_set,
        data=work.data,
        # Nothing is asked beforehand: the search that follows tells all losses.
        evaluation=EvaluationSettings(loss_records=0, ner_records=0),
        resources=work.resources,
        beneath=beneath,
    )
    folder = place / _TRAIN_FOLDER
    write_job(folder, job)
    result = run_worker(folder, on_progress)
    return FrozenAdapter(
        folder=folder / ADAPTER_FOLDER, digest=str(result.adapter_digest), spec=own.spec, method=Method()
    )
