"""The site's guard: what this site agrees to, and every reason why a plan, a round or a moment does not fit.

The policy is the site's own file; nothing that a coordinator sends can loosen it. A bound is written so that a value
which compares with nothing (NaN) is refused. Pure: no I/O, no clock, no protobuf.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Final

from common.basemodel import BaseModel
from common.charter import Charter
from common.errors import AccordError, BaseModelMismatch, ClockWrong, InvalidArgument, PlanInvalid, PolicyRefusal
from common.instructions import InstructionSet, Template
from common.plan import Plan
from common.plan_review import plan_mistakes
from common.secagg.plan import HEAD_WORDS
from common.secagg.ring import VectorLayout
from common.sent import sent_vectors
from participant.policy import (
    AdapterBounds,
    DailyLimits,
    InstructionSetBounds,
    MaskingBounds,
    Policy,
    PrivacyBounds,
    TrainingBounds,
)

_FLOAT32_BYTES: Final = 4
_BRACED: Final = re.compile(r"\{([^{}]*)\}")
_SHOWN_CHARACTERS: Final = 60
# As much as certificates are dated back: a clock that is further off breaks the handshake first.
MOST_CLOCK_SKEW: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class DayLedger:
    """What this site has given on one day, as its journal counts it."""

    day: date
    rounds: int = 0
    upload_bytes: int = 0
    download_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Transfer:
    """Bytes that one round moves: a masked update up, a global adapter down."""

    upload_bytes: int
    download_bytes: int


@dataclass(frozen=True, slots=True)
class Objection:
    """One reason against: the field of the plan (or the limit) that it is about, and the reason for a person."""

    field: str
    text: str


_Rule = tuple[bool, str, str]  # holds, field, what is wrong


# --- verdicts ------------------------------------------------------------------------------------------------------


def review(plan: Plan, *, policy: Policy, charter: Charter, participant: str) -> None:
    """Raises PolicyRefusal that lists every reason why this site does not take part in a run of this plan.

    The charter's bounds are among them, so that an operator sees everything at once.
    """
    _refuse_if(
        [*_charter_objections(plan, charter, participant), *_policy_objections(plan, policy)],
        what=f"the plan of run {plan.run}",
    )


def check_base_model(plan: Plan, own: Iterable[BaseModel]) -> BaseModel:
    """The site's own base model that the plan names.

    The digest pins the content; layers and widths are compared too, because the plan's adapter is laid out by them.
    Raises BaseModelMismatch.
    """
    offered = tuple(own)
    model = next((model for model in offered if model.digest == plan.base_model.digest), None)
    if model is None:
        have = ", ".join(f"{model.name} ({model.digest[:12]})" for model in offered) or "none"
        raise BaseModelMismatch(
            f"run {plan.run} tunes {plan.base_model.name} with digest {plan.base_model.digest}; this site has {have}. "
            "Add the model's source to base_models in participant.toml, if the site agrees to it"
        )
    wrong = [
        name
        for name in ("layers", "architecture", "parameters", "dtype")
        if getattr(model, name) != getattr(plan.base_model, name)
    ]
    if wrong:
        raise BaseModelMismatch(
            f"the plan of run {plan.run} describes {plan.base_model.name} with other {', '.join(wrong)} than this "
            "site's copy of the same digest has; the operator made the run from a wrong description"
        )
    return model


def review_round(plan: Plan, *, policy: Policy, instruction_set: InstructionSet) -> None:
    """What a round brings beyond its plan: its own instruction set. Raises PolicyRefusal that lists every reason.

    Updates move numbers; the templates are the plan's own, to the letter.
    """
    objections = [
        *_instruction_set_objections(instruction_set, policy.instruction_set),
        *_update_objections(plan, instruction_set),
    ]
    _refuse_if(objections, what=f"this round of run {plan.run}")


def review_deadline(plan: Plan, *, deadline: datetime, now: datetime) -> None:
    """Whether the time that a round leaves for its preparation is the plan's. Raises ClockWrong.

    One that has passed or is too far away is a wrong clock, here or there, or a round that is meant to stay open.
    """
    window = timedelta(seconds=plan.phases.training.window_seconds)
    told = f"is {deadline:%Y-%m-%d %H:%M} UTC, and here it is {now:%Y-%m-%d %H:%M}"
    objections = _broken(
        (deadline >= now - MOST_CLOCK_SKEW, "deadline", f"{told}: it has passed; compare the clocks"),
        (
            deadline <= now + window + MOST_CLOCK_SKEW,
            "deadline",
            f"{told}: the plan's training window is {plan.phases.training.window_seconds} s; compare the clocks",
        ),
    )
    if objections:
        raise ClockWrong(
            f"this site does not begin this round of run {plan.run}: {_joined(objections)}",
            metadata=_metadata(objections),
        )


def may_take_part_now(policy: Policy, *, now: datetime, today: DayLedger, transfer: Transfer | None = None) -> None:
    """Raises PolicyRefusal if the site's hours are over or a daily limit is reached; the message says until when.

    Asked before a round is begun; what has begun is brought to its end, so that others do not wait in vain.
    today: the ledger of `policy.hours.day(now)`, else ValueError. transfer: what the round will move.
    """
    if today.day != policy.hours.day(now):
        raise ValueError(f"the ledger is of {today.day}, and this is {policy.hours.day(now)}")
    moved = transfer or Transfer(0, 0)
    daily = policy.daily
    opening = policy.hours.next_opening(now)
    again = "they never open" if opening is None else f"they open at {opening:%Y-%m-%d %H:%M} UTC"
    _refuse_if(
        _broken(
            (policy.hours.is_open(now), "hours", f"this is outside the site's hours; {again}"),
            (
                daily.rounds is None or today.rounds < daily.rounds,
                "rounds.most_in_a_day",
                f"{today.rounds} of {daily.rounds} rounds of this day are done",
            ),
            _day_rule("transfer.most_upload", today.upload_bytes, moved.upload_bytes, daily.upload_bytes),
            _day_rule("transfer.most_download", today.download_bytes, moved.download_bytes, daily.download_bytes),
        ),
        what="taking part now",
    )


def transfer_of(plan: Plan) -> Transfer:
    """The most that one training round of this plan moves: where rounds take turns, the largest of them.

    Raises InvalidArgument or PlanInvalid if its adapter does not fit its method or base model.
    """
    tail = HEAD_WORDS + len(plan.masking.metric_words)
    return Transfer(
        upload_bytes=max(
            VectorLayout(parameters=sent.parameters, lanes=plan.masking.lanes, tail_words=tail).bytes
            for sent in sent_vectors(plan)
        ),
        download_bytes=plan.layout().parameters * _FLOAT32_BYTES,
    )


# --- the charter's rules -------------------------------------------------------------------------------------------


def _charter_objections(plan: Plan, charter: Charter, participant: str) -> list[Objection]:
    members = len(charter.members)
    return [
        *(Objection("plan", text) for text in _contradictions(plan)),
        *(Objection("charter", text) for text in plan_mistakes(plan, charter)),
        *_broken(
            (
                charter.member(participant) is not None,
                "charter.members",
                f"this site ({participant}) is not a member",
            ),
            (
                plan.masking.most_participants >= members,
                "masking.most_participants",
                f"is {plan.masking.most_participants}, too few for the charter's {members} members",
            ),
        ),
    ]


def _contradictions(plan: Plan) -> list[str]:
    try:
        plan.check()
    except PlanInvalid as error:
        return [str(error)]
    return []


# --- the policy's rules --------------------------------------------------------------------------------------------


def _policy_objections(plan: Plan, policy: Policy) -> list[Objection]:
    return [
        *_broken(
            (
                policy.base_models is None or plan.base_model.digest in policy.base_models,
                "base_model",
                f"{plan.base_model.name} ({plan.base_model.digest}) is not among the allowed base models",
            ),
            (
                plan.method.name in policy.methods,
                "method.name",
                f"{_shown(plan.method.name)} is not among {_names(policy.methods)}",
            ),
            _at_most("rounds", plan.rounds, policy.most_rounds_in_a_run),
        ),
        *_adapter_objections(plan, policy.adapter),
        *_masking_objections(plan, policy.masking),
        *_training_objections(plan, policy.training),
        *_transfer_objections(plan, policy.daily),
        *_plan_instruction_set_objections(plan, policy.instruction_set),
        *_privacy_objections(plan, policy.privacy),
    ]


def _adapter_objections(plan: Plan, bounds: AdapterBounds) -> list[Objection]:
    others = sorted(set(plan.adapter.target_modules) - (bounds.modules or set()))
    rules: list[_Rule] = [
        _at_most("adapter.rank", plan.adapter.rank, bounds.most_rank),
        (
            bounds.modules is None or not others,
            "adapter.target_modules",
            f"{_names(others)} may not be adapted, allowed are {_names(bounds.modules or ())}",
        ),
        (
            bounds.may_be_of_a_domain or not plan.domain,
            "domain",
            f"is {_shown(plan.domain)}, and this site trains adapters that all sites share, not those of a domain",
        ),
    ]
    if bounds.most_parameters is not None:
        try:
            rules.append(_at_most("adapter.parameters", plan.layout().parameters, bounds.most_parameters))
        except PlanInvalid:
            pass  # a method that is not known or does not fit: the plan's own contradictions name it
        except InvalidArgument as error:
            rules.append((False, "adapter.target_modules", str(error)))
    return _broken(*rules)


def _masking_objections(plan: Plan, bounds: MaskingBounds) -> list[Objection]:
    masking = plan.masking
    return _broken(
        _at_least("masking.least_cohort", masking.least_cohort, bounds.least_cohort),
        _at_most("masking.element_clip", masking.element_clip, bounds.most_element_clip),
        _at_most("masking.max_update_norm", masking.max_update_norm, bounds.most_update_norm),
        _at_least("masking.colluders", masking.colluders, bounds.least_colluders or 0),
    )


def _training_objections(plan: Plan, bounds: TrainingBounds) -> list[Objection]:
    training = plan.training
    return _broken(
        _at_most("training.learning_rate", training.learning_rate, bounds.most_learning_rate),
        _at_most("training.steps_per_round", training.steps_per_round, bounds.most_steps_per_round),
        _at_most("training.batch_size", training.batch_size, bounds.most_batch_size),
        _at_most("training.max_length", training.max_length, bounds.most_length),
    )


def _privacy_objections(plan: Plan, bounds: PrivacyBounds | None) -> list[Objection]:
    """What the policy asks of a plan's own terms; whether there is budget left is the privacy desk's to say."""
    if bounds is None:
        return []
    training = plan.privacy.training
    rules: list[_Rule] = [
        (
            training is not None or not bounds.must_train_privately,
            "privacy.training",
            "is not in the plan, and this site trains on its records with differential privacy only",
        ),
        (
            plan.privacy.metrics is not None or not bounds.must_have_noisy_figures,
            "privacy.metrics",
            "is not in the plan, and this site gives figures about held-out records with noise only",
        ),
    ]
    if training is not None and training.delta is not None and bounds.delta is not None:
        rules.append(_at_most("privacy.training.delta", training.delta, bounds.delta))
    return _broken(*rules)


def _transfer_objections(plan: Plan, daily: DailyLimits) -> list[Objection]:
    """A round that alone is over a day's limit would be refused every day: better said before joining."""
    if daily.upload_bytes is None and daily.download_bytes is None:
        return []
    try:
        transfer = transfer_of(plan)
    except PlanInvalid:
        return []  # as above
    except (InvalidArgument, ArithmeticError) as error:
        return [Objection("adapter.target_modules", str(error))]
    return _broken(
        (
            daily.upload_bytes is None or transfer.upload_bytes <= daily.upload_bytes,
            "transfer.upload",
            f"a round sends {_mebibytes(transfer.upload_bytes)}, allowed are {_mebibytes(daily.upload_bytes)} a day",
        ),
        (
            daily.download_bytes is None or transfer.download_bytes <= daily.download_bytes,
            "transfer.download",
            (
                f"a round fetches {_mebibytes(transfer.download_bytes)}, "
                f"allowed are {_mebibytes(daily.download_bytes)} a day"
            ),
        ),
    )


