"""A training job: everything that the training process needs to know, in one file that the daemon writes.

Knows nothing of torch, so that the daemon can import it, and nothing of rounds and coordinators.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from common import jsonform
from common.adapters import AdapterLayout, AdapterSpec, LinearLayer
from common.errors import InvalidArgument
from common.instructions import InstructionSet
from common.methods import Method, adapter_method

JOB_FILE: Final = "job.json"
NOISE_KEY_FILE: Final = "noise.key"
NOISE_KEY_BYTES: Final = 32
MAX_PROCESSES: Final = 64


class JobKind(StrEnum):
    """EVALUATE: only score the global adapter on held-out records. TRAIN: score it first, then train from it."""

    TRAIN = "train"
    EVALUATE = "evaluate"


class Device(StrEnum):
    """AUTO: a GPU where there is one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Precision(StrEnum):
    """Of the frozen base weights; LoRA factors are float32 always. AUTO: bfloat16 where the hardware has it."""

    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class Sharding(StrEnum):
    """Of the frozen base over a job's processes. NONE: each has all of it. FSDP: each has its share of every layer."""

    NONE = "none"
    FSDP = "fsdp"


class DataFormat(StrEnum):
    """AUTO: by the file's ending."""

    AUTO = "auto"
    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    """What the plan says about training; the same at every site.

    batch_size: records in one optimiser step. steps: optimiser steps. max_length: tokens of prompt and answer.
    max_gradient_norm: L2, over all trainable tensors. seed: of the order of records.
    dpo_beta: over 0 for preference tuning on pairs of answers, 0 for the loss of right answers.
    """

    learning_rate: float
    batch_size: int
    steps: int
    max_length: int
    seed: int
    max_gradient_norm: float = 1.0
    weight_decay: float = 0.0
    dpo_beta: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.dpo_beta) and self.dpo_beta >= 0.0):
            raise InvalidArgument("dpo_beta must not be negative")
        if not (math.isfinite(self.learning_rate) and 0.0 < self.learning_rate <= 10.0):
            raise InvalidArgument("learning_rate must be over 0 and at most 10")
        if not 1 <= self.batch_size <= 65_536 or not 1 <= self.steps <= 10_000_000:
            raise InvalidArgument("batch_size must be 1 to 65536, steps 1 to 10000000")
        if not 8 <= self.max_length <= 1_048_576:
            raise InvalidArgument("max_length must be 8 to 1048576 tokens")
        if not (math.isfinite(self.max_gradient_norm) and self.max_gradient_norm > 0.0):
            raise InvalidArgument("max_gradient_norm must be over 0")
        if not 0.0 <= self.weight_decay < 1.0:
            raise InvalidArgument("weight_decay must be from 0 up to, but not including, 1")
        if not 0 <= self.seed < 2**63:
            raise InvalidArgument("seed must be from 0 up to 2**63 - 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Where a site's records are.

    held_out_path: records that are never trained on; without it, `held_out_fraction` of the training file, chosen by
    record hash. train_limit: at most so many training records (0: all), chosen by record hash.
    max_none_fraction: at most this part of the NER training records may have no entity (a model that sees too many
    learns to say None); 1.0 leaves them as they are.
    default_domain: for records that name none. only_domain: records of others are left out; "" for none.
    """

    train_path: Path
    train_format: DataFormat = DataFormat.AUTO
    held_out_path: Path | None = None
    held_out_format: DataFormat = DataFormat.AUTO
    held_out_fraction: float = 0.1
    train_limit: int = 0
    max_none_fraction: float = 1.0
    default_domain: str = "general"
    only_domain: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.held_out_fraction < 1.0:
            raise InvalidArgument("held_out_fraction must be from 0 up to, but not including, 1")
        if not 0.0 <= self.max_none_fraction <= 1.0:
            raise InvalidArgument("max_none_fraction must be between 0 and 1")
        if self.train_limit < 0:
            raise InvalidArgument("train_limit must not be negative")
        if not self.default_domain:
            raise InvalidArgument("default_domain must not be empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """How much of the held-out records is used, per domain and task; which ones is fixed by record hash. 0: none.

    loss_records: for answer loss, and with it the accuracy of classification. ner_records, instruction_records: of
    these, how many are answered freely for span F1 and ROUGE-L (dear: one forward pass a token). is_bounded: each
    record's part is cut (`bounds`), because the figures are to be told with noise.
    """

    loss_records: int = 200
    ner_records: int = 100
    instruction_records: int = 0
    max_new_tokens: int = 96
    is_bounded: bool = False

    def __post_init__(self) -> None:
        if min(self.loss_records, self.ner_records, self.instruction_records) < 0 or self.max_new_tokens < 1:
            raise InvalidArgument("evaluation counts must not be negative, and max_new_tokens at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What this site gives to training; the result's meaning does not depend on it.

    threads: of the CPU, in each process. micro_batch_size: records in a process's memory at once; gradients accumulate
    up to the batch size. checkpoint_every_steps: a killed process goes on from its last checkpoint; 0 keeps none.
    processes: on one machine, each with a device of its own and its share of every step's records. sharding: FSDP where
    the base model does not fit one device; it costs the gathering of every layer in every pass.
    """

    threads: int = 1
    device: Device = Device.AUTO
    precision: Precision = Precision.AUTO
    micro_batch_size: int = 8
    evaluation_batch_size: int = 16
    checkpoint_every_steps: int = 10
    processes: int = 1
    sharding: Sharding = Sharding.NONE

    def __post_init__(self) -> None:
        if not 1 <= self.processes <= MAX_PROCESSES:
            raise InvalidArgument(f"processes must be 1 to {MAX_PROCESSES}")
        if self.sharding is Sharding.FSDP and self.processes == 1:
            raise InvalidArgument('sharding = "fsdp" shares the base model between processes; set processes over 1')
        if self.threads < 1 or self.micro_batch_size < 1 or self.evaluation_batch_size < 1:
            raise InvalidArgument("threads and batch sizes must be at least 1")
        if self.checkpoint_every_steps < 0:
            raise InvalidArgument("checkpoint_every_steps must not be negative")

    def check(self, *, is_private: bool, is_preference: bool) -> None:
        """Raises InvalidArgument for more processes than training of this kind takes."""
        if self.processes > 1 and (is_private or is_preference):
            what = "private steps (DP-SGD) take" if is_private else "preference tuning (DPO) takes"
            raise InvalidArgument(
                f"this site trains with [training] processes = {self.processes}, and {what} one process; set "
                'processes = 1 and sharding = "none" for this run'
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateSettings:
    """Private steps (`dp_sgd`): each record is in a step with probability sample_rate, its gradient's L2 norm is at
    most clip, and the noise on their sum has a standard deviation of noise_multiplier * clip.

    records: of the training file, which sample_rate was made for.
    """

    sample_rate: float
    noise_multiplier: float
    clip: float
    records: int

    def __post_init__(self) -> None:
        if not 0.0 < self.sample_rate <= 1.0 or self.records < 1:
            raise InvalidArgument("sample_rate must be over 0 and at most 1, of at least one record")
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0.0):
            raise InvalidArgument("noise_multiplier must be over 0: without noise nothing is private")
        if not (math.isfinite(self.clip) and self.clip > 0.0):
            raise InvalidArgument("clip must be over 0")

    @property
    def expected_batch(self) -> float:
        """Records in a step on average: what the noisy sum is divided by, whatever a step has drawn."""
        return self.sample_rate * self.records


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenAdapter:
    """An adapter that is part of the model and does not move. folder: PEFT; digest: SHA-256 of its model file."""

    folder: Path
    digest: str
    spec: AdapterSpec
    method: Method


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """One job of the training process.

    base_model: a local safetensors folder (`sources.prepare` makes one), checked against base_model_digest.
    global_adapter: a folder with the method's stored tensors; global_adapter_digest: SHA-256 of its file.
    method, round: what is trained and sent follows from both; rounds count from 1.
    correction: of every step's direction, float32 in the order of what is sent; None without control variates.
    private: None for ordinary training; the key of a private job's noise is a file beside this one, for its owner only.
    candidate_records: held-out records of each domain and task by which candidate templates are measured; 0: they are
    not. Relative paths are looked up from the job folder.
    """

    kind: JobKind
    base_model: Path
    base_model_digest: str
    global_adapter: Path
    global_adapter_digest: str
    adapter: AdapterSpec
    method: Method
    hyperparameters: Hyperparameters
    instruction_set: InstructionSet
    data: DataSettings
    round: int = 1
    evaluation: EvaluationSettings = EvaluationSettings()
    resources: Resources = Resources()
    candidate_records: int = 0
    beneath: tuple[FrozenAdapter, ...] = ()
    private: PrivateSettings | None = None
    correction: Path | None = None
    correction_digest: str = ""

    def __post_init__(self) -> None:
        if self.round < 1:
            raise InvalidArgument("round must be at least 1")
        self.resources.check(is_private=self.private is not None, is_preference=self.hyperparameters.dpo_beta > 0.0)

    def layout(self, layers: Iterable[LinearLayer]) -> AdapterLayout:
        """Of the adapter's stored tensors. Raises InvalidArgument or PlanInvalid where the method does not fit."""
        return adapter_method(self.method, self.adapter).layout(layers)

    def to_json(self) -> str:
        """Canonical JSON."""
        return jsonform.encode(self, TrainingJob)

    @classmethod
    def from_json(cls, text: str | bytes) -> TrainingJob:
        """Raises InvalidArgument that lists every mistake."""
        return jsonform.decode(text, cls, what="training job")

    @property
    def digest(self) -> str:
        """Hex SHA-256; a checkpoint of another job is of no use to this one."""
        return jsonform.digest(self.to_json())

    def resolved(self, folder: Path) -> TrainingJob:
        """The same job with every path absolute, relative ones taken from `folder`."""
        held_out, correction = self.data.held_out_path, self.correction
        return replace(
            self,
            base_model=folder / self.base_model,
            global_adapter=folder / self.global_adapter,
            beneath=tuple(replace(one, folder=folder / one.folder) for one in self.beneath),
            correction=None if correction is None else folder / correction,
            data=replace(
                self.data,
                train_path=folder / self.data.train_path,
                held_out_path=None if held_out is None else folder / held_out,
            ),
        )


def write_job(folder: Path, job: TrainingJob) -> None:
    """Write `job.json` into a job folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JOB_FILE).write_text(job.to_json() + "\n")
