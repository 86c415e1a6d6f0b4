"""One job's execution with torch: tokens, model, evaluation of the global adapter, training, the adapter's files.

Every step leaves a file that a second start finds: killed anywhere, a job goes on and ends with the same bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from common import jsonform
from common.adapters import AdapterLayout, FlatVector, check_file_digest, unflatten
from common.errors import DataInvalid, InvalidArgument
from common.instructions import InstructionSet
from common.methods import adapter_method, laid_out
from participant.training.asked import asked_of
from participant.training.cells import CellSums, measure_candidates
from participant.training.checkpoint import CHECKPOINT_FILE
from participant.training.child import write_atomically
from participant.training.data import MAX_BAD_EXAMPLES, Dataset, Record, require_objective
from participant.training.evaluate import evaluate, questions
from participant.training.job import NOISE_KEY_FILE, EvaluationSettings, JobKind, PrivateSettings, TrainingJob
from participant.training.loop import TrainingTask, train
from participant.training.methods import client_method
from participant.training.model import (
    AdaptedModel,
    LoadBase,
    choose_device,
    choose_precision,
    load_base,
    load_model,
    save_adapter,
)
from participant.training.result import (
    ADAPTER_FOLDER,
    BadRecord,
    CellScores,
    DataReport,
    DomainCount,
    DomainScores,
    JobResult,
    Phase,
    Progress,
    TrainingFigures,
)
from participant.training.tokens import Encoded, Encoder, TooLong, encode_all, load_tokenizer

if TYPE_CHECKING:
    from participant.training.dp_sgd import PrivateRecords
    from participant.training.group import Group

SCORES_FILE: Final = "scores.json"


@dataclass(frozen=True, slots=True)
class _KeptScores:
    """The evaluation's result, kept so that a resumed job does not evaluate again."""

    job_digest: str
    scores: tuple[DomainScores, ...]
    cells: tuple[CellScores, ...]


