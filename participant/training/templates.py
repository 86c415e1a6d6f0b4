"""The instruction set: how a record of a task and domain becomes a prompt, an answer and a loss mask.

Templates travel in the run's plan, so nothing in here executes them: a placeholder is replaced by the record's text,
once, and that is all. Knows nothing of tokens' ids, of torch and of where records come from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from common import jsonform
from common.errors import PlanInvalid

_PLACEHOLDER: Final = re.compile(r"\{(instruction|input|output|domain)\}")
_MAX_TEMPLATE_CHARACTERS: Final = 20_000


class Task(StrEnum):
    """What kind of answer a record has, and so which metric judges it."""

    INSTRUCTION = "instruction"
    CLASSIFICATION = "classification"
    NER = "ner"


class PromptForm(StrEnum):
    """PLAIN: the rendered prompt is the model's input as it stands. CHAT: it is the user's turn of a chat."""

    PLAIN = "plain"
    CHAT = "chat"


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a chat."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class TurnMarks:
    """What a model puts around the turns of a chat; taken from its chat template, without a default system message.

    A chat is `start`, `user_open`, the user's text, `assistant_open` (generation starts here), the answer,
    `assistant_close`, `user_open`, and so on. With a system message, `system_open`, its text and `system_close` stand
    in place of the first `user_open`.
    """

    start: str
    system_open: str
    system_close: str
    user_open: str
    assistant_open: str
    assistant_close: str


# Alpaca's headings (Taori et al. 2023) as turn marks, for base models without a chat template.
PLAIN_MARKS: Final = TurnMarks(
    start="",
    system_open="",
    system_close="\n\n### Instruction:\n",
    user_open="### Instruction:\n",
    assistant_open="\n\n### Response:\n",
    assistant_close="\n\n",
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of rendered text. from_record: typed by somebody, so control tokens in it are plain text.

    is_answer: the loss counts here, and on the end mark if `ends_turn`.
    """

    text: str
    from_record: bool
    is_answer: bool = False
    ends_turn: bool = False


