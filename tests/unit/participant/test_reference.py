"""What a site reaches alone: found once in a run, with the same records, and summed where its domain's figures are."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common import jsonform
from common.adapters import AdapterSpec
from common.basemodel import describe
from common.domains import PlanDomain
from common.instruction_updates import Reference, Updates
from common.instructions import Task, chat_instruction_set
from common.methods import Method
from coordinator.domain_planning import with_domains
from participant.reference import local_reference
from participant.trainer import contribution_of
from participant.training.job import JOB_FILE, DataSettings, EvaluationSettings, Hyperparameters, JobKind, TrainingJob
from participant.training.result import CellScores, JobResult
from tests.site_files import write_model, write_records
from tests.unit.rounds import made
from tests.unit.training.test_asked import CELLS, result_of, result_of_domains

SPEC = AdapterSpec(rank=2, alpha=4.0, target_modules=("q_proj",))


@pytest.fixture
def job(tmp_path: Path) -> TrainingJob:
    model = write_model(tmp_path / "model")
    return TrainingJob(
        kind=JobKind.TRAIN,
        base_model=model,
        base_model_digest=describe(model).digest,
        global_adapter=tmp_path / "global",
        global_adapter_digest="ab" * 32,
        adapter=SPEC,
        method=Method(name="ffa_lora"),
        round=3,
        hyperparameters=Hyperparameters(learning_rate=1e-3, batch_size=4, steps=5, max_length=64, seed=9),
        instruction_set=chat_instruction_set(),
        data=DataSettings(train_path=write_records(tmp_path / "train.jsonl")),
        evaluation=EvaluationSettings(loss_records=20, ner_records=4, instruction_records=4),
        candidate_records=8,
    )


class Workers:
    """Stands for the child processes: notes each job, and ends it as a child would, or dies."""

    def __init__(self) -> None:
        self.jobs: list[TrainingJob] = []
        self.dies: Callable[[TrainingJob], bool] = lambda job: False

    def __call__(self, job_folder: Path, on_progress: object, *, stop: object = None) -> JobResult:
        job = TrainingJob.from_json((job_folder / JOB_FILE).read_bytes())
        self.jobs.append(job)
        if self.dies(job):
            raise KeyboardInterrupt
        cells = (CellScores(domain="bank", task=Task.CLASSIFICATION, rows=10, loss=15.0),)
        return replace(result_of(), cells=cells, adapter_digest="cd" * 32)


@pytest.fixture
def workers() -> Workers:
    return Workers()


def ask(folder: Path, job: TrainingJob, workers: Workers) -> Any:
    return local_reference(
        folder,
        job,
        spec=SPEC,
        seed=4,
        steps=30,
        run_job=workers,
        on_progress=lambda progress: None,
        stop=threading.Event(),
    )


def test_a_site_trains_alone_from_nothing_and_is_scored_by_the_same_records(tmp_path, job, workers):
    assert ask(tmp_path / "reference", job, workers) == {("bank", Task.CLASSIFICATION): 1.5}
    train, score = workers.jobs
    assert (train.kind, score.kind) == (JobKind.TRAIN, JobKind.EVALUATE)
    assert (train.method.name, train.hyperparameters.steps, train.hyperparameters.seed) == ("fedit", 30, 4)
    assert train.global_adapter != job.global_adapter
    assert train.data == score.data == job.data
    assert train.instruction_set == job.instruction_set
    assert score.evaluation.loss_records == 20
    assert train.evaluation.loss_records == train.candidate_records == score.candidate_records == 0
    assert score.global_adapter_digest == "cd" * 32


def test_it_is_found_once_in_a_run_and_goes_on_after_a_kill(tmp_path, job, workers):
    workers.dies = lambda one: one.kind is JobKind.EVALUATE
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path / "reference", job, workers)
    first = workers.jobs[0]
    workers.dies = lambda one: False
    ask(tmp_path / "reference", replace(job, round=4), workers)
    # The same training job again: the child finds its own result, and does nothing twice.
    assert workers.jobs[2] == first
    ask(tmp_path / "reference", replace(job, round=5), workers)
    assert len(workers.jobs) == 4


def test_the_sum_has_the_reference_as_often_as_there_are_records():
    domains = (PlanDomain("bank", tasks=(Task.CLASSIFICATION,)),)
    plan, _ = with_domains(made.plan(), domains, jsonform.encode(Updates(reference=Reference.LOCAL), Updates))
    found = contribution_of(result_of_domains(), plan, alone={("bank", Task.CLASSIFICATION): 0.5}).metrics
    assert found["bank/classification/reference"] == 0.5 * CELLS[0].rows
    given, _ = with_domains(made.plan(), domains, jsonform.encode(Updates(reference=Reference.GIVEN), Updates))
    assert "bank/classification/reference" not in contribution_of(result_of_domains(), given).metrics
