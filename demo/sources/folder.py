"""A folder of the user's own: sub-folders with train.jsonl and test.jsonl (or validation.jsonl), one record a line.

A line has id, domain, task (classification, ner, instruction), instruction, input, output; classification adds label,
ner adds entities as [start, end, label] in input. From each set a bounded sample is taken, the same every time.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import DataInvalid
from demo.sources.records import Entity, Parts, Record, Task, shuffled, without_repeats

TRAIN: Final = "train.jsonl"
HELD_OUT: Final = ("test.jsonl", "validation.jsonl")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a set is used: records, characters of a record, labels, share of ner records that mark nothing."""

    train: int
    held_out: int
    characters: int
    labels: int = 15
    none_share: float = 0.15


@dataclass(frozen=True, slots=True)
class DataSet:
    """One sub-folder, and the task of its first record."""

    name: str
    task: Task
    folder: Path

    @property
    def train_path(self) -> Path:
        return self.folder / TRAIN

    @property
    def held_out_path(self) -> Path:
        return next(path for name in HELD_OUT if (path := self.folder / name).is_file())


@dataclass(frozen=True, slots=True)
class Sample:
    """What was taken of a set, and what a reader should know about the choice."""

    parts: Parts
    note: str


def find_sets(data: Path) -> tuple[DataSet, ...]:
    """The data sets under `data`, by name. Raises DataInvalid if there is none."""
    if not data.is_dir():
        raise DataInvalid(f"{data} is not a folder; name one with a sub-folder for each data set")
    found = tuple(
        DataSet(name=folder.name, task=_first_record(folder / TRAIN).task, folder=folder)
        for folder in sorted(data.iterdir())
        if (folder / TRAIN).is_file() and any((folder / name).is_file() for name in HELD_OUT)
    )
    if not found:
        raise DataInvalid(f"no sub-folder of {data} has {TRAIN} and {' or '.join(HELD_OUT)}")
    return found


def choose_sets(found: Sequence[DataSet], *, wanted: Sequence[str]) -> tuple[DataSet, ...]:
    """The three that are `wanted`; with none wanted, the first by name of each task. Raises DataInvalid."""
    by_name = {data_set.name: data_set for data_set in found}
    there = ", ".join(f"{data_set.name} ({data_set.task.value})" for data_set in found)
    if wanted:
        missing = [name for name in wanted if name not in by_name]
        if missing or len(set(wanted)) != len(Task):
            raise DataInvalid(f"name {len(Task)} different data sets of: {there}; got {', '.join(wanted)}")
        return tuple(by_name[name] for name in wanted)
    first = {data_set.task: data_set for data_set in reversed(found)}
    lacking = [task.value for task in Task if task not in first]
    if lacking:
        raise DataInvalid(f"no data set for task {', '.join(lacking)}; there are: {there}")
    return tuple(first[task] for task in Task)


