from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from common import basemodel
from common.adapters import AdapterSpec
from common.errors import ShapeMismatch
from common.methods import Method, adapter_method
from common.methods.core import Core
from participant.training.adapted_layers import CoreLinear, RavanLinear, adapt
from participant.training.model import load_model
from tests.tiny_model import TINY_SPEC

KINDS = [Method(name="core"), Method(name="ravan", heads=3)]


def layer(out=12, into=9):
    torch.manual_seed(1)
    return nn.Linear(into, out, bias=True)


def fill(adapted, *, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if not name.startswith("base."):
                parameter.copy_(torch.randn_like(parameter))
    return adapted


def test_a_core_layer_adds_the_scaled_product_of_its_three_matrices():
    adapted = fill(CoreLinear(layer(), rank=3, scale=0.5))
    x = torch.randn(4, 5, 9)
    delta = 0.5 * adapted.core_B @ adapted.core_R @ adapted.core_A

    torch.testing.assert_close(adapted(x), adapted.base(x) + x @ delta.T)


def test_a_ravan_layer_adds_the_scaled_sum_of_its_heads():
    adapted = fill(RavanLinear(layer(), heads=3, rank=2, scale=2.0))
    x = torch.randn(7, 9)
    delta = torch.zeros(12, 9)
    for j in range(3):
        head = slice(2 * j, 2 * j + 2)
        delta += adapted.ravan_s[j] * adapted.ravan_B[:, head] @ adapted.ravan_H[head] @ adapted.ravan_A[head]

    torch.testing.assert_close(adapted(x), adapted.base(x) + x @ (2.0 * delta).T)


@pytest.mark.parametrize("kind", [CoreLinear, RavanLinear])
def test_gradients_are_kept_for_what_is_trained_and_nothing_else(kind):
    settings = {"rank": 2, "scale": 1.0} | ({"heads": 2} if kind is RavanLinear else {})
    adapted = fill(kind(layer(), **settings))

    adapted(torch.randn(3, 9, requires_grad=True)).square().sum().backward()

    with_gradient = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert with_gradient == ({"core_R"} if kind is CoreLinear else {"ravan_H", "ravan_s"})


@pytest.mark.parametrize("method", KINDS)
def test_a_new_adapter_leaves_the_model_as_it_is(method, loaded, tiny_folder):
    plain = loaded(method).causal
    base = loaded(Method()).causal  # its B is zero
    ids = torch.tensor([[1, 5, 9, 30]])
    torch.testing.assert_close(plain(input_ids=ids).logits, base(input_ids=ids).logits)


@pytest.fixture
def loaded(tiny_folder):
    """The tiny model with a method's adapter, by default a new one."""

    def load(method, start=None, precision=torch.float32):
        layout, new = stored(method, tiny_folder)
        return load_model(
            tiny_folder,
            spec=TINY_SPEC,
            method=method,
            layout=layout,
            start=new if start is None else start,
            device=torch.device("cpu"),
            precision=precision,
        )

    return load


def stored(method, folder):
    """Layout and values of a new adapter."""
    kind, layers = adapter_method(method, TINY_SPEC), basemodel.describe(folder).layers
    return kind.layout(layers), np.concatenate([values for _, values in kind.initial(layers, seed=4)])


@pytest.mark.parametrize("method", KINDS)
def test_the_stored_tensors_go_in_and_come_out_by_their_names(method, loaded, tiny_folder):
    layout, start = stored(method, tiny_folder)
    start = start + np.linspace(-1, 1, start.size, dtype=np.float32)

    model = loaded(method, start)

    assert list(model.factors) == [slot.name for slot in layout.slots]
    assert all(factor.dtype == torch.float32 for factor in model.factors.values())
    assert np.array_equal(model.flat(), start)


def test_ravans_scalars_are_folded_into_what_is_stored(loaded, tiny_folder):
    method = Method(name="ravan", heads=3)
    _, start = stored(method, tiny_folder)
    start = start + np.linspace(-1, 1, start.size, dtype=np.float32)
    model, again = loaded(method, start), None
    ids = torch.tensor([[1, 5, 9, 30]])
    with torch.no_grad():
        for number, scalar in enumerate(model.scalars.values()):
            scalar.copy_(torch.linspace(0.5, 1.5, 3) + 0.01 * number)

    again = loaded(method, model.flat())

    assert not np.allclose(model.flat(), start)
    assert all(torch.equal(scalar, torch.ones(3)) for scalar in again.scalars.values())
    torch.testing.assert_close(again.causal(input_ids=ids).logits, model.causal(input_ids=ids).logits)


@pytest.mark.parametrize("method", KINDS)
def test_in_bfloat16_the_states_stay_bfloat16_and_the_factors_float32(method, loaded, tiny_folder):
    _, start = stored(method, tiny_folder)
    model = loaded(method, start, precision=torch.bfloat16)

    states = model.hidden(model.batch([[1, 5, 9]]))

    assert states.dtype == torch.bfloat16
    assert {factor.dtype for factor in model.movable.values()} == {torch.float32}


def test_layers_that_are_not_the_layouts_are_refused(tiny_folder):
    method = Core(AdapterSpec(2, 4.0, ("q_proj",)))
    layout = method.layout(basemodel.describe(tiny_folder).layers)
    elsewhere = nn.ModuleDict({"decoder": nn.ModuleDict({"q_proj": nn.Linear(32, 32)})})

    with pytest.raises(ShapeMismatch, match=r"first at .*q_proj\.core_A\.weight"):
        adapt(elsewhere, method, layout)
