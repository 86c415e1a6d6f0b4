"""Private steps: single records' gradients are right, bounded and noisy; a job that goes on draws the same again."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleHooks
from opacus.optimizers import DPOptimizer

from common import basemodel
from common.errors import InvalidArgument, TrainingStopped
from common.methods import Method, adapter_method
from participant.training.dp_sgd import PrivateRecords, SecretNoise, clipped_sum, record_losses
from participant.training.job import Hyperparameters, PrivateSettings, Resources
from participant.training.loop import TrainingTask, train
from participant.training.methods import client_method
from participant.training.model import load_model
from participant.training.per_record import per_record_gradients
from tests.tiny_model import TINY_SPEC

SETTINGS = PrivateSettings(sample_rate=0.3, noise_multiplier=1.0, clip=0.5, records=12)
KEY = bytes(range(32))


@pytest.fixture
def trained(adapted):
    for factor in adapted.factors.values():
        factor.requires_grad_(True)
    return dict(adapted.factors)


def losses_of(adapted, records):
    return lambda rows: record_losses(adapted, [records[row] for row in rows])


def private(records, *, key=KEY, size=5, weights=None, heaviest=1.0, **changes):
    return PrivateRecords(
        records=records,
        weights=weights or [1.0] * len(records),
        heaviest=heaviest,
        settings=replace(SETTINGS, **changes),
        noise=SecretNoise(key),
        micro_batch_size=size,
    )


def gradients_of(steps, adapted, trained, indices, *, step=0):
    steps.fill_gradients(adapted, trained, tuple(indices), step=step)
    return {name: parameter.grad.clone() for name, parameter in trained.items()}


def norm(gradients):
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients.values()))


# --- gradients of single records --------------------------------------------------------------------------------------


def test_gradients_of_a_batch_are_those_of_each_record_alone(adapted, trained, records):
    rows = [0, 5, 7]
    gradients, losses = per_record_gradients(adapted.causal, trained, losses_of(adapted, records), rows)
    for place, row in enumerate(rows):
        alone = record_losses(adapted, [records[row]])
        wanted = torch.autograd.grad(alone.sum(), list(trained.values()))
        torch.testing.assert_close(losses[place], alone[0].detach())
        for (name, gradient), one in zip(gradients.items(), wanted, strict=True):
            torch.testing.assert_close(gradient[place], one, rtol=1e-4, atol=1e-6, msg=name)
    assert all(parameter.grad is None for parameter in trained.values())


def test_layers_without_a_rule_give_the_same_gradients_one_record_at_a_time(adapted, trained, records, monkeypatch):
    wanted, _ = per_record_gradients(adapted.causal, trained, losses_of(adapted, records), [1, 2])
    monkeypatch.setattr(GradSampleHooks, "GRAD_SAMPLERS", {})
    found, _ = per_record_gradients(adapted.causal, trained, losses_of(adapted, records), [1, 2])
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-6)


def test_the_loss_of_a_record_is_the_mean_over_its_answer(adapted, records):
    together = record_losses(adapted, records[:4])
    alone = torch.cat([record_losses(adapted, [record]) for record in records[:4]])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


# --- bound and noise --------------------------------------------------------------------------------------------------


def test_one_record_moves_the_sum_by_no_more_than_the_clip(adapted, trained, records):
    gradients, _ = per_record_gradients(adapted.causal, trained, losses_of(adapted, records), [3])
    large = {name: gradient * 1e6 for name, gradient in gradients.items()}
    assert norm(clipped_sum(large, clip=0.5, weights=torch.ones(1))) == pytest.approx(0.5, rel=1e-4)
    assert norm(clipped_sum(large, clip=0.5, weights=torch.ones(1))) <= 0.5
    small = {name: gradient * 1e-6 for name, gradient in gradients.items()}
    kept = clipped_sum(small, clip=0.5, weights=torch.ones(1))
    torch.testing.assert_close(kept, {name: gradient[0] for name, gradient in small.items()})


def test_clipped_sums_are_those_of_opacus(adapted, trained, records):
    gradients, _ = per_record_gradients(adapted.causal, trained, losses_of(adapted, records), list(range(6)))
    plain = torch.optim.SGD(list(trained.values()), lr=1.0)
    opacus = DPOptimizer(plain, noise_multiplier=0.0, max_grad_norm=0.05, expected_batch_size=1, loss_reduction="sum")
    for name, parameter in trained.items():
        parameter.grad_sample = gradients[name].clone()
    opacus.clip_and_accumulate()
    found = clipped_sum(gradients, clip=0.05, weights=torch.ones(6))
    for name, parameter in trained.items():
        torch.testing.assert_close(found[name], parameter.summed_grad, rtol=1e-3, atol=1e-7)


def test_a_record_whose_gradient_is_not_finite_counts_as_none(adapted, trained, records):
    gradients, _ = per_record_gradients(adapted.causal, trained, losses_of(adapted, records), [0, 1])
    wanted = clipped_sum({name: g[1:] for name, g in gradients.items()}, clip=0.5, weights=torch.ones(1))
    spoilt = {name: gradient.clone() for name, gradient in gradients.items()}
    next(iter(spoilt.values()))[0] = float("nan")
    found = clipped_sum(spoilt, clip=0.5, weights=torch.ones(2))
    torch.testing.assert_close(found, wanted)


def test_a_lighter_record_moves_the_sum_by_its_weight(adapted, trained, records):
    gradients, _ = per_record_gradients(adapted.causal, trained, losses_of(adapted, records), [0])
    large = {name: gradient * 1e6 for name, gradient in gradients.items()}
    assert norm(clipped_sum(large, clip=1.0, weights=torch.tensor([0.25]))) == pytest.approx(0.25, rel=1e-4)


def test_micro_batches_change_memory_and_not_the_gradient(adapted, trained, records):
    whole = gradients_of(private(records, size=12), adapted, trained, range(12))
    parts = gradients_of(private(records, size=5), adapted, trained, range(12))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_an_empty_batch_is_a_step_of_noise_of_the_size_that_was_asked_for(adapted, trained, records):
    steps = private(records, noise_multiplier=2.0, clip=0.5)
    gradients = gradients_of(steps, adapted, trained, ())
    values = np.concatenate([gradient.numpy().ravel() for gradient in gradients.values()])
    expected = 2.0 * 0.5 / (0.3 * 12)
    # The standard error of a standard deviation of so many values is 1.6 %; six of them is no chance.
    assert len(values) == 2048
    assert values.std() == pytest.approx(expected, rel=0.1)
    assert abs(values.mean()) < 6 * expected / math.sqrt(len(values))


def test_more_noise_is_the_same_gradient_with_more_noise(adapted, trained, records):
    quiet = gradients_of(private(records, noise_multiplier=1e-9), adapted, trained, range(6))
    first = gradients_of(private(records, noise_multiplier=1.0), adapted, trained, range(6))
    second = gradients_of(private(records, noise_multiplier=2.0), adapted, trained, range(6))
    for name in quiet:
        torch.testing.assert_close(second[name] - quiet[name], 2 * (first[name] - quiet[name]), rtol=1e-3, atol=1e-5)


def test_one_record_of_a_heavy_domain_does_not_change_what_the_others_count(adapted, trained, records):
    """Else adding a single record would move a step's sum by as much as all others together, and not by the clip."""
    quiet = {"noise_multiplier": 1e-9, "sample_rate": 0.5, "clip": 0.05, "heaviest": 1e6}
    others = [1e5] * (len(records) - 1)
    with_it = gradients_of(private(records, weights=[*others, 1e6], **quiet), adapted, trained, range(len(records)))
    without = gradients_of(private(records[:-1], weights=others, **quiet), adapted, trained, range(len(records) - 1))
    moved = {name: with_it[name] - without[name] for name in with_it}
    # Both are divided by the same expected number of records, which the settings say.
    assert norm(moved) * 0.5 * SETTINGS.records <= 0.05 * (1 + 1e-3)
    assert norm(without) > 0


