"""The domains of a plan, and the metric words by which masked sums tell how each fares.

A word is named `domain/task/what`, or `domain/task/template/what` for a candidate template, and belongs to a metric
group of its own kind of contributor: sums of groups that only some sites fill are opened where enough of them do. No
two groups' words are parts of one another, so a group that is open tells nothing of one that is closed. For the same
reason a plan with domains has no words over all domains: their difference to the open ones would be the closed one's.
Knows nothing of rounds and of how the figures are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from common.errors import PlanInvalid
from common.instructions import SLUG, InstructionSet, Task
from common.record_bounds import LOSS_BOUND
from common.secagg import MetricGroup

RECORDS: Final = "records"
ROWS, LOSS, SQUARES, TOKENS, NATS, REFERENCE = "rows", "loss", "squares", "tokens", "nats", "reference"
LOSS_WORDS: Final = (ROWS, LOSS, SQUARES, TOKENS, NATS)
ARM_WORDS: Final = (ROWS, LOSS, SQUARES)
SCORE_WORDS: Final[Mapping[Task, tuple[str, ...]]] = {
    Task.CLASSIFICATION: ("correct", "classified"),
    Task.NER: ("true_positives", "false_positives", "false_negatives"),
    Task.INSTRUCTION: ("rouge_sum", "rouge_total"),
}
_SCORE: Final = "score"


@dataclass(frozen=True, slots=True)
class PlanDomain:
    """A domain that a plan measures.

    tasks: those of its records that are. most_records: so many training records of one site count at most when the
    domain's size is summed and shares are made into weights; 0 for all. reference_loss: nats, mean of the records'
    means, what a site alone reaches, where the plan's updates take it from here (`Reference.GIVEN`).
    """

    name: str
    tasks: tuple[Task, ...] = tuple(Task)
    most_records: int = 0
    reference_loss: float = 0.0

    def counted(self, records: int) -> int:
        """Of one site's training records in this domain, how many count."""
        return min(records, self.most_records) if self.most_records else records


@dataclass(frozen=True, slots=True)
class LossSums:
    """Sums over records: how many, of their mean losses (each at most `LOSS_BOUND`), and of the squares of these."""

    rows: float
    loss: float
    squares: float


@dataclass(frozen=True, slots=True)
class CellSums:
    """One domain and task. served: of the served template. reference: sum over the same records of what a site alone
    reaches, None where it is not measured. arms: of the candidate templates in the set's order, () where not measured.
    """

    served: LossSums
    reference: float | None
    arms: tuple[LossSums, ...]


@dataclass(frozen=True, slots=True)
class RoundSums:
    """All that an update of the instruction set is made from: numbers, and in the plan's order, so not even names.

    sites: survivors. records: training records of each domain; cells: of each domain and task, domain by domain. None
    for what was not summed in this round.
    """

    sites: int
    records: tuple[float | None, ...]
    cells: tuple[CellSums | None, ...]


def cells_of(domains: Iterable[PlanDomain]) -> tuple[tuple[Task, str], ...]:
    """(task, domain) of every cell that is measured, domain by domain."""
    return tuple((task, domain.name) for domain in domains for task in domain.tasks)


def loss_group(domain: str, task: Task) -> str:
    """The group of those who have held-out records of a domain and task."""
    return f"{domain}/{task.value}"


def score_group(domain: str, task: Task) -> str:
    """The group of those who measure the task's metric on them."""
    return f"{domain}/{task.value}/{_SCORE}"


def records_group(domain: str) -> str:
    """The group of those who have training records of a domain."""
    return f"{domain}/{RECORDS}"


def loss_word(domain: str, task: Task, what: str, *, arm: str = "") -> str:
    """Name of one word of a domain and task; of a candidate template where `arm` names one."""
    return "/".join((domain, task.value, *((arm,) if arm else ()), what))


def metric_groups(
    domains: Iterable[PlanDomain], instruction_set: InstructionSet, *, has_updates: bool, has_reference: bool
) -> tuple[MetricGroup, ...]:
    """The metric groups of a plan with domains.

    has_updates: sizes of domains and candidate templates are measured too. has_reference: and what a site alone
    reaches.
    """
    found: list[MetricGroup] = []
    for domain in domains:
        if has_updates:
            group = records_group(domain.name)
            found.append(MetricGroup(group, (group,)))
        for task in domain.tasks:
            words = [loss_word(domain.name, task, what) for what in LOSS_WORDS]
            if has_reference:
                words.append(loss_word(domain.name, task, REFERENCE))
            candidates = instruction_set.candidates(task, domain.name)
            if has_updates and len(candidates) > 1:
                words.extend(
                    loss_word(domain.name, task, what, arm=template.name)
                    for template in candidates
                    for what in ARM_WORDS
                )
            scores = tuple(loss_word(domain.name, task, what) for what in SCORE_WORDS[task])
            found.append(MetricGroup(loss_group(domain.name, task), tuple(words)))
            found.append(MetricGroup(score_group(domain.name, task), scores))
    return tuple(found)


def round_sums(
    sums: Mapping[str, float], domains: Iterable[PlanDomain], instruction_set: InstructionSet, *, sites: int
) -> RoundSums:
    """A round's summed words, by place. sums: of the open groups alone; instruction_set: which the round used."""
    listed = tuple(domains)
    return RoundSums(
        sites=sites,
        records=tuple(sums.get(records_group(domain.name)) for domain in listed),
        cells=tuple(_cell_sums(sums, task, domain, instruction_set) for task, domain in cells_of(listed)),
    )


def _cell_sums(sums: Mapping[str, float], task: Task, domain: str, instruction_set: InstructionSet) -> CellSums | None:
    served = _loss_sums(sums, task, domain)
    if served is None:
        return None
    arms = [
        _loss_sums(sums, task, domain, arm=template.name) if template.name else None
        for template in instruction_set.candidates(task, domain)
    ]
    measured = tuple(arm for arm in arms if arm is not None)
    return CellSums(
        served=served,
        reference=sums.get(loss_word(domain, task, REFERENCE)),
        arms=measured if len(measured) == len(arms) and len(arms) > 1 else (),
    )


def _loss_sums(sums: Mapping[str, float], task: Task, domain: str, *, arm: str = "") -> LossSums | None:
    rows, loss, squares = (sums.get(loss_word(domain, task, what, arm=arm)) for what in ARM_WORDS)
    if not rows or loss is None or squares is None:
        return None
    return LossSums(rows, loss, squares)


def check_domains(domains: tuple[PlanDomain, ...]) -> None:
    """Raises PlanInvalid that says what is wrong with a plan's domains."""
    names = [domain.name for domain in domains]
    odd = [name for name in names if not SLUG.fullmatch(name)]
    if odd:
        raise PlanInvalid(
            f"domains: {odd[0]!r} is no name of at most 48 letters, digits, '_', '.' and '-'; "
            "records name their domain in the same way"
        )
    if len(set(names)) < len(names):
        raise PlanInvalid("domains: two of one name")
    if any(not domain.tasks or len(set(domain.tasks)) < len(domain.tasks) for domain in domains):
        raise PlanInvalid("domains: each needs at least one task, and each task once")
    if any(domain.most_records < 0 or not 0.0 <= domain.reference_loss <= LOSS_BOUND for domain in domains):
        raise PlanInvalid(f"domains: most_records must not be negative, reference_loss be from 0 to {LOSS_BOUND:g}")
