from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from common import basemodel
from common.adapters import ADAPTER_CONFIG_FILE, ADAPTER_FILE, AdapterSpec, LinearLayer, create_adapter_file
from common.errors import ShapeMismatch
from common.methods import METHODS, Method, adapter_method
from common.methods.export import GLOBAL_ADAPTER_FILE, export_adapter, is_plain, read_layout, signed_file
from participant.training.adapted_layers import CoreLinear, RavanLinear
from participant.training.model import load_model
from tests.tiny_model import TINY_SPEC, make_tiny_model

# RAVAN of four heads: its layers are four times as wide as TINY_SPEC's rank.
HEADS = {"ravan": 4}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def stored_file(path, method, layers, spec, *, seed=5):
    """An adapter as if rounds had moved it: its values, and its file."""
    kind = adapter_method(method, spec)
    flat = np.concatenate([values for _, values in kind.initial(layers, seed=seed)])
    flat += 0.05 * np.random.default_rng(seed).standard_normal(flat.size).astype(np.float32)
    mapped = create_adapter_file(path, kind.layout(layers))
    mapped[:] = flat
    mapped.flush()
    return flat


@pytest.mark.parametrize("name", sorted(METHODS))
def test_an_exported_folder_gives_peft_the_logits_that_the_sites_trained_towards(name, tiny, tmp_path):
    method = Method(name=name, heads=HEADS.get(name, 0))
    layers = basemodel.describe(tiny).layers
    flat = stored_file(tmp_path / "stored", method, layers, TINY_SPEC)
    folder = tmp_path / "folder"
    folder.mkdir()

    export_adapter(tmp_path / "stored", folder, method=name, spec=TINY_SPEC, base_model_name="tiny")

    adapted = load_model(
        tiny,
        spec=TINY_SPEC,
        method=method,
        layout=adapter_method(method, TINY_SPEC).layout(layers),
        start=flat,
        device=torch.device("cpu"),
        precision=torch.float32,
    )
    ids = torch.arange(3, 40).unsqueeze(0)
    with torch.no_grad():
        wanted = adapted.causal(input_ids=ids).logits
        plain = AutoModelForCausalLM.from_pretrained(tiny)
        before = plain(input_ids=ids).logits
        found = PeftModel.from_pretrained(plain, folder)(input_ids=ids).logits
    assert (wanted - before).abs().max() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "rank", "heads"), [("core", 32, 0), ("ravan", 48, 4)])
def test_a_layer_of_smollm2s_shape_is_merged_exactly(name, rank, heads, tmp_path):
    layer, spec = LinearLayer("model.layers.0.self_attn.k_proj", 192, 576), AdapterSpec(rank, 64.0, ("k_proj",))
    stored_file(tmp_path / "stored", Method(name=name, heads=heads), [layer], spec)
    torch.manual_seed(0)
    x = torch.randn(5, 576, dtype=torch.float64)
    own = CoreLinear if name == "core" else RavanLinear
    settings = {"rank": rank, "scale": 64.0 / rank} | ({"heads": heads} if heads else {})
    module = own(nn.Linear(576, 192, bias=False), **settings).double()
    with torch.no_grad():
        for parameter, tensor in zip(module.stored.values(), load_file(tmp_path / "stored").values(), strict=True):
            parameter.copy_(torch.from_numpy(tensor))

    export_adapter(tmp_path / "stored", tmp_path, method=name, spec=spec, base_model_name="smollm2")

    a, b = (torch.from_numpy(tensor).double() for tensor in load_file(tmp_path / ADAPTER_FILE).values())
    config = json.loads((tmp_path / ADAPTER_CONFIG_FILE).read_text())
    assert config["r"] == a.shape[0] == b.shape[1]
    found = config["lora_alpha"] / config["r"] * functional.linear(functional.linear(x, a), b)
    torch.testing.assert_close(found, module.added(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_file_that_the_manifest_names_is_in_the_folder_as_it_was(name, tiny, tmp_path):
    method, layers = Method(name=name, heads=HEADS.get(name, 0)), basemodel.describe(tiny).layers
    stored_file(tmp_path / "stored", method, layers, TINY_SPEC)
    content = (tmp_path / "stored").read_bytes()
    folder = tmp_path / "folder"
    folder.mkdir()

    export_adapter(tmp_path / "stored", folder, method=name, spec=TINY_SPEC, base_model_name="tiny")

    assert signed_file(folder).read_bytes() == content
    is_lora = is_plain(adapter_method(method, TINY_SPEC), layers)
    assert is_lora == (name in {"fedit", "ffa_lora", "rolora"})
    names = {ADAPTER_FILE, ADAPTER_CONFIG_FILE} | (set() if is_lora else {GLOBAL_ADAPTER_FILE})
    assert {path.name for path in folder.iterdir()} == names
    assert (tmp_path / "stored").exists()


@pytest.mark.parametrize("name", ["fedit", "core"])
def test_a_file_that_lies_in_the_folder_is_not_copied(name, tiny, tmp_path):
    stored_file(tmp_path / "arrived", Method(name=name), basemodel.describe(tiny).layers, TINY_SPEC)
    inode = (tmp_path / "arrived").stat().st_ino

    export_adapter(tmp_path / "arrived", tmp_path, method=name, spec=TINY_SPEC, base_model_name="tiny")

    assert signed_file(tmp_path).stat().st_ino == inode
    assert not (tmp_path / "arrived").exists()


def test_the_layout_of_a_file_is_read_from_its_header(tiny, tmp_path):
    layers = basemodel.describe(tiny).layers
    stored_file(tmp_path / "stored", Method(name="core"), layers, TINY_SPEC)

    assert read_layout(tmp_path / "stored") == adapter_method(Method(name="core"), TINY_SPEC).layout(layers)


@pytest.mark.parametrize(
    ("method", "spec"),
    [
        ("fedit", TINY_SPEC),
        ("ravan", TINY_SPEC),
        ("core", AdapterSpec(3, 4.0, TINY_SPEC.target_modules)),
        ("core", AdapterSpec(2, 4.0, ("q_proj",))),
        ("made_up", TINY_SPEC),
    ],
)
def test_a_file_of_another_method_or_spec_is_refused_and_nothing_is_written(method, spec, tiny, tmp_path):
    stored_file(tmp_path / "stored", Method(name="core"), basemodel.describe(tiny).layers, TINY_SPEC)
    folder = tmp_path / "folder"
    folder.mkdir()

    with pytest.raises(ShapeMismatch, match=f"is no adapter of {method} with rank {spec.rank}"):
        export_adapter(tmp_path / "stored", folder, method=method, spec=spec, base_model_name="tiny")
    assert not list(folder.iterdir())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" * 50, b"\x05\0\0\0\0\0\0\0[1,2]", b"\xff" * 100])
def test_what_is_no_adapter_file_is_refused(content, tmp_path):
    (tmp_path / "stored").write_bytes(content)
    with pytest.raises(ShapeMismatch, match="not an adapter file"):
        read_layout(tmp_path / "stored")


def test_a_file_that_is_cut_short_is_refused(tiny, tmp_path):
    stored_file(tmp_path / "stored", Method(name="core"), basemodel.describe(tiny).layers, TINY_SPEC)
    (tmp_path / "stored").write_bytes((tmp_path / "stored").read_bytes()[:-4])
    with pytest.raises(ShapeMismatch, match="is not an adapter of"):
        read_layout(tmp_path / "stored")