class Execution:
    """One job in its folder, with its checks done and its paths absolute.

    group: None for a job of one process. The group's first process does what a single one does (`run`); the others
    `help`, and write nothing.
    """

    def __init__(
        self,
        folder: Path,
        job: TrainingJob,
        *,
        job_digest: str,
        base_model_name: str,
        report: Callable[[Progress], None],
        should_stop: Callable[[], bool],
        base_from: LoadBase = load_base,
        group: Group | None = None,
    ) -> None:
        self._folder = folder
        self._job = job
        self._job_digest = job_digest
        self._base_model_name = base_model_name
        self._report = report
        self._should_stop = should_stop
        self._base_from = base_from
        self._group = group

    def run(self, records: Dataset, *, layout: AdapterLayout, start: FlatVector) -> JobResult:
        """Do what is left of the job from the global adapter `start`, float32[d] in `layout`.

        The trained adapter is in its folder when this returns.
        """
        job = self._job
        torch.set_num_threads(job.resources.threads)
        require_objective(records, is_preference=job.hyperparameters.dpo_beta > 0.0)
        tokenizer, most = load_tokenizer(job.base_model), job.hyperparameters.max_length
        encoder = Encoder(tokenizer, job.instruction_set, max_length=most)
        drawing = Encoder(tokenizer, job.instruction_set, max_length=most, draw_seed=job.hyperparameters.seed)
        train_set, too_long = encode_all(drawing, records.train)
        train_report = _with_lengths(records.train_report, train_set, too_long)
        if job.kind is JobKind.TRAIN and not train_set:
            raise DataInvalid(
                f"{job.data.train_path}: not one record leaves room for an answer within max_length "
                f"{job.hyperparameters.max_length}; line {too_long[0].record.line}: {too_long[0].reason}"
            )
        held_out, too_long = encode_all(encoder, records.held_out)
        held_out_report = _with_lengths(records.held_out_report, held_out, too_long)
        adapted = self._load(layout, start)
        kept = self._kept_scores()
        if self._group is not None:
            self._group.any(kept is not None)
        if kept is None:
            kept = self._evaluate(adapted, encoder, held_out=held_out, known=(*train_set, *held_out))
        figures: TrainingFigures | None = None
        adapter_digest: str | None = None
        if job.kind is JobKind.TRAIN:
            figures = self._train(adapted, train_set)
            self._report(Progress(phase=Phase.SAVE, step=1, total_steps=1))
            adapter_digest = save_adapter(
                adapted, self._folder / ADAPTER_FOLDER, spec=job.adapter, base_model_name=self._base_model_name
            )
        return JobResult(
            job_digest=self._job_digest,
            scores=kept.scores,
            cells=kept.cells,
            held_out_data=held_out_report,
            train_data=train_report,
            training=figures,
            adapter_digest=adapter_digest,
            device=torch.cuda.get_device_name(adapted.device) if adapted.device.type == "cuda" else "cpu",
            precision=str(adapted.precision).removeprefix("torch."),
        )

    def help(self, records: Dataset, group: Group, *, layout: AdapterLayout, start: FlatVector) -> None:
        """The part of a process beside the group's first, in step with its `run`."""
        job = self._job
        torch.set_num_threads(job.resources.threads)
        tokenizer, most = load_tokenizer(job.base_model), job.hyperparameters.max_length
        drawing = Encoder(tokenizer, job.instruction_set, max_length=most, draw_seed=job.hyperparameters.seed)
        train_set, _ = encode_all(drawing, records.train)
        adapted = self._load(layout, start)
        is_evaluated = group.any(False)
        if group.is_sharded and not is_evaluated:
            # The first one's passes need this process's share of every layer.
            encoder = Encoder(tokenizer, job.instruction_set, max_length=most)
            held_out, _ = encode_all(encoder, records.held_out)
            self._evaluate(adapted, encoder, held_out=held_out, known=(*train_set, *held_out))
        if job.kind is JobKind.TRAIN:
            self._train(adapted, train_set)

    def tidy(self) -> None:
        """Remove what only an unfinished job needs."""
        for name in (CHECKPOINT_FILE, SCORES_FILE):
            (self._folder / name).unlink(missing_ok=True)

    def _load(self, layout: AdapterLayout, start: FlatVector) -> AdaptedModel:
        job = self._job
        device = choose_device(job.resources.device)
        # On the CPU the same job gives the same bits; a GPU would have to give up its fastest kernels for it.
        torch.use_deterministic_algorithms(device.type == "cpu")
        return load_model(
            job.base_model,
            spec=job.adapter,
            method=job.method,
            layout=layout,
            start=start,
            device=device,
            precision=choose_precision(job.resources.precision, device),
            base_from=self._base_from,
            shard=self._group.shard if self._group is not None and self._group.is_sharded else None,
        )

    def _evaluate(
        self, adapted: AdaptedModel, encoder: Encoder, *, held_out: Sequence[Encoded], known: Sequence[Encoded]
    ) -> _KeptScores:
        job, sums = self._job, CellSums()

        def score(
            encoder: Encoder,
            asked: Sequence[Encoded],
            settings: EvaluationSettings,
            on_record: Callable[[Record, DomainScores], None],
        ) -> tuple[DomainScores, ...]:
            return evaluate(
                adapted,
                questions(asked, known=known, encoder=encoder, settings=settings),
                encoder=encoder,
                settings=settings,
                batch_size=job.resources.evaluation_batch_size,
                on_progress=self._report,
                should_stop=self._should_stop,
                on_record=on_record,
                dpo_beta=job.hyperparameters.dpo_beta,
            )

        def by_candidates(
            used: InstructionSet, records: Sequence[Record], on_record: Callable[[Record, DomainScores], None]
        ) -> None:
            own = Encoder(encoder.tokenizer, used, max_length=job.hyperparameters.max_length)
            encoded, _ = encode_all(own, records)
            score(own, encoded, EvaluationSettings(loss_records=len(records), ner_records=0), on_record)

        scores, cells = score(encoder, held_out, job.evaluation, sums.add), sums.cells
        if job.candidate_records:
            few = EvaluationSettings(loss_records=job.candidate_records, ner_records=0)
            chosen = [one.record for one in asked_of([item.record for item in held_out], few)]
            cells = measure_candidates(cells, chosen, job.instruction_set, by_candidates)
        kept = _KeptScores(self._job_digest, scores, cells)
        if self._group is None or self._group.rank == 0:
            write_atomically(self._folder / SCORES_FILE, jsonform.encode(kept, _KeptScores))
        return kept

    def _kept_scores(self) -> _KeptScores | None:
        try:
            kept = jsonform.decode((self._folder / SCORES_FILE).read_bytes(), _KeptScores, what="kept scores")
        except (OSError, InvalidArgument):
            return None
        return kept if kept.job_digest == self._job_digest else None

    def _train(self, adapted: AdaptedModel, records: Sequence[Encoded]) -> TrainingFigures:
        job = self._job
        weights = [job.instruction_set.weight_of(item.record.domain) for item in records]
        return train(
            adapted,
            TrainingTask(
                records=records,
                weights=weights,
                hyperparameters=job.hyperparameters,
                resources=job.resources,
                method=client_method(job.method, job.adapter, round_=job.round, correction=_correction(job, adapted)),
                job_digest=self._job_digest,
                checkpoint=self._folder / CHECKPOINT_FILE if job.resources.checkpoint_every_steps else None,
                private=None if job.private is None else self._private_steps(job.private, records, weights),
                group=self._group,
            ),
            on_progress=self._report,
            should_stop=self._should_stop,
        )

    def _private_steps(
        self, settings: PrivateSettings, records: Sequence[Encoded], weights: Sequence[float]
    ) -> PrivateRecords:
        from participant.training.dp_sgd import PrivateRecords, SecretNoise  # Opacus: over a second, for private jobs

        return PrivateRecords(
            records=records,
            weights=weights,
            heaviest=self._job.instruction_set.heaviest,
            settings=settings,
            noise=SecretNoise.read(self._folder / NOISE_KEY_FILE),
            micro_batch_size=self._job.resources.micro_batch_size,
        )


def _correction(job: TrainingJob, adapted: AdaptedModel) -> dict[str, Tensor]:
    """What control variates add to the direction of every step, by tensor; nothing without them.

    Raises DigestMismatch or ShapeMismatch for a file that is not the job's.
    """
    if job.correction is None:
        return {}
    check_file_digest(job.correction, job.correction_digest)
    flat = np.fromfile(job.correction, dtype="<f4").astype(np.float32, copy=False)
    method = adapter_method(job.method, job.adapter)
    sent = laid_out((slot.name, slot.shape) for slot in adapted.layout.slots if method.is_sent(slot.name, 0))
    return {name: torch.from_numpy(value).to(adapted.device) for name, value in unflatten(flat, sent).items()}


def _with_lengths(report: DataReport, encoded: Sequence[Encoded], too_long: Sequence[TooLong]) -> DataReport:
    """The report once the plan's max_length is known: records without room for an answer are bad ones."""
    domains = Counter(item.record.domain for item in encoded)
    examples = [*report.bad_examples, *(BadRecord(item.record.line, item.reason) for item in too_long)]
    return replace(
        report,
        used=len(encoded),
        bad=report.bad + len(too_long),
        too_long=len(too_long),
        cut=sum(1 for item in encoded if item.is_cut),
        bad_examples=tuple(examples[:MAX_BAD_EXAMPLES]),
        domains=tuple(DomainCount(domain, domains[domain]) for domain in sorted(domains)),
    )
