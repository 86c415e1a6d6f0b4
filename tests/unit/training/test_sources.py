from __future__ import annotations

import json
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from common.basemodel import describe
from common.errors import BaseModelUnavailable, TrainingStopped
from participant.training import convert
from participant.training.process import prepare_base_model
from participant.training.result import Progress
from participant.training.sources import GgufFile, HubModel, LocalFolder, parse_source, prepare
from participant.training.tokens import load_tokenizer
from tests.tiny_model import CHAT_TEMPLATE

HEADS, KEY_VALUE_HEADS, LAYERS = 4, 2, 2
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers.": "blk.",
}


def gguf_name(name: str) -> str:
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of rotary pairs: halves interleaved."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(model: Path, file: Path) -> Path:
    """The tiny model as llama.cpp's converter would write it, unquantised."""
    tokenizer = load_tokenizer(model)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token.startswith("<|") else gguf.TokenType.NORMAL for token, _ in vocabulary]
    )
    merges = json.loads((model / "tokenizer.json").read_text())["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in load_file(model / "model.safetensors").items():
        weight = tensor.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            weight = permuted(weight, HEADS if "q_proj" in name else KEY_VALUE_HEADS)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def gguf_file(tiny_folder, tmp_path_factory) -> Path:
    return write_gguf(tiny_folder, tmp_path_factory.mktemp("gguf") / "Tiny.F32.gguf")


def test_a_gguf_file_becomes_a_folder_with_the_same_weights_in_bfloat16(gguf_file, tiny_folder, tmp_path):
    stages = []
    folder = prepare(GgufFile(gguf_file), cache_folder=tmp_path, on_stage=lambda *stage: stages.append(stage))
    assert [stage[0] for stage in stages] == [1, 2, 3, 4]
    assert folder.name.startswith("Tiny.F32-")
    original, converted = load_file(tiny_folder / "model.safetensors"), load_file(folder / "model.safetensors")
    assert set(converted) == set(original)
    assert all(torch.equal(converted[name], original[name].to(torch.bfloat16)) for name in original)
    assert describe(folder).layers == describe(tiny_folder).layers
    AutoModelForCausalLM.from_pretrained(folder)
    tokenizer, before = load_tokenizer(folder), load_tokenizer(tiny_folder)
    text = "<|start|>user\nName the colour. 123<|stop|>"
    assert tokenizer(text)["input_ids"] == before(text)["input_ids"]
    assert tokenizer.chat_template == before.chat_template


def test_a_conversion_is_done_once_and_gives_the_same_digest_again(gguf_file, tmp_path, monkeypatch):
    first = prepare(GgufFile(gguf_file), cache_folder=tmp_path / "a", on_stage=lambda *stage: None)
    other = prepare(GgufFile(gguf_file), cache_folder=tmp_path / "b", on_stage=lambda *stage: None)
    assert describe(first).digest == describe(other).digest
    monkeypatch.setattr(convert, "_convert", lambda *arguments: pytest.fail("converted again"))
    assert prepare(GgufFile(gguf_file), cache_folder=tmp_path / "a", on_stage=lambda *stage: None) == first


def test_what_a_killed_conversion_left_behind_is_not_taken_for_a_model(gguf_file, tmp_path, monkeypatch):
    def killed(file, folder, on_stage):
        folder.mkdir()
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert, "_convert", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(GgufFile(gguf_file), cache_folder=tmp_path, on_stage=lambda *stage: None)
    folder = prepare(GgufFile(gguf_file), cache_folder=tmp_path, on_stage=lambda *stage: None)
    assert describe(folder).architecture == "LlamaForCausalLM"
    assert not list(tmp_path.glob("*.partial"))


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"oops")
    with pytest.raises(BaseModelUnavailable, match="not a GGUF file"):
        prepare(GgufFile(tmp_path / "a.gguf"), cache_folder=tmp_path, on_stage=lambda *stage: None)
    (tmp_path / "b.gguf").write_bytes(b"GGUF" + b"\0" * 20)
    with pytest.raises(BaseModelUnavailable, match="cannot be converted"):
        prepare(GgufFile(tmp_path / "b.gguf"), cache_folder=tmp_path, on_stage=lambda *stage: None)


def test_sources_are_read_from_text(tmp_path):
    assert parse_source("hub:owner/name") == HubModel("owner/name", "main")
    assert parse_source("hub:owner/name@v1.0") == HubModel("owner/name", "v1.0")
    assert parse_source("/models/a.GGUF") == GgufFile(Path("/models/a.GGUF"))
    assert parse_source("/models/a") == LocalFolder(Path("/models/a"))
    with pytest.raises(BaseModelUnavailable, match="no hub name"):
        parse_source("hub:name")


def test_a_folder_that_is_no_model_says_what_it_lacks(tiny_folder, tmp_path):
    assert prepare(LocalFolder(tiny_folder), cache_folder=tmp_path, on_stage=lambda *stage: None) == tiny_folder
    with pytest.raises(BaseModelUnavailable, match=r"lacks config.json, tokenizer.json, \*.safetensors"):
        prepare(LocalFolder(tmp_path), cache_folder=tmp_path, on_stage=lambda *stage: None)


def test_a_hub_that_cannot_be_reached_is_explained(tmp_path, monkeypatch):
    # The hub library's own switch for machines without a network: no request is made.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BaseModelUnavailable, match="hf download owner/name --revision main --local-dir FOLDER"):
        prepare(HubModel("owner/name", "main"), cache_folder=tmp_path, on_stage=lambda *stage: None)


def test_a_snapshot_in_the_hubs_cache_is_used_without_the_network(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for file in tiny_folder.iterdir():
        (snapshot / file.name).symlink_to(file)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    folder = prepare(HubModel("owner/name", "main"), cache_folder=tmp_path, on_stage=lambda *stage: None)
    assert describe(folder).digest == describe(tiny_folder).digest


def test_the_daemon_prepares_a_model_in_a_child_process(gguf_file, tmp_path):
    seen: list[Progress] = []
    folder = prepare_base_model(str(gguf_file), cache_folder=tmp_path, on_progress=seen.append)
    assert describe(folder).architecture == "LlamaForCausalLM"
    assert [progress.step for progress in seen] == [1, 2, 3, 4]
    with pytest.raises(BaseModelUnavailable, match="does not exist"):
        prepare_base_model("/nonexistent", cache_folder=tmp_path, on_progress=seen.append)
    assert not list(tmp_path.glob(".prepare-*"))


def test_preparing_a_model_can_be_stopped(gguf_file, tmp_path):
    stop = threading.Event()
    with pytest.raises(TrainingStopped):
        prepare_base_model(str(gguf_file), cache_folder=tmp_path, on_progress=lambda progress: stop.set(), stop=stop)
