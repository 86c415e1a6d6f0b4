"""The figures of a demo run as values, and their JSON form. demo/README.md describes the JSON for readers.

A stage is a global adapter: stage 0 is the untouched base model (a new adapter changes nothing), stage k what round k
has published. Pure: where figures come from lies in `demo.watch` and `demo.run`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from common.secagg import ClosedGroup
from demo.sources.records import Task
from participant.training.result import DomainScores

REPORT_FORM: Final = 1
METRIC_OF: Final[Mapping[Task, str]] = {
    Task.CLASSIFICATION: "accuracy",
    Task.NER: "span_f1",
    Task.INSTRUCTION: "rouge_l",
}
METRIC_TITLES: Final[Mapping[str, str]] = {"accuracy": "accuracy", "span_f1": "span F1", "rouge_l": "ROUGE-L"}


@dataclass(frozen=True, slots=True)
class Figure:
    """How one global adapter does on one domain's held-out records.

    heldout_loss: nats per answer token. value: of `metric`, from 0 to 1; None where nothing was measured.
    records: judged for the loss.
    """

    heldout_loss: float | None
    metric: str
    value: float | None
    records: int

    @classmethod
    def of(cls, scores: DomainScores, task: Task) -> Figure:
        values = {Task.CLASSIFICATION: scores.accuracy, Task.NER: scores.f1, Task.INSTRUCTION: scores.rouge_l}
        return cls(scores.mean_loss, METRIC_OF[task], values[task], scores.loss_records)


@dataclass(frozen=True, slots=True)
class Stage:
    """One global adapter: the round that published it (0: the base model) and its figures on one domain."""

    round: int
    adapter_digest: str
    figure: Figure


@dataclass(frozen=True, slots=True)
class DomainReport:
    """One site and its domain. stages: by round, the first is the base model; final: of the run's accepted adapter."""

    site: str
    title: str
    domain: str
    task: Task
    source: str
    train_records: int
    heldout_records: int
    stages: tuple[Stage, ...]
    final_digest: str

    @property
    def base(self) -> Stage:
        return self.stages[0]

    @property
    def final(self) -> Stage:
        """The accepted adapter's stage; the newest one where that was never judged."""
        return next((stage for stage in self.stages if stage.adapter_digest == self.final_digest), self.stages[-1])


@dataclass(frozen=True, slots=True)
class RoundReport:
    """One round as the coordinator tells it.

    seconds: by phase. metrics: sums over all survivors, divided by their count; never one site's.
    closed_metric_groups: what it does not tell, because too few sites contribute. uploaded_bytes: of masked update, by
    site. reason, message: why it failed, if it did.
    """

    number: int
    kind: str
    state: str
    base_adapter_digest: str
    adapter_digest: str
    cohort: tuple[str, ...]
    survivors: tuple[str, ...]
    seconds: dict[str, float]
    metrics: dict[str, float]
    closed_metric_groups: tuple[ClosedGroup, ...]
    uploaded_bytes: dict[str, int]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """The final global adapter, as it was exported. manifest: as the coordinator has signed it."""

    path: str
    digest: str
    round: int
    parameters: int
    size_bytes: int
    manifest: dict[str, object]


@dataclass(frozen=True, slots=True)
class Example:
    """One held-out question of a domain, what its answer should be, and what base and tuned model say."""

    domain: str
    prompt: str
    wanted: str
    base: str
    tuned: str


@dataclass(frozen=True, slots=True)
class RunReport:
    """Everything that the end of a demo tells."""

    run: str
    state: str
    rounds_planned: int
    base_model: str
    base_model_digest: str
    base_model_path: str
    charter_digest: str
    plan_digest: str
    plan: dict[str, object]
    audit_lines: int
    adapter: AdapterReport
    domains: tuple[DomainReport, ...]
    rounds: tuple[RoundReport, ...]
    seconds: dict[str, float]
    examples: tuple[Example, ...] = ()

    @property
    def uploaded_bytes(self) -> int:
        return sum(sum(round_.uploaded_bytes.values()) for round_ in self.rounds)


def stages_of(figures: Mapping[str, Figure], *, adapters: Sequence[tuple[int, str]]) -> tuple[Stage, ...]:
    """Stages in the order of rounds. figures: by adapter digest; adapters: (round, digest) of all that were published.

    Two adapters of one round cannot be; one without figures (the run ended before anybody judged it) is left out.
    """
    return tuple(
        Stage(round_, digest, figures[digest]) for round_, digest in sorted(set(adapters)) if digest in figures
    )


def to_json(report: RunReport, *, files: Mapping[str, str]) -> str:
    """The report as demo/README.md describes it."""
    return json.dumps(
        {
            "form": REPORT_FORM,
            "run": report.run,
            "state": report.state,
            "rounds_planned": report.rounds_planned,
            "base_model": {
                "name": report.base_model,
                "digest": report.base_model_digest,
                "path": report.base_model_path,
            },
            "charter_digest": report.charter_digest,
            "plan_digest": report.plan_digest,
            "plan": report.plan,
            "adapter": asdict(report.adapter),
            "domains": {domain.domain: _domain_json(domain) for domain in report.domains},
            "rounds": [asdict(round_) for round_ in report.rounds],
            "seconds": {name: round(seconds, 1) for name, seconds in report.seconds.items()},
            "uploaded_bytes": report.uploaded_bytes,
            "audit_lines": report.audit_lines,
            "examples": [asdict(example) for example in report.examples],
            "files": dict(files),
        },
        indent=2,
        ensure_ascii=False,
    )


def _domain_json(domain: DomainReport) -> dict[str, object]:
    return {
        "site": domain.site,
        "title": domain.title,
        "task": domain.task.value,
        "source": domain.source,
        "train_records": domain.train_records,
        "heldout_records": domain.heldout_records,
        "base": asdict(domain.base.figure),
        "final": asdict(domain.final.figure),
        "final_round": domain.final.round,
        "stages": [
            {"round": stage.round, "adapter_digest": stage.adapter_digest, **asdict(stage.figure)}
            for stage in domain.stages
        ],
    }
