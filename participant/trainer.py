"""Prepares a round: evaluates the global adapter and, in a training round, trains it, in a child process.

`Trainer` is all that the daemon knows of training.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from common.adapters import ADAPTER_FILE, file_digest
from common.domains import (
    ARM_WORDS,
    LOSS_WORDS,
    REFERENCE,
    SCORE_WORDS,
    PlanDomain,
    loss_group,
    loss_word,
    records_group,
    score_group,
)
from common.errors import DataInvalid
from common.instruction_updates import Reference
from common.instructions import InstructionSet, Task
from common.plan import DPO, HELD_OUT_GROUP, PREFERENCE_GROUP, Plan
from common.states import RoundKind
from participant.reference import REFERENCE_FOLDER, LocalLosses, local_reference
from participant.training import data
from participant.training.asked import Asked, asked_of
from participant.training.job import (
    DataSettings,
    EvaluationSettings,
    FrozenAdapter,
    Hyperparameters,
    JobKind,
    PrivateSettings,
    Resources,
    TrainingJob,
    write_job,
)
from participant.training.process import RunJob, run_worker
from participant.training.result import CellScores, JobResult, Progress, total_scores
from participant.update import CLIPPED_ELEMENTS, Contribution

ADAPTER_FOLDER: Final = "adapter"
_ANSWERED_TASKS: Final = (Task.NER, Task.INSTRUCTION)
OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """One round's work. base_model, global_adapter: folders. job: a folder of its own, kept until the round is over.

    beneath: folder of the adapter that stays frozen beneath, where the plan has one.
    correction: what control variates add to a step's direction (`participant.control`); None without them.
    private: how to train so that single records stay private, as this site has counted it; None for ordinarily.
    """

    participant: str
    plan: Plan
    round: int
    kind: RoundKind
    base_model: Path
    global_adapter: Path
    global_adapter_digest: str
    instruction_set: str
    job: Path
    beneath: Path | None = None
    correction: Path | None = None
    private: PrivateSettings | None = None

    @property
    def trained_adapter(self) -> Path:
        """Model file of the trained adapter, in the plan's layout."""
        return self.job / ADAPTER_FOLDER / ADAPTER_FILE

    @property
    def seed(self) -> int:
        """Of this site in this round: other sites and rounds draw their records in another order."""
        text = f"{self.plan.training.seed}/{self.plan.run_id}/{self.round}/{self.participant}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What came of a preparation. `scores_json` stays at the site: its own figures by domain, for its own people."""

    contribution: Contribution
    scores_json: str


