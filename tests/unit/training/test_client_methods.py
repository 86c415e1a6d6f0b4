from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from common import basemodel
from common.adapters import LinearLayer
from common.errors import TrainingStopped
from common.methods import Method, adapter_method, tensor_name
from participant.training.job import Hyperparameters, Resources
from participant.training.loop import TrainingTask, train
from participant.training.methods import client_method
from participant.training.model import load_model
from tests.tiny_model import TINY_SPEC

SETTINGS = Hyperparameters(learning_rate=5e-3, batch_size=4, steps=6, max_length=96, seed=11)


@pytest.fixture(scope="module")
def layers(tiny_folder) -> tuple[LinearLayer, ...]:
    return basemodel.describe(tiny_folder).layers


@pytest.fixture
def site(tiny_folder, layers, records):
    """A site that trains from a moved global adapter: (names and start values, trained model, figures)."""

    def begin(method):
        kind = adapter_method(method, TINY_SPEC)
        start = np.concatenate([values for _, values in kind.initial(layers, seed=4)])
        start += 0.05 * np.random.default_rng(1).standard_normal(start.size).astype(np.float32)
        model = load_model(
            tiny_folder,
            spec=TINY_SPEC,
            method=method,
            layout=kind.layout(layers),
            start=start,
            device=torch.device("cpu"),
            precision=torch.float32,
        )
        return start, model

    def task(method, *, round_=1, steps=6, checkpoint=None, every=0, correction=None):
        return TrainingTask(
            records=records,
            weights=[1.0] * len(records),
            hyperparameters=replace(SETTINGS, steps=steps),
            resources=Resources(micro_batch_size=4, checkpoint_every_steps=every),
            method=client_method(method, TINY_SPEC, round_=round_, correction=correction),
            job_digest="job",
            checkpoint=checkpoint,
        )

    return begin, task


def go(model, task, *, stop_after=None):
    steps = []
    return train(
        model,
        task,
        on_progress=lambda progress: steps.append(progress.step),
        should_stop=lambda: stop_after is not None and len(steps) >= stop_after,
    )


def moved(model, start):
    """Names of the stored tensors that have changed."""
    flat = model.flat()
    return {
        slot.name.split(".")[-2]
        for slot in model.layout.slots
        if not np.array_equal(flat[slot.offset :][: slot.size], start[slot.offset :][: slot.size])
    }


@pytest.mark.parametrize(
    ("method", "round_", "names"),
    [
        (Method(), 1, {"lora_A", "lora_B"}),
        (Method(name="ffa_lora"), 1, {"lora_B"}),
        (Method(name="rolora"), 1, {"lora_B"}),
        (Method(name="rolora"), 2, {"lora_A"}),
        (Method(name="rolora"), 3, {"lora_B"}),
        (Method(name="core"), 2, {"core_R"}),
        (Method(name="ravan"), 2, {"ravan_H"}),
    ],
)
def test_only_what_is_sent_in_the_round_moves_and_the_site_learns(method, round_, names, site):
    begin, task = site
    start, model = begin(method)

    figures = go(model, task(method, round_=round_, steps=12))

    assert moved(model, start) == names
    assert np.mean(figures.losses[-3:]) < np.mean(figures.losses[:3])


@pytest.mark.parametrize(("method", "round_"), [("ffa_lora", 1), ("rolora", 1), ("rolora", 2), ("core", 1)])
def test_no_gradient_of_a_frozen_tensor_is_ever_made(method, round_, site):
    begin, task = site
    _, model = begin(Method(name=method))
    training = task(Method(name=method), round_=round_, steps=2)

    go(model, training)

    gradients = {name: tensor.grad for name, tensor in model.factors.items()}
    assert {name for name, gradient in gradients.items() if gradient is not None} == {
        name for name in gradients if training.method.is_trained(name)
    }


def test_ravan_trains_its_scalars_too(site):
    begin, task = site
    _, model = begin(Method(name="ravan"))

    go(model, task(Method(name="ravan")))

    assert all((scalar != 1.0).all() for scalar in model.scalars.values())