def _plan_instruction_set_objections(plan: Plan, bounds: InstructionSetBounds) -> list[Objection]:
    try:
        instruction_set = InstructionSet.from_json(plan.instruction_set)
    except AccordError as error:
        return [Objection("instruction_set", str(error))]
    return _instruction_set_objections(instruction_set, bounds)


def _instruction_set_objections(instruction_set: InstructionSet, bounds: InstructionSetBounds) -> list[Objection]:
    return [
        Objection("instruction_set", f"template for {template.task.value} {template.domain}".rstrip() + f": {text}")
        for template in instruction_set.templates
        for text in _template_mistakes(template, bounds)
    ]


def _update_objections(plan: Plan, used: InstructionSet) -> list[Objection]:
    own = InstructionSet.from_json(plan.instruction_set)
    if plan.updates is None:
        return _broken((used == own, "instruction_set", "is not the plan's, and the plan has no updates"))
    known = {_text_of(template) for template in own.templates}
    return _broken(
        (
            all(_text_of(template) in known for template in used.templates),
            "instruction_set",
            "has a template that the plan has not: updates choose among the plan's",
        ),
        (
            (used.form, used.domain_weights) == (own.form, own.domain_weights),
            "instruction_set",
            "differs from the plan's in more than updates may change",
        ),
        (
            {share.domain for share in used.shares} <= {domain.name for domain in plan.domains},
            "instruction_set",
            "weighs a domain that the plan has not",
        ),
    )


