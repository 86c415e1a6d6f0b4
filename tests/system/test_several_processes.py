"""A training job of several processes on one machine (gloo on the CPU), against the same job of one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from common import basemodel
from common.adapters import ADAPTER_FILE, open_flat
from common.errors import InvalidArgument, TrainingFailed
from participant.training.job import JobKind, PrivateSettings, Sharding
from participant.training.result import ADAPTER_FOLDER, Phase, Progress
from tests.system.test_training_worker import Site, make_site, running, stopped_at_four
from tests.tiny_model import TINY_SPEC, make_tiny_model

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

# Of sums in another order, in float32: relative; for the adapter, of the distance that 12 steps have moved it.
TOLERANCE = 1e-5
SEVERAL = (Sharding.NONE, Sharding.FSDP)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def alone(tmp_path_factory, model) -> Site:
    """A site whose folder `job` is a finished job of one process. A step has 5 records: shares are uneven."""
    site = make_site(tmp_path_factory.mktemp("alone"), model)
    site.job = replace(site.job, hyperparameters=replace(site.job.hyperparameters, batch_size=5))
    site.run()
    return site


@pytest.fixture
def site(tmp_path, model, alone) -> Site:
    return replace(make_site(tmp_path, model), job=replace(alone.job, data=alone.job.data))


def several(site: Site, sharding: Sharding = Sharding.NONE):
    """Shares of 3 and 2 records, in micro-batches of two: the one process has a pass more than the other."""
    return replace(site.job.resources, processes=2, sharding=sharding, micro_batch_size=2)


def flat(site: Site, name: str = "job"):
    return np.frombuffer(site.adapter(name), dtype=np.float32)


def moved(site: Site):
    layout = TINY_SPEC.layout(basemodel.describe(site.job.base_model).layers)
    return flat(site) - np.array(open_flat(site.folder / "global" / ADAPTER_FILE, layout))


def others(folder: Path) -> list[psutil.Process]:
    return [process for process in running(folder) if "participant.training.ranks" in process.cmdline()]


@pytest.mark.parametrize("sharding", SEVERAL)
def test_two_processes_come_to_the_scores_losses_and_adapter_of_one(site, alone, sharding):
    wanted = alone.run()
    found = site.run(resources=several(site, sharding))
    assert wanted.training is not None
    assert found.training is not None
    assert found.training.losses == pytest.approx(wanted.training.losses, rel=TOLERANCE)
    assert np.linalg.norm(flat(site) - flat(alone)) <= TOLERANCE * np.linalg.norm(moved(alone))
    assert (found.training.records, found.training.answer_tokens) == (60, wanted.training.answer_tokens)
    [score], [plain] = found.scores, wanted.scores
    assert (score.loss_records, score.classified) == (plain.loss_records, plain.classified)
    assert score.mean_loss == pytest.approx(plain.mean_loss, rel=TOLERANCE)
    assert others(site.folder / "job") == []
    assert list((site.folder / "job").glob(".ranks-*")) == []


def test_a_killed_process_ends_the_job_with_the_reason_and_the_job_goes_on_to_the_same_bits(site):
    whole = {"resources": several(site), "hyperparameters": replace(site.job.hyperparameters, steps=60)}

    def kill_the_other(progress: Progress) -> None:
        if progress.phase is Phase.TRAIN and progress.step == 7:
            for process in others(site.folder / "killed"):
                process.kill()

    with pytest.raises(TrainingFailed, match=r"process 2 of 2 was killed \(signal 9\).*last checkpoint"):
        site.run("killed", on_progress=kill_the_other, **whole)
    assert running(site.folder / "killed") == []
    result = site.run("killed", **whole)
    site.run("whole", **whole)
    assert result.training is not None
    assert result.training.resumed_at_step >= 6
    assert site.adapter("killed") == site.adapter("whole")


def test_the_other_process_ends_with_a_first_one_that_is_killed(site):
    seen: list[psutil.Process] = []

    def kill_the_first(progress: Progress) -> None:
        if progress.phase is Phase.TRAIN and progress.step == 2:
            seen.extend(others(site.folder / "job"))
            for process in running(site.folder / "job"):
                if process not in seen:
                    process.kill()

    steps = replace(site.job.hyperparameters, steps=1_000_000)
    with pytest.raises(TrainingFailed, match="signal 9"):
        site.run(on_progress=kill_the_first, resources=several(site), hyperparameters=steps)
    assert len(seen) == 1
    assert psutil.wait_procs(seen, timeout=30)[1] == []


def test_processes_that_are_asked_to_stop_do_so_at_one_step_and_leave_a_checkpoint(site):
    stopped_at_four(site, several(site))


def test_a_training_that_diverges_in_two_processes_fails_with_the_same_reason(site):
    with pytest.raises(TrainingFailed, match=r"step 1 gave .* gradient norm inf.*diverged"):
        site.run(adapter=replace(site.job.adapter, alpha=1e38), resources=several(site))


def test_an_evaluation_of_a_sharded_model_gives_the_scores_of_a_whole_one(site, alone):
    found = site.run(kind=JobKind.EVALUATE, resources=several(site, Sharding.FSDP))
    [score], [plain] = found.scores, alone.run().scores
    assert (score.loss_records, score.classified) == (plain.loss_records, plain.classified)
    assert score.mean_loss == pytest.approx(plain.mean_loss, rel=TOLERANCE)
    assert not (site.folder / "job" / ADAPTER_FOLDER).exists()


def test_private_steps_and_preference_tuning_in_several_processes_are_refused_in_words(site):
    private = PrivateSettings(sample_rate=0.1, noise_multiplier=1.0, clip=1.0, records=30)
    with pytest.raises(InvalidArgument, match=r"processes = 2, and private steps \(DP-SGD\) take one process"):
        replace(site.job, resources=several(site), private=private)
    pairs = replace(site.job.hyperparameters, dpo_beta=0.1)
    with pytest.raises(InvalidArgument, match=r"processes = 2, and preference tuning \(DPO\) takes one process"):
        replace(site.job, resources=several(site), hyperparameters=pairs)
