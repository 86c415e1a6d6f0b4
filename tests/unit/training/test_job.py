from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from common import jsonform
from common.adapters import AdapterSpec
from common.errors import InvalidArgument
from common.instructions import chat_instruction_set
from common.methods import Method
from participant.config import TrainingConfig
from participant.training.group import check_devices
from participant.training.job import (
    DataSettings,
    Device,
    Hyperparameters,
    JobKind,
    Resources,
    Sharding,
    TrainingJob,
    write_job,
)
from participant.training.result import Phase, Progress

JOB = TrainingJob(
    kind=JobKind.TRAIN,
    base_model=Path("model"),
    base_model_digest="aa",
    global_adapter=Path("/adapters/global"),
    global_adapter_digest="bb",
    adapter=AdapterSpec(8, 16.0, ("q_proj",)),
    method=Method(),
    hyperparameters=Hyperparameters(learning_rate=1e-3, batch_size=8, steps=9, max_length=64, seed=7),
    instruction_set=chat_instruction_set(),
    data=DataSettings(train_path=Path("train.jsonl"), held_out_path=Path("held.jsonl")),
)


def test_job_comes_back_equal_from_its_file(tmp_path):
    write_job(tmp_path / "job", JOB)
    again = TrainingJob.from_json((tmp_path / "job" / "job.json").read_bytes())
    assert again == JOB
    assert again.digest == JOB.digest
    assert replace(JOB, kind=JobKind.EVALUATE).digest != JOB.digest


def test_all_mistakes_of_a_job_are_listed_with_their_paths():
    broken = json.loads(JOB.to_json())
    broken["adapter"]["rank"] = "8"
    broken["hyperparameters"]["steps"] = 2.5
    broken["method"] = "magic"
    broken["speed"] = "fast"
    del broken["kind"]
    with pytest.raises(InvalidArgument) as caught:
        TrainingJob.from_json(json.dumps(broken))
    for path in ("adapter.rank", "hyperparameters.steps", "method", "speed", "kind"):
        assert f"{path}:" in caught.value.message


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"batch_size": 0},
        {"steps": 0},
        {"max_length": 1},
        {"max_gradient_norm": 0.0},
        {"weight_decay": -0.1},
        {"seed": -1},
    ],
)
def test_hyperparameters_out_of_range_are_refused(change):
    with pytest.raises(InvalidArgument):
        replace(JOB.hyperparameters, **change)


def test_relative_paths_are_taken_from_the_job_folder(tmp_path):
    job = JOB.resolved(tmp_path)
    assert job.base_model == tmp_path / "model"
    assert job.global_adapter == Path("/adapters/global")
    assert (job.data.train_path, job.data.held_out_path) == (tmp_path / "train.jsonl", tmp_path / "held.jsonl")


def test_json_form_refuses_numbers_that_are_none():
    with pytest.raises(ValueError, match="JSON compliant"):
        jsonform.encode(Progress(phase=Phase.TRAIN, step=1, total_steps=2, loss=float("nan")), Progress)


def test_what_the_daemon_imports_brings_no_torch():
    modules = ("job", "result", "process", "templates", "sources", "data")
    imports = "; ".join(f"import participant.training.{module}" for module in modules)
    loaded = "sorted({'torch', 'transformers', 'peft'} & set(sys.modules))"
    check = f"{imports}; import common.basemodel, sys; print({loaded})"
    done = subprocess.run(
        [sys.executable, "-c", check],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.strip() == "[]"


def test_a_base_model_is_shared_only_between_several_processes():
    with pytest.raises(InvalidArgument, match="processes over 1"):
        Resources(sharding=Sharding.FSDP)
    with pytest.raises(ValidationError, match="processes over 1"):
        TrainingConfig(sharding=Sharding.FSDP)
    resources = TrainingConfig(processes=2, sharding=Sharding.FSDP).resources()
    assert (resources.processes, resources.sharding) == (2, Sharding.FSDP)


def test_fewer_gpus_than_processes_are_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InvalidArgument, match=r"processes = 3, and torch sees 2 GPU"):
        check_devices(Resources(processes=3))
    check_devices(Resources(processes=2))
    check_devices(Resources(processes=3, device=Device.CPU))
