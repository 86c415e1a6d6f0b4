"""The instruction set of a round: the templates that turn records into prompts, by task and domain, and domain weights.

Operators write templates, plans and rounds carry them, participants fill them in; no text of a participant's record
ever enters one. Nothing in here executes a template: a placeholder stands for a field of the record, and that is all.
Where a task and domain have several candidate templates, one is served (the held-out records are asked by it), and
training draws among all. How candidates and weights change from round to round lies in `common.instruction_updates`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from common import jsonform
from common.errors import PlanInvalid

PLACEHOLDER: Final = re.compile(r"\{(instruction|input|output|domain)\}")
# Names of domains and templates become parts of the names of metric words, joined by "/".
SLUG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,47}")
MOST_CANDIDATES: Final = 8
# A site of four times the mean weight, and any larger one, has weight 1: so the mean weight is a quarter, whatever the
# domains' sizes, and the fixed point of the masked sum keeps its bits.
FULL_WEIGHT: Final = 4.0
# And none has less than a quarter of the mean: shares, sizes and the cap of records are what a coordinator says, and
# could make all others' weights next to nothing beside one site's. Then the sum would be that one site's update.
LEAST_WEIGHT: Final = 1.0 / FULL_WEIGHT**2
# A record is drawn at most so many times as often as the mean one, and no less than one part of it: or a coordinator's
# shares could have sites train on a handful of records alone.
MOST_DRAWN: Final = 16.0
_ROUNDING: Final = 1e-6
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
    name: tells the candidates of one task and domain apart; "" where there is one alone. probability: with which
    training draws this candidate; 0 for all means equal ones. is_served: the candidate that held-out records are asked
    by, and users; where none says so it is the first.
    """

    task: Task
    prompt: str
    prompt_without_input: str
    domain: str = ""
    answer: str = "{output}"
    system: str = ""
    labels: tuple[str, ...] = ()
    name: str = ""
    probability: float = 0.0
    is_served: bool = False

    @property
    def cell(self) -> tuple[Task, str]:
        """Task and domain: what candidates share."""
        return self.task, self.domain


@dataclass(frozen=True, slots=True)
class DomainWeight:
    """How often records of a domain are drawn, relative to 1 for a domain that has no weight."""

    domain: str
    weight: float


