"""From what an operator asks for to the plan of a run: defaults, and every check that the charter and this version ask.

Pure. What participants check again for themselves lies in `common.plan` and `common.charter`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from common.adapters import AdapterSpec
from common.basemodel import BaseModel
from common.charter import Charter
from common.domains import PlanDomain
from common.errors import AccordError, PlanInvalid
from common.instructions import InstructionSet, chat_instruction_set
from common.masking import plan_digest, secagg_plan
from common.methods import adapter_method
from common.methods.ravan import DEFAULT_HEADS
from common.plan import (
    CONSTANT_RATE,
    DPO,
    METRIC_GROUPS,
    PREFERENCE_METRICS,
    SFT,
    Beneath,
    Gate,
    Masking,
    Method,
    PhaseLimits,
    Phases,
    Plan,
    TensorClip,
    Training,
)
from common.plan_review import plan_mistakes
from common.secagg.plan import HEAD_WORDS
from common.secagg.ring import VectorLayout, choose_lanes
from common.sent import sent_vectors
from common.strategies import SERVER_OPTIMIZERS
from coordinator.domain_planning import with_beneath, with_domains
from coordinator.privacy_planning import with_privacy

LEAST_COHORT_FLOOR: Final = 3
HONEST_FLOOR: Final = 2
DEFAULT_RANK: Final = 8
DEFAULT_ALPHA: Final = 16.0
DEFAULT_ROUNDS: Final = 3
DEFAULT_METHOD: Final = "fedit"
DEFAULT_SERVER_OPTIMIZER: Final = "fedavg"
DEFAULT_LEARNING_RATE: Final = 5e-4
# With one factor frozen at a time, a rate of about three times that of both moves the model as far.
# A core's few numbers stand for many, and want ten times it.
METHOD_LEARNING_RATES: Final = {"ffa_lora": 1.5e-3, "rolora": 1.5e-3, "core": 5e-3, "ravan": 1e-3}
DEFAULT_FINAL_RATE_FRACTION: Final = 0.1
DEFAULT_STEPS_PER_ROUND: Final = 10
DEFAULT_BATCH_SIZE: Final = 8
DEFAULT_MAX_LENGTH: Final = 512
DEFAULT_DPO_BETA: Final = 0.1
# AdamW moves an element by about the learning rate a step at most; of real updates none went beyond 1.02 times that
# in a round. A wider clip costs steps of the fixed point, a narrower one cuts updates off.
ADAMW_REACH: Final = 1.25
DEFAULT_WEIGHT_CAP: Final = 1000
DEFAULT_ROUNDS_PER_EPOCH: Final = 16
DEFAULT_GATE_LOSS_RISE: Final = 0.1
DEFAULT_MOST_FAILED_ROUNDS: Final = 3
FORMING_SECONDS: Final = 120
TRAINING_SECONDS: Final = 6 * 3600
COLLECTING_SECONDS: Final = 30 * 60
UNMASKING_SECONDS: Final = 10 * 60
KEY_SETUP_SECONDS: Final = 5 * 60


@dataclass(frozen=True, slots=True)
class PhaseChoice:
    """An operator's limits of a phase; 0 means "not said"."""

    quorum: int = 0
    window_seconds: int = 0


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """What an operator asks for. 0, "" and () mean "not said" and take the default that the API's comments name."""

    base_model: BaseModel
    rank: int = 0
    alpha: float = 0.0
    target_modules: tuple[str, ...] = ()
    rounds: int = 0
    method: str = ""
    server_optimizer: str = ""
    server_learning_rate: float = 0.0
    schedule: str = ""
    phase_rounds: int = 0
    beta1: float = 0.0
    beta2: float = 0.0
    tau: float = 0.0
    product_probes: int = 0
    heads: int = 0
    proximal_weight: float = 0.0
    alignment: float = 0.0
    control_variates: bool = False
    initial_adapter: str = ""
    learning_rate: float = 0.0
    learning_rate_schedule: str = ""
    final_rate_fraction: float = 0.0
    objective: str = ""
    dpo_beta: float = 0.0
    steps_per_round: int = 0
    batch_size: int = 0
    max_length: int = 0
    element_clip: float = 0.0
    tensor_clips: tuple[TensorClip, ...] = ()
    max_update_norm: float = 0.0
    weight_cap: int = 0
    least_cohort: int = 0
    most_participants: int = 0
    rounds_per_epoch: int = 0
    gate_loss_rise: float = 0.0
    most_failed_rounds: int = 0
    evaluation_records: int = 0
    forming: PhaseChoice = PhaseChoice()
    training: PhaseChoice = PhaseChoice()
    collecting: PhaseChoice = PhaseChoice()
    unmasking: PhaseChoice = PhaseChoice()
    key_setup: PhaseChoice = PhaseChoice()
    seed: int = 0
    instruction_set: str = ""
    name_survivors: bool = False
    domains: tuple[PlanDomain, ...] = ()
    updates: str = ""
    privacy: str = ""
    domain: str = ""
    beneath_adapter: str = ""


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What a plan says of its run beside the settings. `run_id`: 64 random hex digits, never used again."""

    run: str
    run_id: str
    federation: str
    coordinator_public_key: str


def make_plan(
    settings: PlanSettings,
    *,
    identity: RunIdentity,
    charter: Charter,
    most_upload_bytes: int,
    beneath: Beneath | None = None,
) -> Plan:
    """The plan with all defaults filled in, checked.

    most_upload_bytes: largest masked update that the coordinator takes. beneath: what is known of beneath_adapter.
    Raises PlanInvalid that lists every mistake.
    """
    # With fewer than c + 2 there are no thresholds: a run that waits for as many says who is missing, keys would fail.
    fewest = min(charter.assumed_colluders + HONEST_FLOOR, settings.most_participants or len(charter.member_ids))
    least_cohort = settings.least_cohort or max(LEAST_COHORT_FLOOR, charter.least_cohort, fewest)
    most_participants = settings.most_participants or len(charter.member_ids)
    adapter = AdapterSpec(
        rank=settings.rank or DEFAULT_RANK,
        alpha=settings.alpha or DEFAULT_ALPHA,
        target_modules=settings.target_modules or all_linear(settings.base_model),
    )
    method = _method(settings)
    rate_schedule = settings.learning_rate_schedule or CONSTANT_RATE
    usual_fraction = 1.0 if rate_schedule == CONSTANT_RATE else DEFAULT_FINAL_RATE_FRACTION
    training = Training(
        learning_rate=settings.learning_rate or METHOD_LEARNING_RATES.get(method.name, DEFAULT_LEARNING_RATE),
        learning_rate_schedule=rate_schedule,
        final_rate_fraction=settings.final_rate_fraction or usual_fraction,
        steps_per_round=settings.steps_per_round or DEFAULT_STEPS_PER_ROUND,
        batch_size=settings.batch_size or DEFAULT_BATCH_SIZE,
        max_length=settings.max_length or DEFAULT_MAX_LENGTH,
        seed=settings.seed,
        objective=settings.objective or SFT,
        dpo_beta=settings.dpo_beta or (DEFAULT_DPO_BETA if settings.objective == DPO else 0.0),
    )
    # These need figures that may themselves be mistakes; those are listed, and stand-ins keep the rest checkable.
    parameters, layout_mistakes = _most_deltas(method, adapter, settings.base_model)
    lanes, lanes_mistakes = _lanes(most_participants)
    instruction_set, instruction_set_mistakes = _instruction_set(settings.instruction_set)
    # Of the highest rate: a later round's smaller updates have fewer steps of the fixed point, and still enough.
    element_clip = settings.element_clip or ADAMW_REACH * training.learning_rate * training.steps_per_round
    plan = Plan(
        run=identity.run,
        run_id=identity.run_id,
        federation=identity.federation,
        charter_digest=charter.digest,
        coordinator_public_key=identity.coordinator_public_key,
        base_model=settings.base_model,
        adapter=adapter,
        rounds=settings.rounds or DEFAULT_ROUNDS,
        method=method,
        training=training,
        phases=_phases(settings, least_cohort),
        masking=Masking(
            least_cohort=least_cohort,
            most_participants=most_participants,
            rounds_per_epoch=settings.rounds_per_epoch or DEFAULT_ROUNDS_PER_EPOCH,
            element_clip=element_clip,
            tensor_clips=settings.tensor_clips,
            max_update_norm=settings.max_update_norm or element_clip * math.sqrt(max(parameters, 1)),
            weight_cap=settings.weight_cap or DEFAULT_WEIGHT_CAP,
            lanes=lanes,
            colluders=charter.assumed_colluders,
            metric_groups=(*METRIC_GROUPS, *([PREFERENCE_METRICS] if training.objective == DPO else [])),
        ),
        gate=Gate(
            loss_rise=settings.gate_loss_rise or DEFAULT_GATE_LOSS_RISE,
            most_failed_rounds=settings.most_failed_rounds or DEFAULT_MOST_FAILED_ROUNDS,
        ),
        instruction_set=instruction_set,
        evaluation_records=settings.evaluation_records,
        name_survivors=settings.name_survivors,
    )
    plan = with_beneath(plan, settings.domain, beneath)
    own_domain = (PlanDomain(settings.domain),) if settings.domain else ()
    plan, domain_mistakes = with_domains(plan, settings.domains or own_domain, settings.updates)
    plan, privacy_mistakes = with_privacy(plan, settings.privacy)
    mistakes = [
        *domain_mistakes,
        *privacy_mistakes,
        *layout_mistakes,
        *lanes_mistakes,
        *instruction_set_mistakes,
        *_mistakes_of(plan),
        *plan_mistakes(plan, charter),
        *_quorum_mistakes(plan, charter),
        *_size_mistakes(plan, most_upload_bytes),
        *_tensor_clip_mistakes(plan, parameters),
    ]
    mistakes = mistakes or _masking_mistakes(plan, charter)
    if mistakes:
        raise PlanInvalid("; ".join(dict.fromkeys(mistakes)))
    return plan


def all_linear(model: BaseModel) -> tuple[str, ...]:
    """Last names of all linear layers of a base model, each once, sorted."""
    return tuple(sorted({layer.name.rsplit(".", 1)[-1] for layer in model.layers}))


def instruction_set_or_default(text: str) -> str:
    """The instruction set that the first round sends out, canonical. Raises InvalidArgument or PlanInvalid."""
    return (InstructionSet.from_json(text) if text else chat_instruction_set()).to_json()


def _instruction_set(text: str) -> tuple[str, list[str]]:
    try:
        return instruction_set_or_default(text), []
    except AccordError as error:
        return "", [f"instruction_set: {error.message}"]


def _phases(settings: PlanSettings, least_cohort: int) -> Phases:
    def limits(choice: PhaseChoice, window_seconds: int) -> PhaseLimits:
        return PhaseLimits(choice.quorum or least_cohort, choice.window_seconds or window_seconds)

    return Phases(
        forming=limits(settings.forming, FORMING_SECONDS),
        training=limits(settings.training, TRAINING_SECONDS),
        collecting=limits(settings.collecting, COLLECTING_SECONDS),
        unmasking=limits(settings.unmasking, UNMASKING_SECONDS),
        key_setup=limits(settings.key_setup, KEY_SETUP_SECONDS),
    )


def _method(settings: PlanSettings) -> Method:
    """With the usual settings of the server optimiser; those that it has not stay 0, as the plan asks."""
    optimizer = settings.server_optimizer or DEFAULT_SERVER_OPTIMIZER
    usual = SERVER_OPTIMIZERS[optimizer].usual if optimizer in SERVER_OPTIMIZERS else {}
    return Method(
        name=settings.method or DEFAULT_METHOD,
        server_optimizer=optimizer,
        server_learning_rate=settings.server_learning_rate or usual.get("server_learning_rate", 1.0),
        schedule=tuple(turn.strip() for turn in settings.schedule.split(",")) if settings.schedule else (),
        phase_rounds=settings.phase_rounds or 1,
        beta1=settings.beta1 or usual.get("beta1", 0.0),
        beta2=settings.beta2 or usual.get("beta2", 0.0),
        tau=settings.tau or usual.get("tau", 0.0),
        product_probes=settings.product_probes,
        heads=settings.heads or (DEFAULT_HEADS if settings.method == "ravan" else 0),
        proximal_weight=settings.proximal_weight,
        alignment=settings.alignment,
        control_variates=settings.control_variates,
    )


def _most_deltas(method: Method, adapter: AdapterSpec, model: BaseModel) -> tuple[int, list[str]]:
    """Most parameters that move in one round."""
    try:
        adapter.adapted(model.layers)  # said also where the method is not known
        made = adapter_method(method, adapter)
        slots = made.layout(model.layers).slots
    except AccordError as error:
        return 0, error.message.split("; ")
    return max(sum(slot.size for slot in slots if made.is_sent(slot.name, turn)) for turn in made.schedule), []


def _lanes(most_participants: int) -> tuple[int, list[str]]:
    try:
        return choose_lanes(most_participants), []
    except AccordError as error:
        return 2, [f"most_participants: {error.message}"]


def _mistakes_of(plan: Plan) -> list[str]:
    try:
        plan.check()
    except PlanInvalid as error:
        return error.message.split("; ")
    return []


def _quorum_mistakes(plan: Plan, charter: Charter) -> list[str]:
    """A quorum that cannot be reached would only show when its window has passed."""
    members = min(len(charter.member_ids), plan.masking.most_participants)
    phases = plan.phases
    limits = (
        ("forming", phases.forming),
        ("training", phases.training),
        ("collecting", phases.collecting),
        ("unmasking", phases.unmasking),
        ("key_setup", phases.key_setup),
    )
    return [
        f"quorum of {name} is {limit.quorum}, and at most {members} can take part"
        for name, limit in limits
        if limit.quorum > members
    ]


def _masking_mistakes(plan: Plan, charter: Charter) -> list[str]:
    """What the masking protocol itself refuses, such as thresholds that not even all members together can meet."""
    try:
        masked = secagg_plan(plan, plan_digest(plan.to_bytes()))
        masked.thresholds(min(len(charter.member_ids), plan.masking.most_participants))
    except AccordError as error:
        return [f"masking: {error.message}"]
    return []


def _tensor_clip_mistakes(plan: Plan, parameters: int) -> list[str]:
    """A name that fits nothing was meant for something else."""
    if not parameters:
        return []
    names = [slot.name for slot in plan.layout().slots]
    return [
        f"tensor_clips: the adapter has no tensor with {own.name!r} in its name; there is {names[0]}"
        for own in plan.masking.tensor_clips
        if not any(own.name in name for name in names)
    ]


def _size_mistakes(plan: Plan, most_upload_bytes: int) -> list[str]:
    try:
        parameters = max(sent.parameters for sent in sent_vectors(plan))
    except AccordError:
        return []
    tail_words = HEAD_WORDS + len(plan.masking.metric_words)
    size = VectorLayout(parameters=parameters, lanes=plan.masking.lanes, tail_words=tail_words).bytes
    if size <= most_upload_bytes:
        return []
    mistake = (
        f"a masked update of {parameters} parameters has {size} bytes, and the coordinator's limits.upload_bytes is "
        f"{most_upload_bytes}; take a smaller rank or fewer target_modules, or raise the limit"
    )
    return [mistake]
