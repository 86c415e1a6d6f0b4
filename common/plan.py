"""The plan of a run: everything that is fixed for its whole life, digested, and pinned by who joins.

A plan is written once by the coordinator and read by every participant, which checks each field against the charter
and against its own policy. Knows nothing of how training or masking is done.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Final

from common import jsonform
from common.adapters import AdapterLayout, AdapterSpec
from common.basemodel import BaseModel
from common.domains import PlanDomain, check_domains, metric_groups
from common.errors import AccordError, PlanInvalid
from common.instruction_updates import Reference, Updates
from common.instructions import InstructionSet, Task
from common.methods import AdapterMethod, adapter_method
from common.methods import Method as Method
from common.privacy import Privacy
from common.secagg import MetricGroup
from common.strategies import server_optimizer

CONSTANT_RATE: Final = "constant"
COSINE_RATE: Final = "cosine"

SFT: Final = "sft"
DPO: Final = "dpo"

PLAN_FORM: Final = 1
SUITE: Final = 2

# Words at the end of every masked vector, each a signed fixed-point sum over the survivors. To these every member
# contributes, because every member trains.
METRIC_WORDS: Final = ("train_loss", "train_steps", "train_records", "clipped_elements")
# To these only some do, and a sum over too few would show one site's own figures (common/secagg/README.md): who has
# held-out records, and who has any of a task, each group named by what its contributors have.
HELD_OUT_GROUP: Final = "held_out"
METRIC_GROUPS: Final = (
    MetricGroup(HELD_OUT_GROUP, ("heldout_loss", "heldout_tokens")),
    MetricGroup(Task.CLASSIFICATION.value, ("classification_correct", "classification_total")),
    MetricGroup(Task.NER.value, ("span_true_positives", "span_false_positives", "span_false_negatives")),
    MetricGroup(Task.INSTRUCTION.value, ("rouge_sum", "rouge_total")),
)
# Of those who have held-out pairs, where these are what a plan trains on.
PREFERENCE_GROUP: Final = "preference"
PREFERENCE_METRICS: Final = MetricGroup(PREFERENCE_GROUP, ("preference_correct", "preference_total"))


@dataclass(frozen=True, slots=True)
class PhaseLimits:
    """A phase closes early when everybody is done; at the end of its window with the quorum, or it fails."""

    quorum: int
    window_seconds: int


@dataclass(frozen=True, slots=True)
class Phases:
    """The limits of every phase; `key_setup` holds for each of the three steps of a key epoch."""

    forming: PhaseLimits
    training: PhaseLimits
    collecting: PhaseLimits
    unmasking: PhaseLimits
    key_setup: PhaseLimits


@dataclass(frozen=True, slots=True)
class Training:
    """What a participant does in a training round. Steps are optimiser steps; lengths are tokens.

    learning_rate: the highest, of the first round. learning_rate_schedule: over the rounds of a run, "constant" or
    "cosine", which falls to `final_rate_fraction` of it in the last round.
    objective: "sft", the loss of right answers, or "dpo", direct preference optimisation on chosen and rejected answers
    (Rafailov et al. 2023, arXiv 2305.18290) with its beta; 0 with "sft".
    """

    learning_rate: float
    steps_per_round: int
    batch_size: int
    max_length: int
    seed: int
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    learning_rate_schedule: str = CONSTANT_RATE
    final_rate_fraction: float = 1.0
    objective: str = SFT
    dpo_beta: float = 0.0

    def learning_rate_in(self, round_: int, *, rounds: int) -> float:
        """Of round `round_` (from 1) of a run of `rounds`; later ones, where rounds have failed, have the last's.

        A schedule falls by half a cosine to `final_rate_fraction` (Loshchilov and Hutter 2017, SGDR, arXiv 1608.03983,
        eq. 5 without restarts), a step a round.
        """
        if self.learning_rate_schedule == CONSTANT_RATE or rounds < 2:
            return self.learning_rate
        fallen = (1 - math.cos(math.pi * min(round_ - 1, rounds - 1) / (rounds - 1))) / 2
        return self.learning_rate * (1 - (1 - self.final_rate_fraction) * fallen)


@dataclass(frozen=True, slots=True)
class TensorClip:
    """A bound of their own for the elements of every tensor whose name has `name` in it, such as "lora_B"."""

    name: str
    clip: float


@dataclass(frozen=True, slots=True)
class Masking:
    """Parameters of secure aggregation.

    element_clip: bound on one element of a delta. tensor_clips: narrower ones for tensors that move less, so that they
    have as many steps; of those that fit a tensor the first holds. max_update_norm: bound on the delta's L2 norm.
    weight_cap: number of training records that counts as weight 1; most_participants: n_max, which sizes the lanes;
    colluders: c, members assumed to work with the coordinator, as the charter counts them.
    metrics: words that every member fills; metric_groups: words that are summed where enough members fill them.
    """

    least_cohort: int
    most_participants: int
    rounds_per_epoch: int
    element_clip: float
    max_update_norm: float
    weight_cap: int
    lanes: int
    colluders: int
    suite: int = SUITE
    tensor_clips: tuple[TensorClip, ...] = ()
    metrics: tuple[str, ...] = METRIC_WORDS
    metric_groups: tuple[MetricGroup, ...] = METRIC_GROUPS

    @property
    def metric_words(self) -> tuple[str, ...]:
        """Everyone's metric words and those of the groups, in the order in which they are masked."""
        return (*self.metrics, *(word for group in self.metric_groups for word in group.words))

    def clip_of(self, tensor: str) -> float:
        """Bound on one element of a tensor's delta."""
        return next((own.clip for own in self.tensor_clips if own.name in tensor), self.element_clip)


