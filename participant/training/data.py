"""A site's records: what the fields mean, which records can be used, and which are held out.

Conventions, by the fields a record has: chat messages (messages), Alpaca (instruction, input, output), Dolly
(instruction, context, response), prompt and completion; preference pairs have chosen and rejected in place of the
answer. Knows nothing of templates, tokens and torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from common.errors import DataInvalid
from common.instructions import Task
from participant.training.files import Fields, Row, read_rows
from participant.training.job import DataFormat, DataSettings
from participant.training.result import BadRecord, DataReport, DomainCount
from participant.training.scoring import Mention, mention_lines, parse_mentions
from participant.training.templates import Role, Turn

MAX_BAD_EXAMPLES: Final = 20

_MAX_NAME_CHARACTERS: Final = 200
_CHAT_ROLES: Final = {"system": Role.SYSTEM, "user": Role.USER, "assistant": Role.ASSISTANT}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer; input may be empty. rejected: a worse answer, of a preference pair; else empty."""

    instruction: str
    input: str
    output: str
    rejected: str = ""


@dataclass(frozen=True, slots=True)
class Chat:
    """Turns of a conversation that ends with the assistant's."""

    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """A usable record. digest: hex SHA-256 of what is asked; records with the same question are duplicates.

    mentions: for NER, what a right answer names.
    """

    line: int
    domain: str
    task: Task
    content: Exchange | Chat
    digest: str
    mentions: tuple[Mention, ...] = ()

    @property
    def is_pair(self) -> bool:
        """Whether it is a preference pair: a chosen answer and a rejected one."""
        return isinstance(self.content, Exchange) and bool(self.content.rejected)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Records that training may use and records that it never sees, each with a report on its file."""

    train: tuple[Record, ...]
    held_out: tuple[Record, ...]
    train_report: DataReport
    held_out_report: DataReport


@dataclass(frozen=True, slots=True)
class _Bad:
    line: int
    reason: str


class _Unusable(Exception):
    """Why a record cannot be used. Ends in a report, never with a caller.

    Says which field and never what it holds: reasons are logged, and may be shown outside the site.
    """


def load(settings: DataSettings) -> Dataset:
    """Read, check and split a site's records.

    Raises DataInvalid if a file cannot be read, or no record is left to train on. Held-out records may be none.
    """
    records, report = read_records(settings.train_path, settings.train_format, default_domain=settings.default_domain)
    records, report = _only(records, report, settings)
    if settings.held_out_path is None:
        held_out = tuple(record for record in records if _is_held_out(record, settings.held_out_fraction))
        train = tuple(record for record in records if not _is_held_out(record, settings.held_out_fraction))
        held_out_report = replace(
            report,
            used=len(held_out),
            held_out=0,
            left_out=report.left_out + len(train),
            domains=_domain_counts(held_out),
        )
        report = replace(report, held_out=len(held_out))
    else:
        held_out, held_out_report = read_records(
            settings.held_out_path, settings.held_out_format, default_domain=settings.default_domain
        )
        held_out, held_out_report = _only(held_out, held_out_report, settings)
        asked = {record.digest for record in held_out}
        train = tuple(record for record in records if record.digest not in asked)
        report = replace(report, duplicates=len(records) - len(train))
    kept = _limited(_with_fewer_none(train, settings.max_none_fraction), settings.train_limit)
    left_out = report.left_out + len(train) - len(kept)
    report = replace(report, used=len(kept), left_out=left_out, domains=_domain_counts(kept))
    if not kept:
        raise DataInvalid(
            f"{settings.train_path}: no record is left to train on: {len(records)} usable, {report.held_out} held out, "
            f"{report.duplicates} also among the held-out records, {report.left_out} over a limit"
        )
    if len({record.is_pair for record in (*kept, *held_out)}) > 1:
        # A run trains on one kind; with both, a site would be counted among those who measure what it does not.
        raise DataInvalid(
            f"{settings.train_path}: records with chosen and rejected answers are mixed with others, here or among "
            "those held out; keep them in files of their own, each for runs with the objective that fits"
        )
    return Dataset(kept, held_out, report, held_out_report)


def require_objective(records: Dataset, *, is_preference: bool) -> None:
    """Raises DataInvalid where a plan's objective and the site's records do not fit together."""
    for report, usable in ((records.train_report, records.train), (records.held_out_report, records.held_out)):
        odd = next((record for record in usable if record.is_pair != is_preference), None)
        if odd is None:
            continue
        if is_preference:
            raise DataInvalid(
                f"{report.path}: line {odd.line} has one answer, and this plan's objective (dpo) asks for pairs: "
                "records with chosen and rejected in place of the answer"
            )
        raise DataInvalid(
            f"{report.path}: line {odd.line} has chosen and rejected answers, and this plan's objective (sft) asks "
            "for records with one answer; pairs are for runs whose objective is dpo"
        )


def read_records(
    path: Path, data_format: DataFormat = DataFormat.AUTO, *, default_domain: str = "general"
) -> tuple[tuple[Record, ...], DataReport]:
    """Every usable record of one file, and what became of the others.

    Raises DataInvalid if the file cannot be read or not one of its records can be used; the message shows the first
    reasons with their lines.
    """
    records: list[Record] = []
    bad: list[_Bad] = []
    for row in read_rows(path, data_format):
        if isinstance(row, Row):
            try:
                records.append(_record(row, default_domain))
            except _Unusable as reason:
                bad.append(_Bad(row.line, str(reason)))
        else:
            bad.append(_Bad(row.line, row.reason))
    if not records:
        shown = "; ".join(f"line {item.line}: {item.reason}" for item in bad[:5]) or "the file has no records"
        raise DataInvalid(f"{path}: none of {len(bad)} records can be used: {shown}")
    report = DataReport(
        path=str(path),
        read=len(records) + len(bad),
        used=len(records),
        bad=len(bad),
        bad_examples=tuple(BadRecord(item.line, item.reason) for item in bad[:MAX_BAD_EXAMPLES]),
        domains=_domain_counts(records),
    )
    return tuple(records), report


def choose(records: Iterable[Record], count: int) -> tuple[Record, ...]:
    """`count` records by their digest, so that the choice is the same in every round; in that order."""
    return tuple(sorted(records, key=lambda record: (record.digest, record.line))[:count])


def _record(row: Row, default_domain: str) -> Record:
    fields = row.fields
    content: Exchange | Chat
    mentions: tuple[Mention, ...] = ()
    if "messages" in fields:
        if _task(fields) not in (None, Task.INSTRUCTION):
            raise _Unusable('a record with "messages" can only have the task instruction')
        task = Task.INSTRUCTION
        content = _chat(fields["messages"])
        asked = [[turn.role.value, turn.content] for turn in content.turns[:-1]]
    else:
        task = _task(fields) or _implied_task(fields)
        content, mentions = _exchange(fields, task)
        asked = [["", content.instruction], ["", content.input]]
    return Record(
        line=row.line,
        domain=_name(fields, "domain") or default_domain,
        task=task,
        content=content,
        digest=_digest(asked),
        mentions=mentions,
    )


def _task(fields: Fields) -> Task | None:
    name = _name(fields, "task")
    try:
        return Task(name) if name else None
    except ValueError:
        known = ", ".join(task.value for task in Task)
        raise _Unusable(f'"task" is none of {known}') from None


def _implied_task(fields: Fields) -> Task:
    if fields.get("entities") is not None:
        return Task.NER
    return Task.CLASSIFICATION if fields.get("label") is not None else Task.INSTRUCTION


def _exchange(fields: Fields, task: Task) -> tuple[Exchange, tuple[Mention, ...]]:
    if fields.get("chosen") is not None or fields.get("rejected") is not None:
        return _pair(fields, task), ()
    instruction, input_text, output = _question_and_answer(fields)
    mentions: tuple[Mention, ...] = ()
    if task is Task.NER:
        if fields.get("entities") is not None:
            mentions = _entities(fields["entities"], input_text)
            output = output if output.strip() else mention_lines(mentions)
        elif output.strip():
            mentions = tuple(parse_mentions(output)[0].elements())
    elif task is Task.CLASSIFICATION and not output.strip():
        output = _text(fields, "label")
    if not instruction.strip():
        raise _Unusable("has no instruction: the field is missing or empty")
    if not output.strip():
        raise _Unusable("has no answer: the field is missing or empty")
    return Exchange(instruction.strip(), input_text.strip(), output.strip()), mentions


def _pair(fields: Fields, task: Task) -> Exchange:
    """A preference pair: "chosen" and "rejected" in place of the answer."""
    if task is not Task.INSTRUCTION:
        raise _Unusable('a record with "chosen" and "rejected" can only have the task instruction')
    instruction, input_text, output = _question_and_answer(fields)
    chosen, rejected = _text(fields, "chosen").strip(), _text(fields, "rejected").strip()
    if output.strip():
        raise _Unusable('has an answer beside "chosen" and "rejected"; a pair has these two alone')
    if not instruction.strip():
        raise _Unusable("has no instruction: the field is missing or empty")
    if not chosen or not rejected:
        raise _Unusable('a pair needs both "chosen" and "rejected", and one is missing or empty')
    if chosen == rejected:
        raise _Unusable('"chosen" and "rejected" are the same')
    return Exchange(instruction.strip(), input_text.strip(), chosen, rejected)


def _question_and_answer(fields: Fields) -> tuple[str, str, str]:
    if "instruction" in fields:
        inputs = [name for name in ("input", "context") if fields.get(name)]
        outputs = [name for name in ("output", "response") if fields.get(name)]
        if len(inputs) > 1 or len(outputs) > 1:
            raise _Unusable("mixes Alpaca's fields (input, output) with Dolly's (context, response)")
        return (
            _text(fields, "instruction"),
            _text(fields, inputs[0]) if inputs else "",
            _text(fields, outputs[0]) if outputs else "",
        )
    if "prompt" in fields:
        return _text(fields, "prompt"), "", _text(fields, "completion")
    raise _Unusable(
        "has none of the known fields: instruction and output, instruction and response, prompt and completion, "
        "or messages"
    )


def _chat(value: object) -> Chat:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise _Unusable('"messages" must be a list of {role, content}')
    turns: list[Turn] = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, Mapping):
            raise _Unusable(f"message {number} must be an object with role and content")
        role = _CHAT_ROLES.get(str(message.get("role")))
        content = message.get("content")
        if role is None:
            raise _Unusable(f"message {number} has a role that is none of {', '.join(_CHAT_ROLES)}")
        if not isinstance(content, str) or not content.strip():
            raise _Unusable(f"message {number} has no text")
        if role is Role.SYSTEM and number > 1:
            raise _Unusable(f"message {number} is a system message; only the first may be")
        if role is not Role.SYSTEM and turns and turns[-1].role is role:
            raise _Unusable(f"messages {number - 1} and {number} are both the {role.value}'s")
        if role is Role.ASSISTANT and not any(turn.role is Role.USER for turn in turns):
            raise _Unusable("the assistant speaks before the user")
        turns.append(Turn(role, content.strip()))
    if turns[-1].role is not Role.ASSISTANT:
        raise _Unusable("the last message is not the assistant's, so there is no answer to learn")
    return Chat(tuple(turns))


def _entities(value: object, text: str) -> tuple[Mention, ...]:
    """[[start, end, label], ...], character offsets in the input."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _Unusable('"entities" must be a list of [start, end, label]')
    mentions: list[Mention] = []
    for number, entity in enumerate(value, start=1):
        if not isinstance(entity, Sequence) or isinstance(entity, str) or len(entity) != 3:
            raise _Unusable(f"entity {number} must be [start, end, label]")
        start, end, label = entity
        if isinstance(start, str) and isinstance(end, str) and start.isdigit() and end.isdigit():
            start, end = int(start), int(end)  # Parquet lists have one type, so offsets come as text beside a label
        if type(start) is not int or type(end) is not int or not isinstance(label, str) or not label.strip():
            raise _Unusable(f"entity {number} must be [start, end, label] with whole numbers and a text")
        if not 0 <= start < end <= len(text):
            raise _Unusable(f"entity {number} spans {start} to {end}, the input has {len(text)} characters")
        mentions.append(Mention(label, text[start:end]))
    return tuple(mentions)