@dataclass(frozen=True, slots=True)
class DomainShare:
    """alpha_g of a domain whose size is known: its part in what is trained, and N_g, its records at all sites."""

    domain: str
    share: float
    records: float


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """The templates and domain weights that a round uses. Raises PlanInvalid where they contradict themselves.

    domain_weights: as the operator has set them; for domains without a share. shares: of the domains that the masked
    sums have measured, together 1. sites: how many were in those sums. version: counts the updates.
    """

    form: PromptForm
    templates: tuple[Template, ...]
    domain_weights: tuple[DomainWeight, ...] = ()
    shares: tuple[DomainShare, ...] = ()
    sites: int = 0
    version: int = 1

    def __post_init__(self) -> None:
        cells = dict.fromkeys(template.cell for template in self.templates)
        for task, domain in cells:
            _check_candidates([template for template in self.templates if template.cell == (task, domain)])
        missing = [task.value for task in Task if (task, "") not in cells]
        if missing:
            raise PlanInvalid(f"the instruction set has no template for every domain of task {', '.join(missing)}")
        for template in self.templates:
            _check_template(template)
        if any(not 0.0 < weight.weight <= 1e6 for weight in self.domain_weights):
            raise PlanInvalid("a domain weight must be over 0 and at most 1e6")
        _check_shares(self.shares, self.sites)
        if self.version < 1:
            raise PlanInvalid("the version of an instruction set counts from 1")

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

    def candidates(self, task: Task, domain: str) -> tuple[Template, ...]:
        """Those for records of a task and domain, in the set's order; those of the task where the domain has none."""
        own = tuple(template for template in self.templates if template.cell == (task, domain))
        return own or tuple(template for template in self.templates if template.cell == (task, ""))

    def template_for(self, task: Task, domain: str) -> Template:
        """The candidate that is served."""
        found = self.candidates(task, domain)
        return next((template for template in found if template.is_served), found[0])

    def drawn_template(self, task: Task, domain: str, *, draw: float) -> Template:
        """The candidate that a record is trained by; draw: uniform in [0, 1)."""
        found = self.candidates(task, domain)
        reached = 0.0
        for template in found:
            reached += template.probability or 1.0 / len(found)
            if draw < reached:
                return template
        return found[-1]

    def weight_of(self, domain: str) -> float:
        """How often one record of a domain is drawn, relative to the mean over the domains that have a share.

        alpha_g / N_g for those, times all of their records; so records of other domains are drawn as the mean one is.
        From 1 / MOST_DRAWN to MOST_DRAWN, whatever the shares and weights say.
        """
        own = next((share for share in self.shares if share.domain == domain), None)
        if own is not None:
            drawn = own.share * sum(share.records for share in self.shares) / own.records
        else:
            drawn = next((weight.weight for weight in self.domain_weights if weight.domain == domain), 1.0)
        return min(MOST_DRAWN, max(1.0 / MOST_DRAWN, drawn))

    @property
    def heaviest(self) -> float:
        """The most that `weight_of` says of any domain, named or not: nothing of a site's records is in it."""
        named = (*(share.domain for share in self.shares), *(weight.domain for weight in self.domain_weights))
        return max(1.0, *(self.weight_of(domain) for domain in named)) if named else 1.0

    def site_weight(self, records: Mapping[str, int]) -> float | None:
        """a_i of a site with so many training records by domain, LEAST_WEIGHT to 1; None while no domain has a share.

        sum_g alpha_g n_ig / N_g, of which all sites together have 1, times the sites over `FULL_WEIGHT`, at most 1.
        Whatever the shares say, no site weighs over FULL_WEIGHT**2 times as much as another.
        Records of a domain without a share do not count: then the summed weight would tell how many there are, and it
        may be one site that has them. A site with no others has the mean weight.
        """
        if not self.shares:
            return None
        own = [share for share in self.shares if records.get(share.domain, 0) > 0]
        if not own:
            return 1.0 / FULL_WEIGHT
        mass = sum(share.share * records[share.domain] / share.records for share in own)
        return min(1.0, max(LEAST_WEIGHT, mass * self.sites / FULL_WEIGHT))

    def for_domains(self, cells: tuple[tuple[Task, str], ...]) -> InstructionSet:
        """The set with candidates of their own for these tasks and domains, where a task has several for every domain.

        A domain's candidates are judged by its own losses, so it needs a copy of them.
        """
        added: list[Template] = []
        for task, domain in cells:
            found = self.candidates(task, domain)
            if domain and len(found) > 1 and not found[0].domain:
                added.extend(replace(template, domain=domain) for template in found)
        return replace(self, templates=(*self.templates, *added))


def _check_candidates(found: list[Template]) -> None:
    where = f"task {found[0].task.value}, domain {found[0].domain or 'any'}"
    names = [template.name for template in found]
    if len(set(names)) < len(names):
        raise PlanInvalid(f"the instruction set has two templates of one name for the same {where}")
    if len(found) > MOST_CANDIDATES:
        raise PlanInvalid(f"{where}: at most {MOST_CANDIDATES} candidate templates")
    if any(not SLUG.fullmatch(name) for name in names) and (len(found) > 1 or names[0]):
        raise PlanInvalid(f"{where}: candidate templates need names of letters, digits, '_', '.' and '-'")
    given = [template.probability for template in found]
    if any(given) and not (all(0.0 < one <= 1.0 for one in given) and abs(sum(given) - 1.0) <= _ROUNDING):
        raise PlanInvalid(f"{where}: the candidates' probabilities must be over 0 and add up to 1, or all be 0")
    if sum(template.is_served for template in found) > 1:
        raise PlanInvalid(f"{where}: two candidates are served")


def _check_shares(shares: tuple[DomainShare, ...], sites: int) -> None:
    if len({share.domain for share in shares}) < len(shares):
        raise PlanInvalid("the instruction set has two shares for one domain")
    if shares and (sites < 1 or not abs(sum(share.share for share in shares) - 1.0) <= _ROUNDING):
        raise PlanInvalid("the domains' shares must add up to 1, and say of how many sites they are")
    if any(not (0.0 < share.share <= 1.0 and 0.0 < share.records <= 1e12) for share in shares):
        raise PlanInvalid("a domain's share must be over 0 and at most 1, its records over 0")


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
