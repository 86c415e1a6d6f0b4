"""How a record of a task and domain becomes a prompt, an answer and a loss mask, by the instruction set's templates.

Knows nothing of tokens' ids, of torch and of where records come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from common.instructions import PLACEHOLDER, PromptForm, Template


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
    for match in PLACEHOLDER.finditer(text):
        if match.start() > position:
            pieces.append(Piece(text[position : match.start()], from_record=False))
        pieces.append(Piece(values.get(match[1], ""), from_record=True))
        position = match.end()
    if position < len(text):
        pieces.append(Piece(text[position:], from_record=False))
    return [piece for piece in pieces if piece.text]
