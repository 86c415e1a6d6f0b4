from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import MistralConfig, MistralForCausalLM

from common import basemodel
from common.adapters import ADAPTER_FILE, open_flat
from common.methods import Method, adapter_method
from participant.training import attention
from participant.training.attention import Rows, UnknownAttention, tree_attention
from participant.training.fused import fused_layers
from participant.training.model import load_model
from participant.training.packing import token_tree
from participant.training.states import PlainStates, TreeStates, quick_states
from tests.tiny_model import TINY_SPEC, make_tiny_adapter, make_tiny_tokenizer

ROWS = ((5, 6, 7, 8, 9, 10), (5, 6, 7, 11), (12,), (5, 6, 7, 8, 13, 14, 15, 16, 17))


def gradients(model, states):
    """Of an uneven sum over the rows' states, by factor."""
    for factor in model.factors.values():
        factor.grad = None
        factor.requires_grad_(True)
    hidden = states.hidden(ROWS)
    total = sum((hidden[index, : len(row)] * (index + 1)).cos().sum() for index, row in enumerate(ROWS))
    total.backward()
    return {name: factor.grad.clone() for name, factor in model.factors.items()}


def test_the_tree_gives_every_rows_own_states(moved):
    wanted = PlainStates(moved).hidden(ROWS)
    with fused_layers(moved.causal):
        found = TreeStates(moved).hidden(ROWS)
    for index, row in enumerate(ROWS):
        torch.testing.assert_close(found[index, : len(row)], wanted[index, : len(row)], rtol=1e-4, atol=1e-5)


def test_gradients_of_the_quick_way_are_those_of_the_librarys_own_layers(moved):
    wanted = gradients(moved, PlainStates(moved))
    with quick_states(moved) as states:
        assert isinstance(states, TreeStates)
        found = gradients(moved, states)
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5 * scale)


def test_in_bfloat16_the_quick_way_is_as_near_to_the_exact_gradient_as_the_plain_one(
    moved, tiny_folder, layout, adapter_folder
):
    exact = gradients(moved, PlainStates(moved))
    coarse = load_model(
        tiny_folder,
        spec=TINY_SPEC,
        layout=layout,
        start=moved.flat(),
        device=torch.device("cpu"),
        precision=torch.bfloat16,
    )

    def distance(found):
        return sum(float((found[name] - gradient).square().sum()) for name, gradient in exact.items()) ** 0.5

    plain = distance(gradients(coarse, PlainStates(coarse)))
    with quick_states(coarse) as states:
        assert isinstance(states, TreeStates)
        assert distance(gradients(coarse, states)) < 1.5 * plain


def test_long_rows_go_another_way_to_the_same_gradients(moved, monkeypatch):
    with quick_states(moved) as states:
        wanted = gradients(moved, states)
        monkeypatch.setattr(attention, "_MOST_OWN_LENGTH", 1)
        found = gradients(moved, states)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4)


def test_no_record_sees_anothers_tokens(moved):
    with quick_states(moved) as states, torch.no_grad():
        alone = states.hidden([ROWS[3]])[0]
        among = states.hidden(ROWS)[3]
    torch.testing.assert_close(among, alone, rtol=1e-4, atol=1e-5)


def test_what_is_frozen_costs_no_gradient(moved):
    for name, factor in moved.factors.items():
        factor.grad = None
        factor.requires_grad_(".lora_B." in name)
    with quick_states(moved) as states:
        states.hidden(ROWS)[0, :3].sum().backward()
    for name, factor in moved.factors.items():
        assert (factor.grad is not None) == (".lora_B." in name)


def test_a_core_adapters_layers_give_the_same_gradients_fused(tiny_folder):
    method, layers = Method(name="core"), basemodel.describe(tiny_folder).layers
    layout = adapter_method(method, TINY_SPEC).layout(layers)
    generator = np.random.Generator(np.random.PCG64(1))
    model = load_model(
        tiny_folder,
        spec=TINY_SPEC,
        layout=layout,
        start=generator.normal(0.0, 0.2, layout.parameters).astype(np.float32),
        device=torch.device("cpu"),
        precision=torch.float32,
        method=method,
    )
    trained = {name: factor for name, factor in model.movable.items() if "core_R" in name}
    assert trained

    def found(states):
        for name, factor in model.movable.items():
            factor.grad = None
            factor.requires_grad_(name in trained)
        states.hidden(ROWS)[3].cos().sum().backward()
        return {name: factor.grad.clone() for name, factor in trained.items() if factor.grad is not None}

    wanted = found(PlainStates(model))
    with quick_states(model) as states:
        assert isinstance(states, TreeStates)
        for name, gradient in found(states).items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-5)


def test_after_the_quick_way_the_layers_are_the_librarys_again(moved):
    before = functional.normalize(PlainStates(moved).hidden(ROWS), dim=-1)
    with contextlib.suppress(KeyError), quick_states(moved):
        raise KeyError
    assert not any("forward" in vars(module) for module in moved.causal.modules())
    assert torch.equal(functional.normalize(PlainStates(moved).hidden(ROWS), dim=-1), before)
    assert moved.causal.config._attn_implementation != attention.NAME


def test_a_model_that_looks_only_so_far_back_goes_the_plain_way(tmp_path):
    tokenizer = make_tiny_tokenizer()
    folder = tmp_path / "mistral"
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    make_tiny_adapter(tmp_path / "adapter", folder)
    layout = TINY_SPEC.layout(basemodel.describe(folder).layers)
    model = load_model(
        folder,
        spec=TINY_SPEC,
        layout=layout,
        start=open_flat(tmp_path / "adapter" / ADAPTER_FILE, layout),
        device=torch.device("cpu"),
        precision=torch.float32,
    )
    with quick_states(model) as states:
        assert isinstance(states, PlainStates)


@pytest.mark.parametrize(
    "more",
    [{"softcap": 30.0}, {"dropout": 0.1}, {"sliding_window": 4}, {"attention_mask": torch.ones(1)}, {"rows": None}],
)
def test_attention_that_is_more_than_causal_products_is_not_taken_on(more):
    tree = token_tree(ROWS)
    rows = Rows(torch.from_numpy(tree.nodes), torch.from_numpy(tree.first))
    part = torch.zeros(1, 2, len(tree.ids), 4)
    with pytest.raises(UnknownAttention):
        tree_attention(torch.nn.Identity(), part, part, part, **({"attention_mask": None, "rows": rows} | more))
