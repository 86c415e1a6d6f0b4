"""The instruction set of a round: the templates that turn records into prompts, by task and domain, and domain weights.

Operators write templates, plans and rounds carry them, participants fill them in; no text of a participant's record
ever enters one. Nothing in here executes a template: a placeholder stands for a field of the record, and that is all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from common import jsonform
from common.errors import PlanInvalid

PLACEHOLDER: Final = re.compile(r"\{(instruction|input|output|domain)\}")
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
    if template.answer.count("{output}") != 1 or PLACEHOLDER.sub("", template.answer) != template.answer.replace(
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


def chat_instruction_set() -> InstructionSet:
    """The record's instruction and input as the user's turn, no system message: for instruction-tuned models."""
    return InstructionSet(
        form=PromptForm.CHAT,
        templates=tuple(
            Template(task=task, prompt="{instruction}\n{input}", prompt_without_input="{instruction}") for task in Task
        ),
    )