@dataclass(frozen=True, slots=True)
class Gate:
    """A candidate is accepted if its mean held-out loss is at most (1 + loss_rise) times the accepted adapter's.

    standard_errors: a domain adapter is kept at the run's end if its domain's mean loss is better by more than so many
    standard errors than without it; 0 asks nothing.
    """

    loss_rise: float
    most_failed_rounds: int
    standard_errors: float = 0.0


@dataclass(frozen=True, slots=True)
class Beneath:
    """The frozen adapter on which a domain adapter is trained: its digest, and what its own run's plan says of it."""

    adapter: str
    run: str
    spec: AdapterSpec
    method: Method


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole plan. `run_id` (64 hex digits) makes the masks of two runs of the same name different.

    domains: those whose figures are summed apart; none: only totals are. updates: how each round's sums change the
    instruction set of the next; None: not at all. privacy: what every site does to keep single records private.
    domain, beneath: of a domain adapter, which is trained by the sites that have the domain, on its records, on top of
    an accepted global adapter.
    """

    run: str
    run_id: str
    federation: str
    charter_digest: str
    coordinator_public_key: str
    base_model: BaseModel
    adapter: AdapterSpec
    rounds: int
    method: Method
    training: Training
    phases: Phases
    masking: Masking
    gate: Gate
    instruction_set: str
    evaluation_records: int = 0
    name_survivors: bool = False
    domains: tuple[PlanDomain, ...] = ()
    updates: Updates | None = None
    privacy: Privacy = field(default_factory=Privacy)
    domain: str = ""
    beneath: Beneath | None = None
    form: int = field(default=PLAN_FORM)

    def to_bytes(self) -> bytes:
        """Canonical JSON; its SHA-256 is the plan's digest."""
        return jsonform.encode(self, Plan).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Plan:
        """Raises PlanInvalid that lists every mistake."""
        try:
            plan = jsonform.decode(content, cls, what="the plan")
        except AccordError as error:
            raise PlanInvalid(str(error)) from error
        plan.check()
        return plan

    def plan_beneath(self) -> Plan | None:
        """This plan with the adapter beneath as its own: what that adapter's file and manifest are checked by."""
        if self.beneath is None:
            return None
        below = self.beneath
        return replace(self, run=below.run, adapter=below.spec, method=below.method, domain="", beneath=None)

    def adapter_method(self) -> AdapterMethod:
        """What is stored, sent and exported. Raises PlanInvalid for a method that is not known or does not fit."""
        return adapter_method(self.method, self.adapter)

    @property
    def template_evaluations(self) -> int:
        """How often the run's candidate templates are measured."""
        return -(-self.rounds // self.updates.every) if self.updates is not None else 0

    def layout(self) -> AdapterLayout:
        """Order of the adapter's tensors in the flat vector: all that are stored, whatever a round sends of them.

        Raises PlanInvalid or InvalidArgument if method, adapter and base model do not fit each other.
        """
        return self.adapter_method().layout(self.base_model.layers)

    def check(self) -> None:
        """Raises PlanInvalid that lists every contradiction."""
        mistakes = [text for is_wrong, text in self._rules() if is_wrong]
        if mistakes:
            raise PlanInvalid("; ".join(mistakes))

    def _rules(self) -> tuple[tuple[bool, str], ...]:
        masking, phases, training = self.masking, self.phases, self.training
        floors = (
            ("forming", phases.forming),
            ("training", phases.training),
            ("collecting", phases.collecting),
            ("key_setup", phases.key_setup),
        )
        return (
            (self.form != PLAN_FORM, f"form {self.form} is not known, this version reads form {PLAN_FORM}"),
            (masking.suite != SUITE, f"masking suite {masking.suite} is not known, this version speaks suite {SUITE}"),
            (masking.least_cohort < 3, "least_cohort must be at least 3: a sum over two shows each the other's"),
            (masking.most_participants < masking.least_cohort, "most_participants is smaller than least_cohort"),
            (not 1 <= masking.lanes <= 8, "lanes must be 1 to 8"),
            (masking.weight_cap < 1, "weight_cap must be at least 1"),
            (
                not masking.metric_words or len(set(masking.metric_words)) < len(masking.metric_words),
                "metrics must be distinct names",
            ),
            (
                len({group.name for group in masking.metric_groups}) < len(masking.metric_groups)
                or any(not group.name or not group.words for group in masking.metric_groups),
                "metric_groups must have distinct names and words of their own",
            ),
            (not 1 <= masking.rounds_per_epoch <= 256, "rounds_per_epoch must be 1 to 256"),
            (not _is_positive(masking.element_clip), "element_clip must be a positive number"),
            *(
                (
                    not own.name or not 0 < own.clip <= masking.element_clip,
                    f"tensor_clips: {own.name!r} needs a name and a clip over 0 and at most element_clip",
                )
                for own in masking.tensor_clips
            ),
            (not _is_positive(masking.max_update_norm), "max_update_norm must be a positive number"),
            (masking.colluders < 0, "colluders must not be negative"),
            (self.rounds < 1, "rounds must be at least 1"),
            (self.adapter.rank < 1, "adapter rank must be at least 1"),
            (not _is_positive(self.adapter.alpha), "adapter alpha must be a positive number"),
            (not self.adapter.target_modules, "the adapter adapts no module"),
            (not _is_positive(training.learning_rate), "learning_rate must be a positive number"),
            (
                training.learning_rate_schedule not in (CONSTANT_RATE, COSINE_RATE),
                f"learning_rate_schedule {training.learning_rate_schedule!r} is not known; known: constant, cosine",
            ),
            (not 0 < training.final_rate_fraction <= 1, "final_rate_fraction must be over 0 and at most 1"),
            (
                training.learning_rate_schedule == CONSTANT_RATE and training.final_rate_fraction != 1,
                "final_rate_fraction is the cosine schedule's: with a constant rate it is 1",
            ),
            (training.steps_per_round < 1, "steps_per_round must be at least 1"),
            (training.batch_size < 1, "batch_size must be at least 1"),
            (training.max_length < 8, "max_length must be at least 8 tokens"),
            (not _is_positive(self.method.server_learning_rate), "server_learning_rate must be a positive number"),
            *self._method_mistakes(),
            *self._objective_mistakes(),
            (not math.isfinite(self.gate.loss_rise) or self.gate.loss_rise < 0, "gate.loss_rise must not be negative"),
            (self.gate.most_failed_rounds < 1, "gate.most_failed_rounds must be at least 1"),
            (self.evaluation_records < 0, "evaluation_records must not be negative"),
            *((True, text) for text in self.privacy.mistakes(masking.metric_groups)),
            *((True, text) for text in self._domain_mistakes()),
            *(
                (limits.quorum < masking.least_cohort, f"quorum of {name} is below least_cohort")
                for name, limits in floors
            ),
            *(
                (limits.window_seconds < 1, f"window of {name} must be at least a second")
                for name, limits in (*floors, ("unmasking", phases.unmasking))
            ),
        )

    def _method_mistakes(self) -> tuple[tuple[bool, str], ...]:
        """What the method and the server optimiser themselves refuse. Without a rank there is nothing to ask them."""
        if self.adapter.rank < 1 or not _is_positive(self.method.server_learning_rate):
            return ()
        mistakes: list[tuple[bool, str]] = []
        for ask in (self.adapter_method, lambda: server_optimizer(self.method)):
            try:
                ask()
            except PlanInvalid as error:
                mistakes.append((True, error.message))
        return tuple(mistakes)

    def _objective_mistakes(self) -> tuple[tuple[bool, str], ...]:
        training, is_dpo = self.training, self.training.objective == DPO
        return (
            (training.objective not in (SFT, DPO), f"objective {training.objective!r} is not known; known: sft, dpo"),
            (is_dpo and not _is_positive(training.dpo_beta), "dpo_beta must be a positive number"),
            (not is_dpo and training.dpo_beta != 0, "dpo_beta is for objective dpo: with another it is 0"),
            (
                is_dpo and bool(self.domains),
                "objective dpo goes without domains: pairs are no task with a metric of one",
            ),
            (
                is_dpo and (self.privacy.training is not None or self.privacy.metrics is not None),
                "objective dpo goes without privacy settings: they bound what one record adds, and a pair is two",
            ),
            (
                is_dpo != (PREFERENCE_METRICS in self.masking.metric_groups),
                "the metric group preference is for objective dpo, and no other",
            ),
        )

    def _domain_mistakes(self) -> list[str]:
        try:
            check_domains(self.domains)
            if self.updates is not None:
                self.updates.check()
            used = InstructionSet.from_json(self.instruction_set) if self.domains else None
        except AccordError as error:
            return [error.message]
        mistakes = []
        if bool(self.domain) != (self.beneath is not None):
            mistakes.append("a domain adapter needs both its domain and the global adapter beneath it")
        if self.domain and [domain.name for domain in self.domains] != [self.domain]:
            mistakes.append("the plan of a domain adapter measures its own domain and no other")
        if self.beneath is not None:
            try:
                adapter_method(self.beneath.method, self.beneath.spec).layout(self.base_model.layers)
            except AccordError as error:
                mistakes.append(f"the adapter beneath does not fit: {error.message}")
        if not 0.0 <= self.gate.standard_errors <= 100.0 or (self.gate.standard_errors and not self.domain):
            mistakes.append("gate.standard_errors must be 0 to 100, and 0 without a domain adapter")
        if self.updates is not None and not self.domains:
            mistakes.append("updates need domains: their sums are what instruction sets are updated from")
        if used is not None and self.masking.metric_groups != domain_groups(self.domains, used, self.updates):
            mistakes.append("metric_groups are not those of the plan's domains")
        if self.updates is not None and self.updates.reference is Reference.LOCAL and self.privacy.training is not None:
            mistakes.append("updates.reference local trains without privacy, and the plan trains with it; take given")
        if self.updates is not None and "train_records" in self.masking.metrics:
            mistakes.append("train_records and the domains' records together would tell of a domain that is not shared")
        return mistakes


def domain_groups(
    domains: tuple[PlanDomain, ...], instruction_set: InstructionSet, updates: Updates | None
) -> tuple[MetricGroup, ...]:
    """The metric groups that a plan with these domains has."""
    return metric_groups(
        domains,
        instruction_set,
        has_updates=updates is not None,
        has_reference=updates is not None and updates.reference is Reference.LOCAL,
    )


def _is_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