def _text_of(template: Template) -> Template:
    return replace(template, probability=0.0, is_served=False)


def _template_mistakes(template: Template, bounds: InstructionSetBounds) -> list[str]:
    parts = (template.prompt, template.prompt_without_input, template.system, template.answer, *template.labels)
    longest = max(len(part) for part in parts)
    mistakes = []
    if not longest <= bounds.most_template_characters:
        mistakes.append(f"has {longest} characters, allowed are {bounds.most_template_characters}")
    # Anything in braces that is no allowed field: today it would stay text, but a site agrees to names, not to luck.
    others = sorted({name for part in parts for name in _BRACED.findall(part)} - bounds.placeholders)
    if others:
        mistakes.append(f"asks for {_names(others)}, allowed are {_names(bounds.placeholders)}")
    return mistakes


# --- rules and words -----------------------------------------------------------------------------------------------


def _at_most(field: str, value: float, bound: float) -> _Rule:
    return (value <= bound, field, f"is {value:g}, allowed is at most {bound:g}")


def _at_least(field: str, value: float, bound: float) -> _Rule:
    return (value >= bound, field, f"is {value:g}, allowed is at least {bound:g}")


def _day_rule(name: str, used: int, more: int, bound: int | None) -> _Rule:
    return (
        bound is None or used + more <= bound,
        f"{name}_mebibytes_a_day",
        f"{_mebibytes(used)} of {_mebibytes(bound)} are used today, and {_mebibytes(more)} more are asked for",
    )


def _broken(*rules: _Rule) -> list[Objection]:
    return [Objection(field, text) for holds, field, text in rules if not holds]


def _refuse_if(objections: Sequence[Objection], *, what: str) -> None:
    if objections:
        raise PolicyRefusal(
            f"this site's policy does not allow {what}: {_joined(objections)}", metadata=_metadata(objections)
        )


def _joined(objections: Sequence[Objection]) -> str:
    return "; ".join(f"{objection.field}: {objection.text}" for objection in objections)


def _metadata(objections: Sequence[Objection]) -> dict[str, str]:
    return {"fields": ",".join(dict.fromkeys(objection.field for objection in objections))}


def _names(names: Iterable[str]) -> str:
    return ", ".join(_shown(name) for name in sorted(names)) or "none"


def _shown(text: str) -> str:
    """What a coordinator has sent, as it may stand in a log line: quoted, escaped and short."""
    return ascii(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")


def _mebibytes(count: int | None) -> str:
    return "no bytes" if count is None else f"{count / 2**20:.1f} MiB"
