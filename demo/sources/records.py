"""The demo's record, its JSON line, and the split into what a site trains on and what it keeps to itself.

Nothing here draws at random: order and split follow from digests of the text, so that every machine and every run has
the same records. Knows nothing of where records come from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from common.errors import DataInvalid


class Task(StrEnum):
    """What kind of answer a record has; the words are those of the data format."""

    CLASSIFICATION = "classification"
    NER = "ner"
    INSTRUCTION = "instruction"


@dataclass(frozen=True, slots=True)
class Entity:
    """A marked stretch of a record's input: characters [start, end)."""

    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class Record:
    """One question and its answer. label: of a classification; entities: of a ner record, in the order of the text."""

    identifier: str
    domain: str
    task: Task
    instruction: str
    input_text: str
    output: str
    label: str | None = None
    entities: tuple[Entity, ...] | None = None

    def to_json(self) -> str:
        """One line of a data file."""
        fields: dict[str, object] = {
            "id": self.identifier,
            "domain": self.domain,
            "task": self.task.value,
            "instruction": self.instruction,
            "input": self.input_text,
            "output": self.output,
        }
        if self.label is not None:
            fields["label"] = self.label
        if self.entities is not None:
            fields["entities"] = [[entity.start, entity.end, entity.label] for entity in self.entities]
        return json.dumps(fields, ensure_ascii=False)


def classification(site: str, domain: str, *, instruction: str, input_text: str, label: str) -> Record:
    return Record(
        identifier=f"{site}-{_digest(instruction, input_text)[:14]}",
        domain=domain,
        task=Task.CLASSIFICATION,
        instruction=instruction,
        input_text=input_text,
        output=label,
        label=label,
    )


def ner(site: str, domain: str, *, instruction: str, input_text: str, entities: Sequence[Entity]) -> Record:
    """The answer lists the entities one a line as `label: mention`, or says None."""
    in_order = tuple(sorted(entities, key=lambda entity: entity.start))
    lines = [f"{entity.label}: {input_text[entity.start : entity.end]}" for entity in in_order]
    return Record(
        identifier=f"{site}-{_digest(instruction, input_text)[:14]}",
        domain=domain,
        task=Task.NER,
        instruction=instruction,
        input_text=input_text,
        output="\n".join(lines) or "None",
        entities=in_order,
    )


def instruction(site: str, domain: str, *, instruction: str, input_text: str, output: str) -> Record:
    return Record(
        identifier=f"{site}-{_digest(instruction, input_text)[:14]}",
        domain=domain,
        task=Task.INSTRUCTION,
        instruction=instruction,
        input_text=input_text,
        output=output,
    )


def shuffled(records: Iterable[Record], *, salt: str = "") -> list[Record]:
    """In the order of a digest of their text: looks random, is the same everywhere."""
    return sorted(records, key=lambda record: _digest(salt, record.instruction, record.input_text, record.output))


def without_repeats(records: Iterable[Record]) -> list[Record]:
    """The first of those that ask the same."""
    first: dict[tuple[str, str], Record] = {}
    for record in records:
        first.setdefault((record.instruction, record.input_text), record)
    return list(first.values())


@dataclass(frozen=True, slots=True)
class Parts:
    """What a site trains on, and what it keeps to judge the global adapter with."""

    train: tuple[Record, ...]
    held_out: tuple[Record, ...]


def in_domain(parts: Parts, domain: str) -> Parts:
    """The same records under one domain."""
    return Parts(
        train=tuple(replace(record, domain=domain) for record in parts.train),
        held_out=tuple(replace(record, domain=domain) for record in parts.held_out),
    )


def split(grouped: Iterable[tuple[str, Record]], *, held_out: int, train: int) -> Parts:
    """Whole groups go to one part, so that a near copy of a training record never judges the model.

    grouped: records with the name of their group. Takes the first groups (in the order of a digest) until they have
    `held_out` records, then `train` of the others. Raises DataInvalid if there are too few.
    """
    group_of: dict[Record, str] = {}
    for group, record in grouped:
        group_of.setdefault(record, group)
    judged: list[Record] = []
    trained: list[Record] = []
    judged_groups: set[str] = set()
    for record in sorted(without_repeats(group_of), key=lambda record: _digest("group", group_of[record])):
        if len(judged) < held_out:
            judged_groups.add(group_of[record])
        (judged if group_of[record] in judged_groups else trained).append(record)
    if len(judged) < held_out or len(trained) < train:
        raise DataInvalid(
            f"{len(judged)} held-out and {len(trained)} training records are left of {held_out} and {train} wanted"
        )
    return Parts(train=tuple(shuffled(trained)[:train]), held_out=tuple(shuffled(judged)[:held_out]))


def join(parts: Iterable[Parts]) -> Parts:
    """Parts of several strata, shuffled into one."""
    kept = tuple(parts)
    return Parts(
        train=tuple(shuffled(record for part in kept for record in part.train)),
        held_out=tuple(shuffled(record for part in kept for record in part.held_out)),
    )


def write_lines(path: Path, records: Iterable[Record]) -> None:
    path.write_text("".join(record.to_json() + "\n" for record in records), encoding="utf-8")


def _digest(*texts: str) -> str:
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()
