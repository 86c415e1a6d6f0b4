"""TRL's SFTTrainer or DPOTrainer on token rows that it is handed: how fast, how much memory, which losses.

Runs in a Python that has `trl` and nothing of Accord; `python -m benchmarks.training` starts it with the path of a
JSON file (see `benchmarks.training.Case`). Settings are TRL's defaults but for those of the case, and for gradient
checkpointing, which is off: it trades speed for memory. Prints one JSON line.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

trl: Any = importlib.import_module("trl")
datasets: Any = importlib.import_module("datasets")


class Clock(TrainerCallback):
    """Wall and CPU time at the end of every step."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        self.times.append((time.perf_counter(), time.process_time()))


class TokenPairs(trl.DPOTrainer):  # type: ignore[misc]  # trl is here without types
    """Takes pairs that are tokens already."""

    def _prepare_dataset(self, dataset: Any, *arguments: Any, **named: Any) -> Any:
        return dataset


def columns(case: dict[str, Any]) -> dict[str, list[list[int]]]:
    """The rows as the trainers name them. An answer is what stands behind the first flag."""
    if not case["rejected_rows"]:
        return {"input_ids": case["rows"], "completion_mask": case["answers"]}
    prompts = [flags.index(1) for flags in case["answers"]]
    return {
        "prompt_ids": [row[:end] for row, end in zip(case["rows"], prompts, strict=True)],
        "chosen_ids": [row[end:] for row, end in zip(case["rows"], prompts, strict=True)],
        "rejected_ids": [row[end:] for row, end in zip(case["rejected_rows"], prompts, strict=True)],
    }


def main(case: dict[str, Any]) -> None:
    torch.set_num_threads(case["threads"])
    torch.manual_seed(case["seed"])
    is_half = case["precision"] == "bfloat16"
    base = AutoModelForCausalLM.from_pretrained(
        case["base_model"], dtype=torch.bfloat16 if is_half else torch.float32, local_files_only=True
    )
    model = PeftModel.from_pretrained(base, case["adapter"], is_trainable=True)
    clock = Clock()
    settings = {
        "output_dir": str(Path(case["output"]) / "trl"),
        "gradient_checkpointing": False,
        "bf16": is_half,
        "use_cpu": case["device"] == "cpu",
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": case["batch_size"],
        "max_steps": case["steps"],
        "learning_rate": case["learning_rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": case["weight_decay"],
        "max_grad_norm": case["max_gradient_norm"],
        "max_length": case["max_length"],
        "seed": case["seed"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if case["rejected_rows"]:
        make, arguments = TokenPairs, trl.DPOConfig(**settings, beta=case["dpo_beta"])
    else:
        make, arguments = trl.SFTTrainer, trl.SFTConfig(**settings, completion_only_loss=True)
    trainer = make(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(case["base_model"], local_files_only=True),
        train_dataset=datasets.Dataset.from_dict(columns(case)),
        callbacks=[clock],
        args=arguments,
    )
    trainer.train()
    trainer.model.save_pretrained(case["output"])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(json.dumps({"times": clock.times, "losses": losses, "peak_mib": peak_mib(case["device"])}))


def peak_mib(device: str) -> float:
    """Resident memory of this process, or memory of the accelerator."""
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated()) / 1024**2
    for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the kernel does not tell the peak of resident memory")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