class Trainer(Protocol):
    """Prepares rounds. Called again for the same job after a kill, it goes on where it was."""

    def check(self, plan: Plan) -> None:
        """Better said before a run than in a round.

        Raises DataInvalid if this site's records are none that the plan trains on (of its objective, of its domain, and
        some of that held out), InvalidArgument if its settings do not go with the plan.
        """
        ...

    def metric_groups(self) -> frozenset[str]:
        """Names of metric groups that this site's records give figures for; others may hear them, by name.

        Raises DataInvalid.
        """
        ...

    def prepare(self, work: Preparation, *, on_progress: OnProgress, stop: threading.Event) -> Prepared:
        """Leaves the trained adapter at `work.trained_adapter` in a training round. Raises TrainingStopped and what
        `run_worker` raises."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerTrainer:
    """Trains on this site's records. run_job: where; by itself in a child process of its own."""

    data: DataSettings
    evaluation: EvaluationSettings
    resources: Resources
    run_job: RunJob = run_worker

    def check(self, plan: Plan) -> None:
        is_preference = plan.training.objective == DPO
        self.resources.check(is_private=plan.privacy.training is not None, is_preference=is_preference)
        records = data.load(replace(self.data, only_domain=plan.domain))
        data.require_objective(records, is_preference=is_preference)
        if plan.domain and not records.held_out:
            raise DataInvalid(
                f"this site holds out no record of domain {plan.domain}, so it could not measure its adapter"
            )

    def metric_groups(self) -> frozenset[str]:
        records = data.load(self.data)
        domains = frozenset(records_group(record.domain) for record in records.train)
        return metric_groups_of(asked_of(records.held_out, self.evaluation)) | domains

    def prepare(self, work: Preparation, *, on_progress: OnProgress, stop: threading.Event) -> Prepared:
        job = self.job_of(work)
        write_job(work.job, job)
        result = self.run_job(work.job, on_progress, stop=stop)
        used = InstructionSet.from_json(work.instruction_set)
        alone = self._alone(work, job, on_progress=on_progress, stop=stop)
        return Prepared(contribution_of(result, work.plan, used, alone), result.to_json())

    def _alone(
        self, work: Preparation, job: TrainingJob, *, on_progress: OnProgress, stop: threading.Event
    ) -> LocalLosses:
        """What this site reaches alone, where the plan's updates ask for it; found once in a run."""
        plan, updates = work.plan, work.plan.updates
        if updates is None or updates.reference is not Reference.LOCAL:
            return {}
        return local_reference(
            work.job.parent / REFERENCE_FOLDER,
            job,
            spec=plan.adapter_method().lora_spec,
            seed=replace(work, round=0).seed,
            steps=updates.reference_steps or plan.training.steps_per_round * plan.rounds,
            run_job=self.run_job,
            on_progress=on_progress,
            stop=stop,
        )

    def job_of(self, work: Preparation) -> TrainingJob:
        """The training process's job for a round's work."""
        training = work.plan.training
        return TrainingJob(
            kind=JobKind.TRAIN if work.kind is RoundKind.TRAIN else JobKind.EVALUATE,
            base_model=work.base_model,
            base_model_digest=work.plan.base_model.digest,
            global_adapter=work.global_adapter,
            global_adapter_digest=work.global_adapter_digest,
            adapter=work.plan.adapter,
            method=work.plan.method,
            round=work.round,
            hyperparameters=Hyperparameters(
                learning_rate=training.learning_rate_in(work.round, rounds=work.plan.rounds),
                batch_size=training.batch_size,
                steps=training.steps_per_round,
                max_length=training.max_length,
                seed=work.seed,
                max_gradient_norm=training.max_gradient_norm,
                weight_decay=training.weight_decay,
                dpo_beta=training.dpo_beta,
            ),
            instruction_set=InstructionSet.from_json(work.instruction_set),
            data=replace(self.data, only_domain=work.plan.domain),
            beneath=_beneath_of(work),
            evaluation=replace(self.evaluation, is_bounded=work.plan.privacy.metrics is not None),
            resources=self.resources,
            candidate_records=_candidate_records(work),
            correction=work.correction,
            correction_digest=file_digest(work.correction) if work.correction is not None else "",
            private=work.private,
        )


def _beneath_of(work: Preparation) -> tuple[FrozenAdapter, ...]:
    below = work.plan.beneath
    if below is None or work.beneath is None:
        return ()
    return (FrozenAdapter(folder=work.beneath, digest=below.adapter, spec=below.spec, method=below.method),)


def _candidate_records(work: Preparation) -> int:
    """Held-out records by which candidate templates are measured in this round."""
    updates = work.plan.updates
    is_due = updates is not None and work.kind is RoundKind.TRAIN and updates.measures_templates(work.round)
    return updates.rows if updates is not None and is_due else 0


def metric_groups_of(asked: Iterable[Asked]) -> frozenset[str]:
    """Names of the plan's metric groups that answers to these fill: held-out loss, and tasks whose metric is measured;
    of all records together, and of each domain.

    A site that declared more than it fills would be counted as cover for the others while it gives none.
    """
    found: set[str] = set()
    for one in asked:
        domain, task = one.record.domain, one.record.task
        if one.record.is_pair:
            found |= {HELD_OUT_GROUP, PREFERENCE_GROUP} if one.has_loss else set()
            continue
        if one.has_loss:
            found |= {HELD_OUT_GROUP, loss_group(domain, task)}
        if one.is_answered if task in _ANSWERED_TASKS else one.has_loss:
            found |= {task.value, score_group(domain, task)}
    return frozenset(found)