@dataclass(frozen=True, slots=True)
class Template:
    """How records of one task are rendered.

    domain: "" for every domain without a template of its own. prompt: for records with an input; prompt_without_input:
    for those without. Placeholders: {instruction}, {input}, {domain}; in answer {output}.
    system: "" for none. labels: the answers a classification chooses among; empty: those in the site's own records.
    """

    task: Task
    prompt: str
    prompt_without_input: str
    domain: str = ""
    answer: str = "{output}"
    system: str = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DomainWeight:
    """How often records of a domain are drawn, relative to 1 for a domain that has no weight."""

    domain: str
    weight: float


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """The templates and domain weights that a round uses. Raises PlanInvalid where they contradict themselves."""

    form: PromptForm
    templates: tuple[Template, ...]
    domain_weights: tuple[DomainWeight, ...] = ()

    def __post_init__(self) -> None:
        keys = [(template.task, template.domain) for template in self.templates]
        if len(set(keys)) != len(keys):
            raise PlanInvalid("the instruction set has two templates for the same task and domain")
        missing = [task.value for task in Task if (task, "") not in keys]
        if missing:
            raise PlanInvalid(f"the instruction set has no template for every domain of task {', '.join(missing)}")
        for template in self.templates:
            _check_template(template)
        if any(not 0.0 < weight.weight <= 1e6 for weight in self.domain_weights):
            raise PlanInvalid("a domain weight must be over 0 and at most 1e6")

    def to_json(self) -> str:
        """Canonical JSON, as it travels in the run's plan."""
        return jsonform.encode(self, InstructionSet)

    @classmethod
    def from_json(cls, text: str | bytes) -> InstructionSet:
        """Raises InvalidArgument that lists every mistake, or PlanInvalid."""
        return jsonform.decode(text, cls, what="instruction set")

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the canonical JSON."""
        return jsonform.digest(self.to_json())

    def template_for(self, task: Task, domain: str) -> Template:
        by_key = {(template.task, template.domain): template for template in self.templates}
        return by_key.get((task, domain)) or by_key[task, ""]

    def weight_of(self, domain: str) -> float:
        return next((weight.weight for weight in self.domain_weights if weight.domain == domain), 1.0)


def _check_template(template: Template) -> None:
    where = f"template for task {template.task.value}, domain {template.domain or 'any'}"
    if "{output}" not in template.answer:
        raise PlanInvalid(f"{where}: the answer lacks {{output}}")
    if template.answer.count("{output}") != 1 or _PLACEHOLDER.sub("", template.answer) != template.answer.replace(
        "{output}", ""
    ):
        raise PlanInvalid(f"{where}: the answer may hold {{output}} once, and no other placeholder")
    for prompt in (template.prompt, template.prompt_without_input):
        if "{output}" in prompt:
            raise PlanInvalid(f"{where}: the prompt gives the answer away")
        if "{instruction}" not in prompt:
            raise PlanInvalid(f"{where}: the prompt lacks {{instruction}}")
    if "{input}" not in template.prompt:
        raise PlanInvalid(f"{where}: the prompt for records with an input lacks {{input}}")
    if len(template.prompt) + len(template.prompt_without_input) + len(template.system) > _MAX_TEMPLATE_CHARACTERS:
        raise PlanInvalid(f"{where}: over {_MAX_TEMPLATE_CHARACTERS} characters")


def alpaca_instruction_set() -> InstructionSet:
    """Headings as in Alpaca (Taori et al. 2023) without its opening sentence: for base models without a chat form."""
    return InstructionSet(
        form=PromptForm.PLAIN,
        templates=tuple(
            Template(
                task=task,
                prompt="### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
                prompt_without_input="### Instruction:\n{instruction}\n\n### Response:\n",
            )
            for task in Task
        ),
    )


def chat_instruction_set() -> InstructionSet:
    """The record's instruction and input as the user's turn, no system message: for instruction-tuned models."""
    return InstructionSet(
        form=PromptForm.CHAT,
        templates=tuple(
            Template(task=task, prompt="{instruction}\n{input}", prompt_without_input="{instruction}") for task in Task
        ),
    )


def render_exchange(
    template: Template,
    *,
    form: PromptForm,
    marks: TurnMarks,
    instruction: str,
    input_text: str,
    output: str,
    domain: str,
) -> tuple[Piece, ...]:
    """Pieces of one question and its answer; the answer is the only piece with a loss."""
    prompt = template.prompt if input_text else template.prompt_without_input
    values = {"instruction": instruction, "input": input_text, "domain": domain}
    question = _fill(prompt, values)
    answer = _fill(template.answer, {"output": output})
    if form is PromptForm.PLAIN:
        opening = marks.start + (f"{template.system}\n\n" if template.system else "")
        return (Piece(opening, from_record=False), *question, *_as_answer(answer))
    return (
        Piece(_opening(template.system, marks), from_record=False),
        *question,
        Piece(marks.assistant_open, from_record=False),
        *_as_answer(answer),
    )


def render_chat(turns: Sequence[Turn], *, marks: TurnMarks) -> tuple[Piece, ...]:
    """Pieces of a chat; every assistant turn is an answer."""
    system = turns[0].content if turns[0].role is Role.SYSTEM else ""
    pieces: list[Piece] = []
    for turn in turns[1:] if system else turns:
        if turn.role is Role.ASSISTANT:
            pieces.append(Piece(marks.assistant_open, from_record=False))
            pieces.append(Piece(turn.content, from_record=True, is_answer=True, ends_turn=True))
        elif pieces:
            pieces.append(Piece(marks.user_open, from_record=False))
            pieces.append(Piece(turn.content, from_record=True))
        else:
            pieces.extend(_first_turn(system, turn.content, marks))
    return tuple(pieces)


def _first_turn(system: str, content: str, marks: TurnMarks) -> tuple[Piece, ...]:
    if not system:
        return Piece(_opening("", marks), from_record=False), Piece(content, from_record=True)
    return (
        Piece(marks.start + marks.system_open, from_record=False),
        Piece(system, from_record=True),
        Piece(marks.system_close, from_record=False),
        Piece(content, from_record=True),
    )


def _opening(system: str, marks: TurnMarks) -> str:
    return marks.start + (marks.system_open + system + marks.system_close if system else marks.user_open)


def _as_answer(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    last = len(pieces) - 1
    return tuple(
        Piece(piece.text, from_record=piece.from_record, is_answer=True, ends_turn=index == last)
        for index, piece in enumerate(pieces)
    )


def _fill(text: str, values: Mapping[str, str]) -> list[Piece]:
    """Replace placeholders in one pass: braces in a record's text are never read as placeholders."""
    pieces: list[Piece] = []
    position = 0
    for match in _PLACEHOLDER.finditer(text):
        if match.start() > position:
            pieces.append(Piece(text[position : match.start()], from_record=False))
        pieces.append(Piece(values.get(match[1], ""), from_record=True))
        position = match.end()
    if position < len(text):
        pieces.append(Piece(text[position:], from_record=False))
    return [piece for piece in pieces if piece.text]
