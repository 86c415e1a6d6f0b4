"""Records become token ids with the answer marked; the model's own chat template gives the turn marks.

Knows tokenizers, and no model. Control tokens that somebody typed into a record stay plain text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.errors import BaseModelUnavailable, PlanInvalid
from common.instructions import InstructionSet, PromptForm, Template
from participant.training.data import Exchange, Record
from participant.training.templates import PLAIN_MARKS, Piece, TurnMarks, render_chat, render_exchange

_SYSTEM, _USER, _ANSWER, _USER_2, _ANSWER_2 = (f"Qx{number}xQ" for number in range(5))
_LEAST_ANSWER_TOKENS: Final = 1


@dataclass(frozen=True, slots=True)
class Encoded:
    """A record as tokens. is_answer: bool per token, true where the loss counts (answers and their end marks).

    prompt_tokens: before the first answer token. is_cut: the end did not fit into max_length.
    rejected: of a preference pair the same question with the worse answer; else None.
    """

    record: Record
    ids: tuple[int, ...]
    is_answer: tuple[bool, ...]
    prompt_tokens: int
    is_cut: bool
    rejected: Encoded | None = None

    @property
    def answer_tokens(self) -> int:
        return sum(self.is_answer)

    @property
    def tokens(self) -> int:
        """Of a pair, those of both its rows."""
        return len(self.ids) + (len(self.rejected.ids) if self.rejected is not None else 0)


@dataclass(frozen=True, slots=True)
class TooLong:
    """A record whose prompt leaves no room for an answer."""

    record: Record
    prompt_tokens: int
    max_length: int

    @property
    def reason(self) -> str:
        return f"its prompt has {self.prompt_tokens} tokens; of {self.max_length} allowed none is left for the answer"


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a local base model folder. Raises BaseModelUnavailable."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelUnavailable(f"{folder}: cannot load its tokenizer: {error}") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)  # noqa: S101  (for mypy: the library says Any)
    return tokenizer


class Encoder:
    """Renders and tokenises records by one instruction set, for one base model.

    draw_seed: draws each record's template among its candidates, by this seed and the record's digest; None: records
    have the served ones.
    Raises PlanInvalid if the instruction set asks for chat form and the model has no usable chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        instruction_set: InstructionSet,
        *,
        max_length: int,
        draw_seed: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._set = instruction_set
        self._draw_seed = draw_seed
        self._max_length = max_length
        self._control = tuple(
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special and token.content
        )
        self._marks = turn_marks(tokenizer) if instruction_set.form is PromptForm.CHAT else _plain_marks(tokenizer)
        close = self._encode_text(self._marks.assistant_close)
        is_control = bool(close) and close[0] in tokenizer.added_tokens_decoder
        if not is_control and tokenizer.eos_token_id is None:
            raise BaseModelUnavailable("the base model's tokenizer has no end token, so answers would never end")
        self.end_id: int = close[0] if is_control else int(tokenizer.eos_token_id)
        self._after_end = tuple(close[1:]) if is_control else tuple(close)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._tokenizer

    @property
    def stop_ids(self) -> frozenset[int]:
        """Generation ends at any of these."""
        eos = self._tokenizer.eos_token_id
        return frozenset({self.end_id} if eos is None else {self.end_id, int(eos)})

    def encode(self, record: Record) -> Encoded | TooLong:
        """Tokens of one record, cut at max_length; of a preference pair, both of its answers."""
        encoded = self._encode(record)
        if not record.is_pair or isinstance(encoded, TooLong):
            return encoded
        assert isinstance(record.content, Exchange)  # noqa: S101  (for mypy: a pair is an exchange)
        worse = self._encode(replace(record, content=replace(record.content, output=record.content.rejected)))
        return worse if isinstance(worse, TooLong) else replace(encoded, rejected=worse)

    def _encode(self, record: Record) -> Encoded | TooLong:
        ids: list[int] = []
        is_answer: list[bool] = []
        pieces = self._pieces(record)
        position = 0
        while position < len(pieces):
            kind = pieces[position].is_answer
            end = position
            while end < len(pieces) and pieces[end].is_answer == kind:
                end += 1
                if pieces[end - 1].ends_turn:
                    break
            found = self._encode_pieces(pieces[position:end])
            if kind:
                found = [*found, self.end_id]
            elif ids:
                found = [*self._after_end, *found]
            ids.extend(found)
            is_answer.extend([kind] * len(found))
            position = end
        prompt_tokens = is_answer.index(True)
        if prompt_tokens + _LEAST_ANSWER_TOKENS > self._max_length:
            return TooLong(record, prompt_tokens, self._max_length)
        is_cut = len(ids) > self._max_length
        return Encoded(
            record, tuple(ids[: self._max_length]), tuple(is_answer[: self._max_length]), prompt_tokens, is_cut
        )

    def encode_answer(self, record: Record, output: str) -> tuple[int, ...]:
        """Tokens of another answer to a record's question, with the end mark; as `encode` would have them."""
        template = self._template(record)
        rendered = template.answer.replace("{output}", output)
        return (*self._encode_pieces([Piece(rendered, from_record=True, is_answer=True)]), self.end_id)

    def labels(self, record: Record) -> tuple[str, ...]:
        """The plan's answers for this record's classification; empty where it leaves them to the site."""
        return self._template(record).labels

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated tokens, without control tokens."""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        assert isinstance(text, str)  # noqa: S101  (for mypy: one list gives one text)
        return text.strip()

    def _template(self, record: Record) -> Template:
        if self._draw_seed is None:
            return self._set.template_for(record.task, record.domain)
        drawn = hashlib.sha256(f"{self._draw_seed}/{record.digest}".encode()).digest()
        draw = int.from_bytes(drawn[:6], "big") / 2**48
        return self._set.drawn_template(record.task, record.domain, draw=draw)

    def _pieces(self, record: Record) -> tuple[Piece, ...]:
        content = record.content
        if not isinstance(content, Exchange):
            return render_chat(content.turns, marks=self._marks)
        return render_exchange(
            self._template(record),
            form=self._set.form,
            marks=self._marks,
            instruction=content.instruction,
            input_text=content.input,
            output=content.output,
            domain=record.domain,
        )

    def _encode_pieces(self, pieces: Sequence[Piece]) -> list[int]:
        """As one text, as whoever serves the model will tokenise it; piece by piece where a record forges a mark."""
        if not any(piece.from_record and self._holds_control(piece.text) for piece in pieces):
            return self._encode_text("".join(piece.text for piece in pieces))
        return [token for piece in pieces for token in self._encode_text(piece.text, as_plain_text=piece.from_record)]

    def _holds_control(self, text: str) -> bool:
        return any(token in text for token in self._control)

    def _encode_text(self, text: str, *, as_plain_text: bool = False) -> list[int]:
        if not text:
            return []
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=as_plain_text)["input_ids"]
        return [int(token) for token in ids]


def encode_all(encoder: Encoder, records: Iterable[Record]) -> tuple[tuple[Encoded, ...], tuple[TooLong, ...]]:
    """Encode records; those without room for an answer come back apart."""
    encoded: list[Encoded] = []
    too_long: list[TooLong] = []
    for record in records:
        result = encoder.encode(record)
        if isinstance(result, Encoded):
            encoded.append(result)
        else:
            too_long.append(result)
    return tuple(encoded), tuple(too_long)


def turn_marks(tokenizer: PreTrainedTokenizerBase) -> TurnMarks:
    """Read a chat template's marks off a rendered chat of known texts.

    So a default system message (a date, a name) that the template would add by itself stays out. A model without a
    system role gets the system text at the start of the first user turn. Raises PlanInvalid.
    """
    if not tokenizer.chat_template:
        raise PlanInvalid("the base model has no chat template; create the run with an instruction set of plain form")
    turns = [("user", _USER), ("assistant", _ANSWER), ("user", _USER_2), ("assistant", _ANSWER_2)]
    rendered = _render(tokenizer, [("system", _SYSTEM), *turns])
    has_system = rendered is not None and _SYSTEM in rendered
    if not has_system:
        rendered = _render(tokenizer, turns)
    parts = None if rendered is None else _split(rendered, [_SYSTEM] * has_system + [text for _, text in turns])
    if parts is None:
        raise PlanInvalid("the base model's chat template cannot be read turn by turn; use plain form")
    head, *between, tail = parts
    system_close = between.pop(0) if has_system else "\n\n"
    assistant_open, next_user, _ = between
    if not next_user.startswith(tail) or not tail:
        raise PlanInvalid("the base model's chat template ends turns in different ways; use plain form")
    user_open = next_user.removeprefix(tail)
    bos = str(tokenizer.bos_token or "")
    # Some models open every turn with their bos token: then it is no mark of the start.
    start = bos if bos and head.startswith(bos) and not user_open.startswith(bos) else ""
    return TurnMarks(
        start=start,
        system_open=head.removeprefix(start) if has_system else user_open,
        system_close=system_close,
        user_open=user_open,
        assistant_open=assistant_open,
        assistant_close=tail,
    )


def _render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]]) -> str | None:
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except (TemplateError, TypeError, ValueError, KeyError):
        return None


def _split(text: str, marks: Sequence[str]) -> list[str] | None:
    parts: list[str] = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            return None
        parts.append(before)
    return [*parts, text]


def _plain_marks(tokenizer: PreTrainedTokenizerBase) -> TurnMarks:
    """Alpaca's headings, after the bos token where the tokenizer would put one by itself."""
    ids = tokenizer("a")["input_ids"]
    starts_with_bos = tokenizer.bos_token_id is not None and list(ids)[:1] == [tokenizer.bos_token_id]
    plain = PLAIN_MARKS
    return TurnMarks(
        start=str(tokenizer.bos_token) if starts_with_bos else "",
        system_open=plain.system_open,
        system_close=plain.system_close,
        user_open=plain.user_open,
        assistant_open=plain.assistant_open,
        assistant_close=plain.assistant_close,
    )