def contribution_of(
    result: JobResult, plan: Plan, instruction_set: InstructionSet | None = None, alone: LocalLosses | None = None
) -> Contribution:
    """The plan's metric words from a job's result, and this site's weight.

    instruction_set: which the round uses; None for the plan's. alone: what this site reaches by itself.

    A word counts nothing where this version does not know it, and also where the plan puts it anywhere but in its own
    group: a coordinator could call every member's what only one site has.
    """
    total = total_scores(result.scores)
    training = result.training
    is_private = plan.privacy.training is not None
    everyones = {
        # The losses of private steps are of single records, and nothing has made them private: they stay here.
        "train_loss": sum(training.losses) if training is not None and not is_private else 0.0,
        "train_steps": len(training.losses) if training is not None and not is_private else 0,
        "train_records": training.distinct_records if training is not None else 0,
    }
    grouped: dict[str, dict[str, float]] = {
        HELD_OUT_GROUP: {"heldout_loss": total.loss_sum, "heldout_tokens": total.loss_tokens},
        Task.CLASSIFICATION.value: {"classification_correct": total.correct, "classification_total": total.classified},
        Task.NER.value: {
            "span_true_positives": total.true_positives,
            "span_false_positives": total.false_positives,
            "span_false_negatives": total.false_negatives,
        },
        Task.INSTRUCTION.value: {"rouge_sum": total.rouge_sum, "rouge_total": total.rouge_records},
        PREFERENCE_GROUP: {"preference_correct": total.preferred, "preference_total": total.pairs},
    }
    counted = {
        domain.name: domain.counted(found.records)
        for domain in plan.domains
        for found in result.train_data.domains
        if found.domain == domain.name
    }
    grouped |= _domain_words(plan.domains, result.cells, counted, alone or {})
    metrics = {name: float(everyones.get(name, 0.0)) for name in plan.masking.metrics if name != CLIPPED_ELEMENTS}
    for group in plan.masking.metric_groups:
        known = grouped.get(group.name, {})
        metrics |= {name: float(known.get(name, 0.0)) for name in group.words}
    share = None
    if plan.updates is not None:
        # Until the domains' sizes are known all sites count alike: by its records each would tell its own size.
        used = instruction_set or InstructionSet.from_json(plan.instruction_set)
        share = used.site_weight(counted) or 1.0
    return Contribution(training.distinct_records if training is not None else 0, metrics, share)


def _domain_words(
    domains: Iterable[PlanDomain], cells: Iterable[CellScores], counted: Mapping[str, int], alone: LocalLosses
) -> dict[str, dict[str, float]]:
    """By metric group the words of the plan's domains that this site has figures for."""
    names = {domain.name for domain in domains}
    groups: dict[str, dict[str, float]] = {
        records_group(name): {records_group(name): counted.get(name, 0)} for name in names
    }
    for cell in cells:
        if cell.domain not in names:
            continue
        words = {what: getattr(cell, what) for what in LOSS_WORDS}
        groups[loss_group(cell.domain, cell.task)] = {
            **{loss_word(cell.domain, cell.task, what): value for what, value in words.items()},
            # Over the records that the global adapter was asked by: its mean there, as often as there are records here.
            loss_word(cell.domain, cell.task, REFERENCE): cell.rows * alone.get((cell.domain, cell.task), 0.0),
            **{
                loss_word(cell.domain, cell.task, what, arm=arm.name): getattr(arm, what)
                for arm in cell.arms
                for what in ARM_WORDS
            },
        }
        groups[score_group(cell.domain, cell.task)] = {
            loss_word(cell.domain, cell.task, what): getattr(cell, what) for what in SCORE_WORDS[cell.task]
        }
    return groups
