"""The side by side with TRL: what is Accord's in it runs here, on the tiny model; TRL itself need not be there."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace

import pytest

from benchmarks import training
from benchmarks.peers import accord_training
from benchmarks.training import (
    NOT_TO_BE_HAD,
    Outcome,
    TrlMissing,
    batches_of,
    case_of,
    compared,
    outcome_of,
    trl_python,
)
from common.basemodel import describe
from participant.training.job import write_job
from participant.training.result import RESULT_FILE, JobResult
from tests.tiny_model import make_tiny_model


@pytest.fixture
def job(tmp_path):
    records = tmp_path / "records"
    records.mkdir()
    lines = [json.dumps({"prompt": "sky " * (1 + n % 3) + str(n), "completion": "blue"}) for n in range(24)]
    for name in ("train.jsonl", "test.jsonl"):
        (records / name).write_text("\n".join(lines if name == "train.jsonl" else [line.upper() for line in lines[:3]]))
    (records / "test.jsonl").write_text(json.dumps({"prompt": "grass", "completion": "green"}))
    options = argparse.Namespace(
        base_model=make_tiny_model(tmp_path / "tiny"),
        data=records,
        learning_rate=1e-3,
        batch_size=4,
        steps=3,
        max_length=96,
        threads=1,
        device="cpu",
        precision="float32",
        objective="sft",
    )
    return training.job_of(options, tmp_path)


@pytest.fixture
def pair_job(tmp_path, job):
    lines = [json.dumps({"instruction": f"Name {n}.", "output": ("sky", "sea")[n % 2]}) for n in range(24)]
    job.data.train_path.write_text(training.paired(lines))
    job.data.held_out_path.write_text(training.paired([line.replace("Name", "Say") for line in lines[:2]]))
    return replace(
        job,
        hyperparameters=replace(job.hyperparameters, dpo_beta=0.1),
        resources=replace(job.resources, micro_batch_size=8),
    )


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["training", *arguments])
    return training.main()


def test_without_trl_the_exit_code_and_the_words_say_so(monkeypatch, capsys):
    assert run(monkeypatch, "--python", sys.executable) == NOT_TO_BE_HAD
    said = capsys.readouterr()
    assert said.out == ""
    assert "TRL is not to be had here" in said.err
    assert sys.executable in said.err


def test_a_python_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TrlMissing, match="no-python"):
        trl_python(tmp_path / "no-python")


@pytest.mark.parametrize("arguments", [("--steps", "1"), ("--repetitions", "0"), ("--batch-size", "0")])
def test_sizes_that_leave_nothing_to_measure_are_refused(monkeypatch, arguments):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *arguments)
    assert ended.value.code == 2


def test_trl_is_handed_the_batches_that_accords_process_trains_on(job, tmp_path, capsys):
    drawn = batches_of(job)
    write_job(tmp_path / "job", job)
    accord_training.main(tmp_path / "job")
    result = JobResult.from_json((tmp_path / "job" / RESULT_FILE).read_bytes())
    case = case_of(job, drawn, precision="float32", output=tmp_path)
    assert result.training is not None
    assert sum(len(row) for row in case.rows) == result.training.tokens
    assert sum(sum(flags) for flags in case.answers) == result.training.answer_tokens
    assert len(case.rows) == result.training.records == 3 * case.batch_size
    outcome, precision = outcome_of(capsys.readouterr().out, [sum(len(r.ids) for r in batch) for batch in drawn])
    assert precision == "float32"
    assert outcome.losses == result.training.losses
    assert min(outcome.tokens_per_second, outcome.cpu_tokens_per_second, outcome.peak_mib) > 0


def test_trl_is_handed_the_pairs_that_accords_process_trains_on(pair_job, tmp_path, capsys):
    drawn = batches_of(pair_job)
    write_job(tmp_path / "job", pair_job)
    accord_training.main(tmp_path / "job")
    result = JobResult.from_json((tmp_path / "job" / RESULT_FILE).read_bytes())
    case = case_of(pair_job, drawn, precision="float32", output=tmp_path)
    assert result.training is not None
    assert len(case.rows) == len(case.rejected_rows) == result.training.records
    for row, flags, rejected in zip(case.rows, case.answers, case.rejected_rows, strict=True):
        prompt = flags.index(1)
        assert row[:prompt] == rejected[:prompt]
        assert row[prompt:] != rejected[prompt:]
    assert result.training.losses[0] == pytest.approx(math.log(2), abs=1e-5)


def test_of_records_with_one_answer_there_are_no_pairs():
    line = json.dumps({"instruction": "Name it.", "output": "sky"})
    assert training.paired([line, line]) == ""


def test_an_adapter_of_either_side_is_judged_by_the_same_records(job, tmp_path):
    layout = job.layout(describe(job.base_model).layers)
    loss = training.held_out_loss(job, tmp_path / "judged", job.global_adapter, layout)
    assert 0.0 < loss < 20.0


def test_the_first_step_does_not_count():
    told = {"times": [[10.0, 5.0], [12.0, 6.0], [14.0, 7.0]], "losses": [1.0, 1.0, 1.0], "peak_mib": 1.0}
    outcome, _ = outcome_of(json.dumps(told), [1_000, 40, 60])
    assert (outcome.tokens_per_second, outcome.cpu_tokens_per_second) == (25.0, 50.0)


def test_ratios_are_of_medians_and_over_one_where_accord_is_better():
    accord = [Outcome(rate, rate, 100.0, ()) for rate in (30.0, 90.0, 40.0)]
    trl = [Outcome(rate, rate, 250.0, ()) for rate in (20.0, 10.0, 80.0)]
    found = compared(accord, trl)
    assert (found["tokens_per_second"], found["trl_tokens_per_second"], found["speed_ratio"]) == (40.0, 20.0, 2.0)
    assert found["peak_memory_ratio"] == 2.5
