"""Sums over the held-out records of each domain and task, by the served template and by every candidate.

Losses are records' means, each at most `LOSS_BOUND`: what masked sums take, and what standard errors are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from common.instructions import InstructionSet, Task
from common.record_bounds import LOSS_BOUND
from participant.training.data import Record
from participant.training.result import ArmScores, CellScores, DomainScores

EvaluateWith = Callable[[InstructionSet, Sequence[Record], Callable[[Record, DomainScores], None]], None]
"""Evaluates records by an instruction set's served templates, and tells each one's scores."""


class CellSums:
    """Adds up records' scores by domain and task."""

    def __init__(self) -> None:
        self._cells: dict[tuple[str, Task], CellScores] = {}

    def add(self, record: Record, scores: DomainScores) -> None:
        """One record's part: its loss, or its free answer."""
        key = (record.domain, record.task)
        cell = self._cells.get(key, CellScores(domain=record.domain, task=record.task))
        mean = min(scores.loss_sum / scores.loss_tokens, LOSS_BOUND) if scores.loss_tokens else 0.0
        self._cells[key] = replace(
            cell,
            rows=cell.rows + scores.loss_records,
            loss=cell.loss + mean,
            squares=cell.squares + mean**2,
            tokens=cell.tokens + scores.loss_tokens,
            nats=cell.nats + scores.loss_sum,
            correct=cell.correct + scores.correct,
            classified=cell.classified + scores.classified,
            true_positives=cell.true_positives + scores.true_positives,
            false_positives=cell.false_positives + scores.false_positives,
            false_negatives=cell.false_negatives + scores.false_negatives,
            rouge_sum=cell.rouge_sum + scores.rouge_sum,
            rouge_total=cell.rouge_total + scores.rouge_records,
        )

    @property
    def cells(self) -> tuple[CellScores, ...]:
        """By domain and task."""
        return tuple(self._cells[key] for key in sorted(self._cells))


def measure_candidates(
    cells: Sequence[CellScores], held_out: Sequence[Record], instruction_set: InstructionSet, evaluate: EvaluateWith
) -> tuple[CellScores, ...]:
    """The cells with what each of their candidate templates makes of the same held-out records.

    held_out: those to measure by. One pass of all cells for the first candidates, one for the second ones, and so on.
    """
    arms: dict[tuple[str, Task], list[ArmScores]] = {}
    most = max((len(instruction_set.candidates(cell.task, cell.domain)) for cell in cells), default=0)
    for place in range(most if most > 1 else 0):
        asked = [record for record in held_out if _count(instruction_set, record) > max(place, 1)]
        sums = CellSums()
        evaluate(_serving(instruction_set, place), asked, sums.add)
        for cell in sums.cells:
            name = instruction_set.candidates(cell.task, cell.domain)[place].name
            arms.setdefault((cell.domain, cell.task), []).append(
                ArmScores(name=name, rows=cell.rows, loss=cell.loss, squares=cell.squares)
            )
    return tuple(replace(cell, arms=tuple(arms.get((cell.domain, cell.task), ()))) for cell in cells)


def _count(instruction_set: InstructionSet, record: Record) -> int:
    return len(instruction_set.candidates(record.task, record.domain))


def _serving(instruction_set: InstructionSet, place: int) -> InstructionSet:
    """The set with every cell's candidate at this place served; where there are fewer, what is served anyway."""
    by_cell: dict[tuple[Task, str], int] = {}
    templates = []
    for template in instruction_set.templates:
        at = by_cell.get(template.cell, 0)
        by_cell[template.cell] = at + 1
        templates.append((template, at))
    return replace(
        instruction_set,
        templates=tuple(
            replace(template, is_served=at == place) if by_cell[template.cell] > place else template
            for template, at in templates
        ),
    )
