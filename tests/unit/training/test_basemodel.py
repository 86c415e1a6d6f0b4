from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from common import basemodel
from common.basemodel import DIGEST_CACHE_FILE, BaseModel, describe
from common.errors import BaseModelUnavailable, InvalidArgument
from tests.tiny_model import make_tiny_model


@pytest.fixture
def folder(tiny_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy, ignore=shutil.ignore_patterns(DIGEST_CACHE_FILE))
    return copy


def shard(folder):
    """Cut the one weight file in two, as large models come."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def test_layers_are_the_linear_ones_in_model_order(tiny_folder):
    layers = describe(tiny_folder).layers
    assert [layer.name for layer in layers[:7]] == [
        "model.layers.0.mlp.down_proj",
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.0.self_attn.k_proj",
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.v_proj",
    ]
    assert len(layers) == 14
    assert (layers[0].out_features, layers[0].in_features) == (32, 64)
    assert not any("embed" in layer.name or "lm_head" in layer.name for layer in layers)


def test_layer_ten_comes_after_layer_two(tmp_path):
    names = [layer.name for layer in describe(make_tiny_model(tmp_path / "deep", layers=11)).layers]
    assert names.index("model.layers.2.mlp.up_proj") < names.index("model.layers.10.mlp.down_proj")


def test_architecture_parameters_and_dtype_are_those_of_the_files(tiny_folder):
    model = describe(tiny_folder, name="tiny")
    tensors = load_file(tiny_folder / "model.safetensors")
    assert (model.name, model.architecture, model.dtype) == ("tiny", "LlamaForCausalLM", "F32")
    assert model.parameters == sum(tensor.numel() for tensor in tensors.values())


def test_sharding_leaves_the_description_alone(folder):
    before = describe(folder, name="tiny")
    shard(folder)
    assert describe(folder, name="tiny") == before


def test_volatile_keys_of_the_configuration_leave_the_digest_alone(folder):
    before = describe(folder).digest
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "9.9", "_name_or_path": "/x"}))
    assert describe(folder).digest == before


@pytest.mark.parametrize("change", ["weight", "precision", "tokenizer", "configuration", "chat template"])
def test_whatever_changes_the_model_changes_the_digest(folder, change):
    before = describe(folder).digest
    tensors = load_file(folder / "model.safetensors")
    if change == "weight":
        tensors["model.norm.weight"][0] += 1e-3
        save_file(tensors, folder / "model.safetensors")
    elif change == "precision":
        save_file({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, folder / "model.safetensors")
    elif change == "tokenizer":
        value = json.loads((folder / "tokenizer.json").read_text())
        value["model"]["merges"] = value["model"]["merges"][:-1]
        (folder / "tokenizer.json").write_text(json.dumps(value))
    elif change == "configuration":
        value = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**value, "rms_norm_eps": 1e-3}))
    else:
        (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert describe(folder).digest != before


def test_digest_is_remembered_until_a_file_changes(folder, monkeypatch):
    first = describe(folder).digest
    hashed: list[str] = []
    original = basemodel._tensor_digest

    def counting(tensor):
        hashed.append(tensor.name)
        return original(tensor)

    monkeypatch.setattr(basemodel, "_tensor_digest", counting)
    assert describe(folder).digest == first
    assert hashed == []
    (folder / "chat_template.jinja").write_text("another")
    assert describe(folder).digest != first
    assert hashed != []


def test_a_cache_folder_serves_where_the_models_own_cannot_be_written(folder, tmp_path):
    cache = tmp_path / "cache"
    digest = describe(folder, cache_folder=cache).digest
    assert not (folder / DIGEST_CACHE_FILE).exists()
    assert [json.loads(file.read_text())["digest"] for file in cache.iterdir()] == [digest]


def test_a_spoilt_cache_is_made_anew(folder):
    digest = describe(folder).digest
    (folder / DIGEST_CACHE_FILE).write_text("{")
    assert describe(folder).digest == digest


def test_json_form_comes_back_equal_and_refuses_what_is_not_one(tiny_folder):
    model = describe(tiny_folder)
    assert BaseModel.from_json(model.to_json()) == model
    broken = json.loads(model.to_json())
    broken["layers"][0]["in_features"] = "64"
    broken["colour"] = "red"
    with pytest.raises(InvalidArgument, match=r"layers\.0\.in_features.*colour|colour.*layers\.0\.in_features"):
        BaseModel.from_json(json.dumps(broken))


def test_a_weight_file_cut_short_is_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BaseModelUnavailable, match="cut short"):
        describe(folder)


@pytest.mark.parametrize(
    ("missing", "words"),
    [("config.json", "config.json"), ("tokenizer.json", "tokenizer"), ("model.safetensors", "safetensors")],
)
def test_a_folder_that_lacks_a_part_says_which(folder, missing, words):
    (folder / missing).unlink()
    with pytest.raises(BaseModelUnavailable, match=words):
        describe(folder)


def test_models_with_transposed_linear_layers_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(BaseModelUnavailable, match="transposed"):
        describe(folder)
