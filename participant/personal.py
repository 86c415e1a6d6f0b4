"""A site's own model: a private adapter on top of the global one (and its domain's), and how much of each to use.

The private adapter and what it is made of stay in this site's folders; nothing of it is ever sent.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.adapters import AdapterSpec, flatten, initial_tensors, write_adapter_folder
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
_START_FOLDER: Final = "start"
_TRAIN_FOLDER: Final = "train"
_BLEND_FOLDER: Final = "blend"


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonalWork:
    """What a site's own model is made from.

    adapters: the global one, and behind it the domain's if there is one. spec: shape of the private adapter.
    rows: held-out records for choosing scales and for the table. folder: kept, so that a broken-off run goes on there.
    """

    base_model: BaseModel
    base_folder: Path
    adapters: tuple[NamedAdapter, ...]
    spec: AdapterSpec
    hyperparameters: Hyperparameters
    instruction_set: InstructionSet
    data: DataSettings
    resources: Resources
    rows: int
    folder: Path


def personalise(work: PersonalWork, export: Path, on_progress: Callable[[Progress], None]) -> BlendResult:
    """Train the private adapter, choose the scales, and write the merged model's adapter to a new folder.

    Called again after a kill it goes on where it was. Raises AlreadyExists for a folder that is there, and what
    `run_worker` raises.
    """
    if export.exists():
        raise AlreadyExists(f"{export} exists; name a folder that does not")
    own = NamedAdapter(name=SITE, adapter=_train(work, on_progress))
    adapters = (*work.adapters, own)
    write_blend_job(
        work.folder / _BLEND_FOLDER,
        BlendJob(
            base_model=work.base_folder,
            base_model_digest=work.base_model.digest,
            adapters=adapters,
            instruction_set=work.instruction_set,
            max_length=work.hyperparameters.max_length,
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


def _train(work: PersonalWork, on_progress: Callable[[Progress], None]) -> FrozenAdapter:
    """The private adapter, trained on this site's records with the others frozen beneath it."""
    start = work.folder / _START_FOLDER
    digest = _write_start(start, work)
    job = TrainingJob(
        kind=JobKind.TRAIN,
        base_model=work.base_folder,
        base_model_digest=work.base_model.digest,
        global_adapter=start,
        global_adapter_digest=digest,
        adapter=work.spec,
        method=Method(),
        hyperparameters=work.hyperparameters,
        instruction_set=work.instruction_set,
        data=work.data,
        # Nothing is asked beforehand: the search that follows tells all losses.
        evaluation=EvaluationSettings(loss_records=0, ner_records=0),
        resources=work.resources,
        beneath=tuple(one.adapter for one in work.adapters),
    )
    folder = work.folder / _TRAIN_FOLDER
    write_job(folder, job)
    result = run_worker(folder, on_progress)
    return FrozenAdapter(
        folder=folder / ADAPTER_FOLDER, digest=str(result.adapter_digest), spec=work.spec, method=Method()
    )


def _write_start(folder: Path, work: PersonalWork) -> str:
    layout = work.spec.layout(work.base_model.layers)
    tensors = {
        slot.name: tensor.reshape(slot.shape)
        for slot, tensor in initial_tensors(layout, seed=work.hyperparameters.seed)
    }
    config = work.spec.peft_config(work.base_model.name)
    return write_adapter_folder(folder, flatten(tensors, layout), layout, config)
