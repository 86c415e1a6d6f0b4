"""What the training process tells the daemon: progress while it works, scores and figures at the end.

All scores are sums, so that they can be added over batches and, masked, over sites. Knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import IntEnum, StrEnum
from typing import Final

from common import jsonform
from common.instructions import Task

RESULT_FILE: Final = "result.json"
ERROR_FILE: Final = "error.json"
LOG_FILE: Final = "worker.log"
ADAPTER_FOLDER: Final = "adapter"


class ExitCode(IntEnum):
    """How the training process ended. Anything else, or a signal, is a crash whose last words are in its log."""

    OK = 0
    CRASHED = 1  # Python's own code for an uncaught exception
    BAD_JOB = 10  # job.json is missing or not valid, or the job folder is in use
    DATA_INVALID = 11
    MODEL_UNAVAILABLE = 12
    MODEL_MISMATCH = 13
    ADAPTER_INVALID = 14  # the global adapter is not what its digest or the adapter spec says
    NOT_FINITE = 15  # loss, gradient or adapter went NaN or infinite
    OUT_OF_MEMORY = 16  # noticed by torch; the kernel's killer shows as signal 9
    STORAGE_FAILED = 17
    STOPPED = 18  # asked to stop; a checkpoint was written


class Phase(StrEnum):
    PREPARE = "prepare"
    LOAD = "load"
    EVALUATE = "evaluate"
    TRAIN = "train"
    SAVE = "save"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One line of the training process's standard output.

    step of total_steps: optimiser steps in TRAIN, batches in EVALUATE, stages elsewhere.
    loss: of this step, mean per answer token; None where there is none. seconds_left: of this phase, an estimate.
    """

    phase: Phase
    step: int
    total_steps: int
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainScores:
    """Sums over the held-out records of one domain.

    loss_sum: nats over loss_tokens answer tokens. loss_square_sum: of the records' mean losses over loss_records, for
    a standard error. correct of classified: constrained greedy choice among the labels. Spans: strict, as multisets of
    (label, mention) per text. malformed_lines: answer lines that are no "Label: mention". rouge_sum: of ROUGE-L F1
    over rouge_records. preferred of pairs: the chosen answer has gained on the rejected one since the run began;
    margin_sum: by how many nats. The loss of a pair is DPO's, and counts as that of one token.
    """

    domain: str
    loss_sum: float = 0.0
    loss_tokens: int = 0
    loss_records: int = 0
    loss_square_sum: float = 0.0
    classified: int = 0
    correct: int = 0
    ner_records: int = 0
    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0
    malformed_lines: int = 0
    rouge_records: int = 0
    rouge_sum: float = 0.0
    pairs: int = 0
    preferred: int = 0
    margin_sum: float = 0.0

    def __add__(self, other: DomainScores) -> DomainScores:
        sums = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(self)
            if field.name != "domain"
        }
        return DomainScores(domain=self.domain, **sums)

    @property
    def mean_loss(self) -> float | None:
        """Nats per answer token; None where there is none."""
        return self.loss_sum / self.loss_tokens if self.loss_tokens else None

    @property
    def accuracy(self) -> float | None:
        return self.correct / self.classified if self.classified else None

    @property
    def preference_accuracy(self) -> float | None:
        return self.preferred / self.pairs if self.pairs else None

    @property
    def precision(self) -> float | None:
        """Of spans; None without NER records, 0 where nothing was found."""
        found = self.true_positives + self.false_positives
        return None if not self.ner_records else self.true_positives / found if found else 0.0

    @property
    def recall(self) -> float | None:
        wanted = self.true_positives + self.false_negatives
        return None if not self.ner_records else self.true_positives / wanted if wanted else 0.0

    @property
    def f1(self) -> float | None:
        """Strict span micro-F1: 2 tp / (2 tp + fp + fn); 1 where no span was wanted and none found."""
        all_spans = 2 * self.true_positives + self.false_positives + self.false_negatives
        return None if not self.ner_records else 2 * self.true_positives / all_spans if all_spans else 1.0

    @property
    def rouge_l(self) -> float | None:
        return self.rouge_sum / self.rouge_records if self.rouge_records else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmScores:
    """Sums over held-out records by one candidate template: rows, their mean losses, and the squares of these."""

    name: str
    rows: int
    loss: float
    squares: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CellScores:
    """Sums over the held-out records of one domain and task.

    rows: records with a loss; loss and squares: of their mean losses, each at most `LOSS_BOUND`; nats over tokens: of
    the answers, as they are. The others as in `DomainScores`. arms: by candidate template, () where not measured.
    """

    domain: str
    task: Task
    rows: int = 0
    loss: float = 0.0
    squares: float = 0.0
    tokens: int = 0
    nats: float = 0.0
    correct: int = 0
    classified: int = 0
    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0
    rouge_sum: float = 0.0
    rouge_total: int = 0
    arms: tuple[ArmScores, ...] = ()


def total_scores(scores: Iterable[DomainScores], *, domain: str = "all") -> DomainScores:
    """Their sum."""
    total = DomainScores(domain=domain)
    for score in scores:
        total = total + score
    return total


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot be used. line: in the file, from 1; in Parquet the row, from 1."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class DomainCount:
    domain: str
    records: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """What became of every record of one file: read = used + bad + duplicates + left_out (+ held_out where split off).

    bad: not usable; the first of them are in bad_examples. duplicates: also among the held-out records, so removed
    from training. left_out: over a limit the site or the plan has set. too_long: of the bad, those whose prompt leaves
    no room for an answer. cut: used, but with the end of the answer cut off at the plan's max_length.
    """

    path: str
    read: int = 0
    used: int = 0
    held_out: int = 0
    bad: int = 0
    too_long: int = 0
    cut: int = 0
    duplicates: int = 0
    left_out: int = 0
    bad_examples: tuple[BadRecord, ...] = ()
    domains: tuple[DomainCount, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFigures:
    """What the training itself did.

    records, tokens, answer_tokens: seen, repeats included. distinct_records: in the training set. losses: per step.
    """

    steps: int
    records: int
    distinct_records: int
    tokens: int
    answer_tokens: int
    losses: tuple[float, ...]
    seconds: float
    tokens_per_second: float
    resumed_at_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """The end of a job that went well.

    scores: of the global adapter on this site's held-out records, per domain; taken before any training. cells: the
    same by domain and task, as masked sums take it.
    training, adapter_digest: None for an evaluation. The trained adapter is the folder `adapter` beside this file;
    adapter_digest is the SHA-256 of its adapter_model.safetensors. job_digest: of the job that this is the result of.
    """

    job_digest: str
    scores: tuple[DomainScores, ...]
    held_out_data: DataReport
    train_data: DataReport
    training: TrainingFigures | None
    adapter_digest: str | None
    device: str
    precision: str
    cells: tuple[CellScores, ...] = ()

    def to_json(self) -> str:
        return jsonform.encode(self, JobResult)

    @classmethod
    def from_json(cls, text: str | bytes) -> JobResult:
        """Raises InvalidArgument that lists every mistake."""
        return jsonform.decode(text, cls, what="training result")


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed: reason as in common/errors.py, and a message for a person."""

    reason: str
    message: str
