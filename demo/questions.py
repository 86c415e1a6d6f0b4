"""What the process that tries the final adapter is asked, and what it answers. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from demo.figures import Example


@dataclass(frozen=True, slots=True)
class Question:
    """One held-out record. task: a word of `common.instructions.Task`."""

    domain: str
    task: str
    instruction: str
    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Questions:
    """What to load and what to ask. base_model, adapter: folders."""

    base_model: str
    adapter: str
    instruction_set: str
    max_length: int
    max_new_tokens: int
    threads: int
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class Answers:
    """In the order of the questions."""

    examples: tuple[Example, ...]
