"""What a model is worth on test records: losses record by record, and the tasks' own metrics, for the comparisons.

The same questions, choices and counts as the product's held-out evaluation (`participant.training.evaluate`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from common import basemodel, jsonform
from common.adapters import ADAPTER_CONFIG_FILE, ADAPTER_FILE, AdapterSpec, open_flat
from common.errors import DataInvalid, InvalidArgument
from common.instructions import InstructionSet, Task
from experiments.statistics import DomainLosses
from participant.training.child import write_atomically
from participant.training.data import Exchange, Record, read_records
from participant.training.job import EvaluationSettings
from participant.training.result import RESULT_FILE, DomainScores

if TYPE_CHECKING:
    from participant.training.model import LoadBase

JUDGE_FILE: Final = "judge.json"
ALL: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TestFile:
    """Test records of one site. known: files whose answers are the labels that a classification chooses among."""

    site: str
    path: Path
    known: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeJob:
    """adapter: a PEFT folder of plain LoRA, None for the base model as it is."""

    base_model: Path
    adapter: Path | None
    instruction_set: InstructionSet
    tests: tuple[TestFile, ...]
    max_length: int
    ner_records: int
    instruction_records: int
    max_new_tokens: int
    batch_size: int = 16

    def to_json(self) -> str:
        return jsonform.encode(self, JudgeJob)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteScores:
    """One model on one site's test records. nats, tokens: of each record's answer, in the file's order."""

    site: str
    domain: str
    nats: tuple[float, ...]
    tokens: tuple[int, ...]
    scores: DomainScores

    @property
    def losses(self) -> DomainLosses:
        return DomainLosses(np.asarray(self.nats, dtype=np.float64), np.asarray(self.tokens, dtype=np.float64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One model on everybody's test records. job_digest: of what was asked."""

    job_digest: str
    sites: tuple[SiteScores, ...] = field(default=())

    def to_json(self) -> str:
        return jsonform.encode(self, Judgement)

    @classmethod
    def from_json(cls, text: str | bytes) -> Judgement:
        """Raises InvalidArgument."""
        return jsonform.decode(text, cls, what="judgement")

    def of_domains(self) -> dict[str, DomainLosses]:
        """Losses by domain, all sites' records one after another."""
        found: dict[str, list[SiteScores]] = {}
        for one in self.sites:
            found.setdefault(one.domain, []).append(one)
        return {name: _joined([one.losses for one in parts]) for name, parts in found.items()}

    def scores_of(self, domain: str) -> DomainScores:
        """Sums over the domain's sites."""
        total = DomainScores(domain=domain)
        for one in self.sites:
            if one.domain == domain:
                total = total + one.scores
        return total

    def of_site(self, site: str) -> DomainLosses:
        return next(one.losses for one in self.sites if one.site == site)


def _joined(parts: Sequence[DomainLosses]) -> DomainLosses:
    return DomainLosses(np.concatenate([part.nats for part in parts]), np.concatenate([part.tokens for part in parts]))


def write_judge_job(folder: Path, job: JudgeJob) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JUDGE_FILE).write_text(job.to_json() + "\n")


def is_judged(folder: Path, job: JudgeJob) -> bool:
    """Whether this very job is done there."""
    try:
        return Judgement.from_json((folder / RESULT_FILE).read_bytes()).job_digest == jsonform.digest(job.to_json())
    except (OSError, InvalidArgument):
        return False


def run_judge_job(folder: Path, *, base_from: LoadBase) -> None:
    """Do the job in `folder`. Raises what training jobs raise."""
    job = jsonform.decode((folder / JUDGE_FILE).read_bytes(), JudgeJob, what="judge job")
    sites = _judge(job, base_from)
    judgement = Judgement(job_digest=jsonform.digest(job.to_json()), sites=sites)
    write_atomically(folder / RESULT_FILE, judgement.to_json())


def _judge(job: JudgeJob, base_from: LoadBase) -> tuple[SiteScores, ...]:
    import torch

    from participant.training.evaluate import evaluate, questions
    from participant.training.job import Device, Precision
    from participant.training.model import choose_device, choose_precision, load_model
    from participant.training.tokens import Encoder, encode_all, load_tokenizer

    torch.set_num_threads(1)
    device = choose_device(Device.CPU)
    spec, flat = _adapter(job)
    model = load_model(
        job.base_model,
        spec=spec,
        layout=spec.layout(basemodel.describe(job.base_model).layers),
        start=flat,
        device=device,
        precision=choose_precision(Precision.AUTO, device),
        base_from=base_from,
    )
    encoder = Encoder(load_tokenizer(job.base_model), job.instruction_set, max_length=job.max_length)
    found: list[SiteScores] = []
    for test in job.tests:
        records, _ = read_records(test.path)
        asked, _ = encode_all(encoder, records)
        if not asked:
            raise DataInvalid(f"{test.path}: no record leaves room for an answer within max_length {job.max_length}")
        known = [
            record for path in test.known for record in read_records(path)[0] if record.task is Task.CLASSIFICATION
        ]
        labels, _ = encode_all(encoder, known)
        settings = EvaluationSettings(
            loss_records=ALL,
            ner_records=job.ner_records,
            instruction_records=job.instruction_records,
            max_new_tokens=job.max_new_tokens,
        )
        parts: dict[int, DomainScores] = {}

        def keep(record: Record, scores: DomainScores, parts: dict[int, DomainScores] = parts) -> None:
            parts[record.line] = parts.get(record.line, DomainScores(domain=record.domain)) + scores

        wanted = questions(asked, known=(*labels, *asked), encoder=encoder, settings=settings)
        totals = evaluate(
            model,
            [replace(one, is_answered=one.is_answered and _has_one_answer(one.encoded.record)) for one in wanted],
            encoder=encoder,
            settings=settings,
            batch_size=job.batch_size,
            on_progress=lambda progress: None,
            should_stop=lambda: False,
            on_record=keep,
        )
        lines = sorted(line for line, scores in parts.items() if scores.loss_tokens)
        found.append(
            SiteScores(
                site=test.site,
                domain=totals[0].domain,
                nats=tuple(parts[line].loss_sum for line in lines),
                tokens=tuple(parts[line].loss_tokens for line in lines),
                scores=totals[0],
            )
        )
    return tuple(found)


def _has_one_answer(record: Record) -> bool:
    """Whether the words of a free answer say how right it is: to an open question there are many right ones."""
    return record.task is not Task.INSTRUCTION or (isinstance(record.content, Exchange) and bool(record.content.input))


def _adapter(job: JudgeJob) -> tuple[AdapterSpec, Any]:
    """Spec and values of the PEFT folder; for the base model a LoRA of rank 1 with nothing in it."""
    layers = basemodel.describe(job.base_model).layers
    if job.adapter is None:
        spec = AdapterSpec(rank=1, alpha=1.0, target_modules=(layers[0].name.rsplit(".", 1)[-1],))
        return spec, np.zeros(spec.layout(layers).parameters, dtype=np.float32)
    config = json.loads((job.adapter / ADAPTER_CONFIG_FILE).read_text())
    spec = AdapterSpec(
        rank=int(config["r"]), alpha=float(config["lora_alpha"]), target_modules=tuple(sorted(config["target_modules"]))
    )
    return spec, np.array(open_flat(job.adapter / ADAPTER_FILE, spec.layout(layers)))