def test_a_record_over_the_heaviest_weight_is_not_trained(adapted, trained, records):
    with pytest.raises(InvalidArgument, match="more than any may"):
        private(records, weights=[2.0] * len(records)).fill_gradients(adapted, trained, (0,), step=0)


def test_a_tensor_beside_the_methods_own_is_not_trained(adapted, trained, records):
    name = next(iter(trained))
    rest = {other: parameter for other, parameter in trained.items() if other != name}
    with pytest.raises(InvalidArgument, match="without privacy"):
        private(records).fill_gradients(adapted, rest, (0,), step=0)


# --- draws ------------------------------------------------------------------------------------------------------------


def test_every_record_is_drawn_at_the_rate_and_by_itself():
    noise = SecretNoise(KEY)
    drawn = np.zeros((4000, 12))
    for step in range(4000):
        drawn[step, list(noise.drawn(12, rate=0.3, step=step))] = 1.0
    # 4000 draws: a standard error of 0.0072 for a rate and of 0.016 for a correlation.
    assert np.abs(drawn.mean(axis=0) - 0.3).max() < 0.045
    assert np.abs(np.corrcoef(drawn.T) - np.eye(12)).max() < 0.1
    sizes = drawn.sum(axis=1)
    assert sizes.min() == 0.0 or sizes.min() == 1.0
    assert sizes.var() == pytest.approx(12 * 0.3 * 0.7, rel=0.2)


def test_normal_numbers_are_normal_and_no_two_streams_are_alike():
    noise = SecretNoise(KEY)
    values = noise.normal(200_000, step=0, tensor=0)
    assert abs(values.mean()) < 0.015
    assert values.std() == pytest.approx(1.0, abs=0.01)
    assert np.mean(values**4) == pytest.approx(3.0, abs=0.15)
    for other in (noise.normal(200_000, step=1, tensor=0), noise.normal(200_000, step=0, tensor=1)):
        assert abs(np.corrcoef(values, other)[0, 1]) < 0.02
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02


