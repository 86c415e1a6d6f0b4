"""Which held-out records a round asks the model about, and what of each: the same in every round of a site's records.

Knows nothing of torch, so that the daemon can say beforehand what a round will measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.instructions import Task
from participant.training.data import Exchange, Record, choose
from participant.training.job import EvaluationSettings


@dataclass(frozen=True, slots=True)
class Asked:
    """One held-out record. has_loss: its loss counts, and for a classification its choice of a label.

    is_answered: a free answer is wanted.
    """

    record: Record
    has_loss: bool
    is_answered: bool


def asked_of(held_out: Sequence[Record], settings: EvaluationSettings) -> tuple[Asked, ...]:
    """By record digest, so many of every domain and task; in the order of domains and tasks."""
    chosen: list[Asked] = []
    for domain, task in sorted({(record.domain, record.task) for record in held_out}):
        group = [record for record in held_out if (record.domain, record.task) == (domain, task)]
        answered = {Task.NER: settings.ner_records, Task.INSTRUCTION: settings.instruction_records}.get(task, 0)
        for rank, record in enumerate(choose(group, max(settings.loss_records, answered))):
            is_answered = rank < answered and isinstance(record.content, Exchange) and not record.is_pair
            chosen.append(Asked(record, has_loss=rank < settings.loss_records, is_answered=is_answered))
    return tuple(chosen)
