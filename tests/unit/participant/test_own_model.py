"""Scales by search, and several adapters as one folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from common.adapters import (
    ADAPTER_FILE,
    PEFT_PREFIX,
    AdapterSpec,
    LinearLayer,
    flatten,
    unflatten,
    write_adapter_folder,
)
from common.errors import DigestMismatch
from common.methods import Method, adapter_method
from participant.merged import factors_of, write_merged
from participant.scales import GRID, search_scales
from participant.training.job import FrozenAdapter

LAYERS = (LinearLayer("model.layers.0.q_proj", 6, 5), LinearLayer("model.layers.0.v_proj", 4, 5))


# --- scales ------------------------------------------------------------------------------------------------------


def test_the_best_scales_of_a_simple_loss_are_found():
    target = (0.75, 0.25, 1.0)
    found, loss = search_scales(
        lambda scales: sum((one - other) ** 2 for one, other in zip(scales, target, strict=True)), [(1.0, 1.0, 1.0)]
    )
    assert (found, loss) == (target, 0.0)


def test_no_scales_are_asked_twice():
    asked = []

    def loss(scales):
        asked.append(scales)
        return abs(scales[0] - 0.5) + abs(scales[1] - scales[0])

    search_scales(loss, [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)])
    assert len(asked) == len(set(asked))


@given(st.dictionaries(st.tuples(st.sampled_from(GRID), st.sampled_from(GRID)), st.floats(0, 10), max_size=36))
def test_the_result_is_never_worse_than_a_start(table):
    starts = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)]
    found, loss = search_scales(lambda scales: table.get(scales, 5.0), starts)
    assert loss == table.get(found, 5.0) <= min(table.get(start, 5.0) for start in starts)


# --- one folder --------------------------------------------------------------------------------------------------


def adapter_in(folder: Path, *, name: str, rank: int, modules: tuple[str, ...], seed: int) -> FrozenAdapter:
    spec, method = AdapterSpec(rank=rank, alpha=3.0 * rank, target_modules=modules), Method(name=name)
    layout = adapter_method(method, spec).layout(spec.adapted(LAYERS))
    flat = np.random.default_rng(seed).normal(0.0, 0.3, layout.parameters).astype(np.float32)
    digest = write_adapter_folder(folder, flat, layout, spec.peft_config("tiny"))
    return FrozenAdapter(folder=folder, digest=digest, spec=spec, method=method)


def product_of(adapter: FrozenAdapter) -> dict[str, np.ndarray]:
    return {layer.name: found.b @ found.a for layer, found in factors_of(LAYERS, adapter)}


def test_the_folder_is_the_scaled_sum_of_adapters_of_other_ranks_methods_and_layers(tmp_path):
    first = adapter_in(tmp_path / "one", name="fedit", rank=2, modules=("q_proj", "v_proj"), seed=1)
    second = adapter_in(tmp_path / "two", name="core", rank=3, modules=("q_proj",), seed=2)
    third = adapter_in(tmp_path / "three", name="fedit", rank=1, modules=("v_proj",), seed=3)
    spec = write_merged(tmp_path / "own", LAYERS, [(first, 0.75), (second, 0.5), (third, 1.25)], base_model_name="tiny")
    assert spec.alpha == spec.rank
    tensors = load_file(tmp_path / "own" / ADAPTER_FILE)
    parts = [(product_of(first), 0.75), (product_of(second), 0.5), (product_of(third), 1.25)]
    for layer in LAYERS:
        wanted = sum(scale * part[layer.name] for part, scale in parts if layer.name in part)
        a = tensors[f"{PEFT_PREFIX}{layer.name}.lora_A.weight"]
        b = tensors[f"{PEFT_PREFIX}{layer.name}.lora_B.weight"]
        np.testing.assert_allclose(b @ a, wanted, rtol=1e-5, atol=1e-6)


def test_an_adapter_of_scale_nought_takes_no_rank(tmp_path):
    first = adapter_in(tmp_path / "one", name="fedit", rank=2, modules=("q_proj",), seed=1)
    second = adapter_in(tmp_path / "two", name="fedit", rank=4, modules=("q_proj",), seed=2)
    assert write_merged(tmp_path / "own", LAYERS, [(first, 1.0), (second, 0.0)], base_model_name="tiny").rank == 2
    spec = write_merged(tmp_path / "none", LAYERS, [(first, 0.0), (second, 0.0)], base_model_name="tiny")
    tensors = unflatten(flatten(load_file(tmp_path / "none" / ADAPTER_FILE), spec.layout(LAYERS)), spec.layout(LAYERS))
    assert all(not tensor.any() for name, tensor in tensors.items() if "lora_B" in name)


def test_a_file_that_has_changed_is_not_merged(tmp_path):
    first = adapter_in(tmp_path / "one", name="fedit", rank=2, modules=("q_proj",), seed=1)
    with (tmp_path / "one" / ADAPTER_FILE).open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\1\2\3\4")
    with pytest.raises(DigestMismatch):
        write_merged(tmp_path / "own", LAYERS, [(first, 1.0)], base_model_name="tiny")
