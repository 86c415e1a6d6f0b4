"""A site's own files, small and quick to make: configuration, policy, records, and a base model without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

POLICY = """
base_models = { allow = "any" }
adapter = { most_rank = 8 }
masking = { least_cohort = 3, most_element_clip = 0.1, most_update_norm = 10.0 }
training = { most_learning_rate = 0.001, most_steps_per_round = 10, most_batch_size = 8, most_length = 512 }
rounds = { most_in_a_run = 5 }
"""
RECORDS = [
    {"instruction": f"Say what {number} is.", "output": f"a number, and {number}", "domain": "sums"}
    for number in range(40)
]


def write_model(folder: Path) -> Path:
    """Headers, tokenizer and configuration as `describe` reads them; nothing that could be trained."""
    folder.mkdir(parents=True)
    tensors = {
        "model.layers.0.self_attn.q_proj.weight": np.zeros((16, 16), np.float32),
        "model.embed_tokens.weight": np.zeros((32, 16), np.float32),
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    return folder


def write_records(file: Path, records: list[dict[str, str]] = RECORDS) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def write_site(folder: Path, *, charter: str = 'mode = "coordinator"', extra: str = "", policy: str = POLICY) -> Path:
    """participant.toml with everything it names beside it, but no identity."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "model")
    write_records(folder / "train.jsonl")
    (folder / "policy.toml").write_text(policy)
    config = folder / "participant.toml"
    config.write_text(f"""
state_directory = "state"
policy_file = "policy.toml"
least_free_mebibytes = 1
base_models = [{{ source = "model" }}]
data = {{ train_file = "train.jsonl" }}
charter = {{ {charter} }}
{extra}
""")
    return config