def test_noise_is_another_under_another_key_and_the_key_is_in_no_repr():
    one, other = SecretNoise(KEY), SecretNoise(bytes(32))
    assert not np.array_equal(one.normal(10, step=0, tensor=0), other.normal(10, step=0, tensor=0))
    assert "x1f" not in repr(one)
    assert str(KEY[-4:]) not in repr(one)


def test_a_private_job_without_its_key_trains_nothing(tmp_path):
    with pytest.raises(InvalidArgument, match="cannot be read"):
        SecretNoise.read(tmp_path / "noise.key")
    (tmp_path / "noise.key").write_bytes(b"short")
    with pytest.raises(InvalidArgument, match="5 bytes"):
        SecretNoise.read(tmp_path / "noise.key")


# --- a job ------------------------------------------------------------------------------------------------------------


def task(records, tmp_path, *, key=KEY, checkpoint="checkpoint"):
    return TrainingTask(
        records=records,
        weights=[1.0] * len(records),
        hyperparameters=Hyperparameters(learning_rate=5e-3, batch_size=4, steps=6, max_length=96, seed=11),
        resources=Resources(micro_batch_size=4, checkpoint_every_steps=2),
        method=client_method(Method(), TINY_SPEC, round_=1),
        job_digest="job",
        checkpoint=tmp_path / checkpoint,
        private=private(records, key=key, size=4),
    )


def run(model, job, *, stop_after=None):
    steps = []
    return train(
        model,
        job,
        on_progress=lambda progress: steps.append(progress.step),
        should_stop=lambda: stop_after is not None and bool(steps) and steps[-1] >= stop_after,
    )


def back_to(adapted, start):
    with torch.no_grad():
        for name, factor in adapted.factors.items():
            factor.copy_(start[name])


def test_a_killed_private_job_goes_on_with_the_same_draws_and_ends_with_the_same_bits(adapted, records, tmp_path):
    start = {name: factor.detach().clone() for name, factor in adapted.factors.items()}
    whole = run(adapted, task(records, tmp_path, checkpoint="one"))
    wanted = adapted.flat().copy()
    back_to(adapted, start)
    with pytest.raises(TrainingStopped):
        run(adapted, task(records, tmp_path), stop_after=3)
    back_to(adapted, start)
    resumed = run(adapted, task(records, tmp_path))
    assert resumed.resumed_at_step == 3
    assert resumed.records == whole.records
    assert np.array_equal(adapted.flat(), wanted)


def test_the_plans_seed_has_no_part_in_draws_and_noise(adapted, records, tmp_path):
    start = {name: factor.detach().clone() for name, factor in adapted.factors.items()}
    run(adapted, task(records, tmp_path, checkpoint="one"))
    first = adapted.flat().copy()
    back_to(adapted, start)
    run(adapted, task(records, tmp_path, key=bytes(32), checkpoint="two"))
    assert not np.array_equal(adapted.flat(), first)


def test_steps_go_on_from_where_a_job_was():
    steps = private([None] * 12)
    assert list(islice(steps.batches(first_step=3), 4)) == list(islice(steps.batches(first_step=0), 7))[3:]


# --- other adapters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [Method(name="core"), Method(name="ravan"), Method(name="ffa_lora")], ids=lambda method: method.name
)
def test_gradients_of_single_records_are_right_for_every_methods_layers(method, tiny_folder, records, monkeypatch):
    """By rule, and each record alone as plain automatic differentiation has it."""
    kind = adapter_method(method, TINY_SPEC)
    layers = basemodel.describe(tiny_folder).layers
    layout = kind.layout(layers)
    drawn = np.random.Generator(np.random.PCG64(3)).normal(0.0, 0.2, layout.parameters).astype(np.float32)
    model = load_model(
        tiny_folder,
        spec=TINY_SPEC,
        layout=layout,
        start=drawn,
        device=torch.device("cpu"),
        precision=torch.float32,
        method=method,
    )
    sent = client_method(method, TINY_SPEC, round_=1)
    trained = {name: parameter for name, parameter in model.movable.items() if sent.is_trained(name)}
    for name, parameter in model.movable.items():
        parameter.requires_grad_(name in trained)
    found, _ = per_record_gradients(model.causal, trained, losses_of(model, records), [0, 3])
    monkeypatch.setattr(GradSampleHooks, "GRAD_SAMPLERS", {})
    wanted, _ = per_record_gradients(model.causal, trained, losses_of(model, records), [0, 3])
    assert set(found) == set(trained) != set()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-5, msg=name)
    assert any(float(gradient.abs().max()) > 1e-4 for gradient in wanted.values())
