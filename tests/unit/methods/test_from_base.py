from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from common.adapters import AdapterSpec, LinearLayer
from common.basemodel import LinearWeights
from common.errors import BaseModelUnavailable, PlanInvalid
from common.methods import Method, adapter_method, tensor_name
from common.methods.from_base import FromBase, initial_from_base

LAYERS = (LinearLayer("l.q_proj", 40, 24), LinearLayer("l.norm", 1, 1), LinearLayer("l.k_proj", 16, 24))
SPEC = AdapterSpec(4, 8.0, ("q_proj", "k_proj"))


def kind_of(method):
    kind = adapter_method(method, SPEC)
    assert isinstance(kind, FromBase)
    return kind


def weight(layer):
    return np.random.default_rng(len(layer.name)).standard_normal((layer.out_features, layer.in_features)).astype("f4")


@pytest.mark.parametrize(
    ("method", "names", "width"),
    [
        (Method(name="core"), ("core_A", "core_B", "core_R"), 4),
        (Method(name="ravan", heads=3), ("ravan_A", "ravan_B", "ravan_H"), 12),
    ],
)
def test_the_bases_are_the_leading_singular_spaces_and_the_rest_is_zero(method, names, width):
    kind = kind_of(method)
    found = list(initial_from_base(kind, LAYERS, weight, seed=1))

    assert [slot for slot, _ in found] == list(kind.layout(LAYERS).slots)
    tensors = {slot.name: values.reshape(slot.shape) for slot, values in found}
    for layer in SPEC.adapted(LAYERS):
        a, b, trained = (tensors[tensor_name(layer, name)] for name in names)
        left, _, right = np.linalg.svd(weight(layer).astype(np.float64))
        # The same vectors up to signs, as nearly as a sketch of a flat spectrum can find them.
        np.testing.assert_allclose(np.abs(np.sum(a * right[:width], axis=1)), 1.0, atol=1e-2)
        np.testing.assert_allclose(np.abs(np.sum(b.T * left.T[:width], axis=1)), 1.0, atol=1e-2)
        assert not trained.any()


@pytest.mark.parametrize("name", ["ffa_lora", "rolora"])
def test_a_of_a_lora_is_the_leading_right_singular_space_and_b_is_zero(name):
    kind = kind_of(Method(name=name))
    found = list(initial_from_base(kind, LAYERS, weight, seed=1))

    assert [slot for slot, _ in found] == list(kind.layout(LAYERS).slots)
    tensors = {slot.name: values.reshape(slot.shape) for slot, values in found}
    for layer in SPEC.adapted(LAYERS):
        a, b = (tensors[tensor_name(layer, factor)] for factor in ("lora_A", "lora_B"))
        _, _, right = np.linalg.svd(weight(layer).astype(np.float64))
        np.testing.assert_allclose(np.abs(np.sum(a * right[: SPEC.rank], axis=1)), 1.0, atol=1e-2)
        assert not b.any()


def test_heads_that_do_not_fit_a_layer_are_refused():
    with pytest.raises(PlanInvalid, match="20 wide, more than the smaller side"):
        next(initial_from_base(kind_of(Method(name="ravan", heads=5)), LAYERS, weight, seed=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_read_as_torch_reads_them(dtype, tmp_path):
    torch.manual_seed(0)
    tensors = {f"{layer.name}.weight": torch.randn(layer.out_features, layer.in_features).to(dtype) for layer in LAYERS}
    save_file(tensors, tmp_path / "model.safetensors")
    weights = LinearWeights(tmp_path)
    for layer in LAYERS:
        found = weights.read(layer)
        assert found.dtype == np.float32
        assert np.array_equal(found, tensors[f"{layer.name}.weight"].float().numpy())


@pytest.mark.parametrize(
    ("layer", "said"),
    [(LinearLayer("l.v_proj", 40, 24), "no linear layer l.v_proj"), (LinearLayer("l.q_proj", 24, 40), "of the shape")],
)
def test_a_layer_that_is_not_there_is_refused(layer, said, tmp_path):
    save_file({"l.q_proj.weight": torch.zeros(40, 24)}, tmp_path / "model.safetensors")
    with pytest.raises(BaseModelUnavailable, match=said):
        LinearWeights(tmp_path).read(layer)


def test_weights_in_another_precision_are_refused(tmp_path):
    save_file({"l.q_proj.weight": torch.zeros(40, 24, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(BaseModelUnavailable, match="stored as I8"):
        LinearWeights(tmp_path).read(LAYERS[0])