def take(data_set: DataSet, limits: Limits) -> Sample:
    """A bounded sample, without records that are too long and without training records that are also held out.

    Raises DataInvalid with file and line where a record cannot be read, or if nothing is left.
    """
    train, held_out = list(read(data_set.train_path)), list(read(data_set.held_out_path))
    for path, records in ((data_set.train_path, train), (data_set.held_out_path, held_out)):
        other = next((record for record in records if record.task is not data_set.task), None)
        if other is not None:
            raise DataInvalid(
                f"{path}: record {other.identifier} is of task {other.task.value}, not {data_set.task.value}"
            )
    labels, note = _labels(data_set, train, most=limits.labels, records_each=limits.train // limits.labels)
    judged = bounded(held_out, labels=labels, limits=limits, count=limits.held_out)
    asked = {(record.instruction, record.input_text) for record in judged}
    unseen = [record for record in train if (record.instruction, record.input_text) not in asked]
    trained = bounded(unseen, labels=labels, limits=limits, count=limits.train)
    if not trained or not judged:
        raise DataInvalid(f"{data_set.folder}: no record has at most {limits.characters} characters")
    return Sample(parts=Parts(train=tuple(trained), held_out=tuple(judged)), note=note)


def read(path: Path) -> Iterator[Record]:
    """Records of a file. Raises DataInvalid with the line and what is wrong with it."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield _parse(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise DataInvalid(f"{path}, line {number}: {_what_is_wrong(error)}") from error


def _first_record(path: Path) -> Record:
    for record in read(path):
        return record
    raise DataInvalid(f"{path} is empty")


def _what_is_wrong(error: Exception) -> str:
    return f"field {error} is missing" if isinstance(error, KeyError) else str(error)


def _parse(fields: object) -> Record:
    if not isinstance(fields, dict):
        raise TypeError("a record must be a JSON object")
    for name in ("id", "domain", "task", "instruction", "input", "output"):
        if not isinstance(fields[name], str):
            raise TypeError(f"field {name!r} must be a string")
    try:
        task = Task(fields["task"])
    except ValueError:
        raise ValueError(f"task {fields['task']!r} is none of {', '.join(task.value for task in Task)}") from None
    return Record(
        identifier=fields["id"],
        domain=fields["domain"],
        task=task,
        instruction=fields["instruction"],
        input_text=fields["input"],
        output=fields["output"],
        label=str(fields["label"]) if task is Task.CLASSIFICATION else None,
        entities=tuple(_entities(fields)) if task is Task.NER else None,
    )


def _entities(fields: Mapping[str, object]) -> Iterator[Entity]:
    entities, text = fields["entities"], str(fields["input"])
    if not isinstance(entities, list):
        raise TypeError("field 'entities' must be a list")
    for entity in entities:
        match entity:
            case [int(start), int(end), str(label)] if 0 <= start < end <= len(text):
                yield Entity(start, end, label)
            case _:
                raise ValueError(f"entity {entity} is not [start, end, label] within the input")


def _labels(data_set: DataSet, train: Iterable[Record], *, most: int, records_each: int) -> tuple[frozenset[str], str]:
    """Labels to keep, and a word about it; a few labels of one domain are learnt in a demo's time, 150 are not."""
    records = [record for record in train if record.label is not None]
    labels = {record.label for record in records if record.label is not None}
    if len(labels) <= most:
        return frozenset(labels), ""
    records_of_domain = Counter(record.domain for record in records)
    domain = min(records_of_domain, key=lambda domain: (-records_of_domain[domain], domain))
    records_of_label = Counter(record.label for record in records if record.domain == domain)
    enough = [label for label, count in records_of_label.items() if label is not None and count >= records_each]
    # By digest: the first by name, or the most frequent, are often variants of one another.
    kept = sorted(enough, key=lambda label: hashlib.sha256(label.encode()).digest())[:most]
    return frozenset(kept), f"{len(kept)} of the {len(labels)} labels of {data_set.name} (domain {domain})"


def bounded(records: Iterable[Record], *, labels: frozenset[str], limits: Limits, count: int) -> list[Record]:
    """At most `count` of the records, in the order of a digest: short enough, labels evenly, few that mark nothing."""
    fit = [
        record
        for record in shuffled(without_repeats(records))
        if len(record.instruction) + len(record.input_text) + len(record.output) <= limits.characters
    ]
    if not fit:
        return []
    match fit[0].task:
        case Task.CLASSIFICATION:
            return shuffled(_evenly([record for record in fit if record.label in labels], count))
        case Task.NER:
            marked = [record for record in fit if record.entities]
            nothing = [record for record in fit if not record.entities]
            none_count = min(len(nothing), round(count * limits.none_share))
            return shuffled([*marked[: count - none_count], *nothing[:none_count]])
        case Task.INSTRUCTION:
            return fit[:count]


def _evenly(records: Sequence[Record], count: int) -> list[Record]:
    """The first of each label, then the second of each, and so on, up to whole rows within `count`."""
    by_label: dict[str | None, list[Record]] = {}
    for record in records:
        by_label.setdefault(record.label, []).append(record)
    if not by_label:
        return []
    rows = max(1, count // len(by_label))
    return [record for group in by_label.values() for record in group[:rows]]