@pytest.mark.parametrize("name", ["core", "ravan"])
def test_a_site_that_was_stopped_goes_on_to_the_same_bits(name, site, tmp_path):
    begin, task = site
    method = Method(name=name)
    _, whole = begin(method)
    go(whole, task(method))
    stopped = task(method, checkpoint=tmp_path / "checkpoint", every=2)
    _, first = begin(method)
    with pytest.raises(TrainingStopped):
        go(first, stopped, stop_after=3)

    _, second = begin(method)
    figures = go(second, stopped)

    assert figures.resumed_at_step == 3
    assert np.array_equal(second.flat(), whole.flat())


@pytest.mark.parametrize("name", ["fedit", "core", "ravan"])
def test_fedprox_holds_a_site_nearer_to_the_global_adapter(name, site):
    begin, task = site
    start, free = begin(Method(name=name))
    go(free, task(Method(name=name), steps=10))
    _, held = begin(Method(name=name, proximal_weight=20.0))
    go(held, task(Method(name=name, proximal_weight=20.0), steps=10))

    assert 0.0 < np.linalg.norm(held.flat() - start) < 0.9 * np.linalg.norm(free.flat() - start)


def test_fedprox_is_half_mu_times_the_square_distance():
    method = client_method(Method(proximal_weight=0.3), TINY_SPEC, round_=1)
    start = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[0.5]]), "frozen": torch.tensor([9.0])}
    local = {"a": torch.tensor([2.0, 0.0], requires_grad=True), "b": torch.tensor([[1.5]], requires_grad=True)}

    penalty = method.penalty(local, start)
    assert penalty is not None
    penalty.backward()

    assert float(penalty.detach()) == pytest.approx(0.15 * (1 + 4 + 1))
    torch.testing.assert_close(local["a"].grad, torch.tensor([0.3, -0.6]))
    assert client_method(Method(), TINY_SPEC, round_=1).penalty(local, start) is None


@pytest.mark.parametrize(("round_", "factor"), [(1, "lora_A"), (2, "lora_B")])
def test_fedrot_turns_a_trained_site_towards_the_global_factors_and_keeps_its_update(round_, factor, site, layers):
    begin, task = site
    start, plain = begin(Method())
    go(plain, task(Method(), round_=round_, steps=12))
    aligned = Method(alignment=1.0)
    _, turned = begin(aligned)
    go(turned, task(aligned, round_=round_, steps=12))

    before = {slot.name: start[slot.offset :][: slot.size].reshape(slot.shape) for slot in plain.layout.slots}
    nearer = 0
    for layer in layers:
        a, b = tensor_name(layer, "lora_A"), tensor_name(layer, "lora_B")
        one, other = (
            {name: model.factors[name].detach().double().numpy() for name in (a, b)} for model in (plain, turned)
        )
        np.testing.assert_allclose(other[b] @ other[a], one[b] @ one[a], atol=1e-6)
        which = a if factor == "lora_A" else b
        distances = [np.linalg.norm(tensors[which] - before[which]) for tensors in (one, other)]
        assert distances[1] <= distances[0] + 1e-5
        nearer += distances[1] < distances[0] - 1e-4
    assert nearer > 0


def test_control_variates_move_every_step_by_the_rate_times_the_correction(site):
    begin, task = site
    method = Method(name="core", control_variates=True)
    _, plain = begin(method)
    go(plain, task(method, steps=1))
    _, corrected = begin(method)
    names = [name for name in corrected.factors if ".core_R." in name]
    draw = torch.Generator().manual_seed(3)
    correction = {name: torch.randn(corrected.factors[name].shape, generator=draw) for name in names}
    go(corrected, task(method, steps=1, correction=correction))

    for name in names:
        moved = (corrected.factors[name] - plain.factors[name]).detach()
        torch.testing.assert_close(moved, -SETTINGS.learning_rate * correction[name], rtol=1e-4, atol=1e-6)


def test_a_correction_of_nothing_leaves_the_bits_as_they_are(site):
    begin, task = site
    method = Method(control_variates=True)
    _, plain = begin(method)
    go(plain, task(method))
    _, corrected = begin(method)
    go(corrected, task(method, correction={name: torch.zeros_like(one) for name, one in corrected.factors.items()}))

    assert np.array_equal(corrected.flat(), plain.flat())