def _text(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Unusable(f'"{name}" must be text, found {type(value).__name__}')
    return value


def _name(fields: Fields, name: str) -> str:
    value = _text(fields, name).strip()
    if len(value) > _MAX_NAME_CHARACTERS:
        raise _Unusable(f'"{name}" is over {_MAX_NAME_CHARACTERS} characters')
    return value


def _digest(asked: Sequence[Sequence[str]]) -> str:
    """Case and white space do not make another question."""
    folded = [[role, " ".join(text.split()).casefold()] for role, text in asked]
    return hashlib.sha256(json.dumps(folded).encode()).hexdigest()


def _is_held_out(record: Record, fraction: float) -> bool:
    return int(record.digest[:16], 16) < fraction * 2**64


def _with_fewer_none(records: tuple[Record, ...], fraction: float) -> tuple[Record, ...]:
    """Thin out NER records without a mention to at most `fraction` of the NER records that are left."""
    without = [record for record in records if record.task is Task.NER and not record.mentions]
    having = sum(1 for record in records if record.task is Task.NER and record.mentions)
    if fraction >= 1.0 or not without:
        return records
    kept = {id(record) for record in choose(without, math.floor(having * fraction / (1.0 - fraction)))}
    return tuple(record for record in records if record.task is not Task.NER or record.mentions or id(record) in kept)


def _only(
    records: tuple[Record, ...], report: DataReport, settings: DataSettings
) -> tuple[tuple[Record, ...], DataReport]:
    """The records of the one domain that is wanted, if there is one; the others count as left out."""
    if not settings.only_domain:
        return records, report
    own = tuple(record for record in records if record.domain == settings.only_domain)
    if not own:
        known = ", ".join(count.domain for count in report.domains)
        raise DataInvalid(f"{report.path}: no record of domain {settings.only_domain}; there are {known}")
    changed = replace(report, used=len(own), left_out=len(records) - len(own), domains=_domain_counts(own))
    return own, changed


def _limited(records: tuple[Record, ...], limit: int) -> tuple[Record, ...]:
    return choose(records, limit) if limit and len(records) > limit else records


def _domain_counts(records: Iterable[Record]) -> tuple[DomainCount, ...]:
    counts = Counter(record.domain for record in records)
    return tuple(DomainCount(domain, counts[domain]) for domain in sorted(counts))
