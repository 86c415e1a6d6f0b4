"""Whether a plan keeps to a charter: the coordinator asks before it makes a run, every participant before it joins.

Pure. Whether the plan is consistent in itself lies in `common.plan`, what a site allows beyond that in its policy.
"""

from __future__ import annotations

from common.charter import Charter, PlanBounds
from common.errors import AccordError
from common.plan import Plan
from common.secagg.ring import lane_limit


def plan_mistakes(plan: Plan, charter: Charter) -> tuple[str, ...]:
    """Everything in which the plan leaves the charter, each as a line for a person; empty where it keeps to it."""
    return (*_identity_mistakes(plan, charter), *_bound_mistakes(plan, charter.bounds))


def _identity_mistakes(plan: Plan, charter: Charter) -> tuple[str, ...]:
    masking, digest = plan.masking, charter.digest
    models = charter.base_model_digests
    rules = (
        (plan.federation != charter.federation, f"federation {plan.federation!r} is not {charter.federation!r}"),
        (plan.charter_digest != digest, f"the plan was made under charter {plan.charter_digest}, this one is {digest}"),
        (
            plan.coordinator_public_key != charter.coordinator_public_key,
            "coordinator_public_key is not the one that the charter names",
        ),
        (
            bool(models) and plan.base_model.digest not in models,
            f"base model {plan.base_model.name} ({plan.base_model.digest}) is not among the charter's",
        ),
        (
            masking.least_cohort < charter.least_cohort,
            f"least_cohort is {masking.least_cohort}, the charter's is {charter.least_cohort}",
        ),
        (
            masking.colluders != charter.assumed_colluders,
            f"colluders is {masking.colluders}, the charter assumes {charter.assumed_colluders}",
        ),
    )
    return tuple(text for is_wrong, text in rules if is_wrong)


def _bound_mistakes(plan: Plan, bounds: PlanBounds) -> tuple[str, ...]:
    masking, training, method, phases = plan.masking, plan.training, plan.method, plan.phases
    windows = (phases.forming, phases.training, phases.collecting, phases.unmasking, phases.key_setup)
    most: tuple[tuple[str, float, float], ...] = (
        ("rounds", plan.rounds, bounds.most_rounds),
        ("rank", plan.adapter.rank, bounds.most_rank),
        ("alpha", plan.adapter.alpha, bounds.most_alpha),
        ("learning_rate", training.learning_rate, bounds.most_learning_rate),
        ("server_learning_rate", method.server_learning_rate, bounds.most_server_learning_rate),
        ("steps_per_round", training.steps_per_round, bounds.most_steps_per_round),
        ("batch_size", training.batch_size, bounds.most_batch_size),
        ("max_length", training.max_length, bounds.most_length),
        ("element_clip", masking.element_clip, bounds.most_element_clip),
        ("max_update_norm", masking.max_update_norm, bounds.most_update_norm),
        ("weight_cap", masking.weight_cap, bounds.most_weight_cap),
        ("most_participants", masking.most_participants, bounds.most_participants),
        ("rounds_per_epoch", masking.rounds_per_epoch, bounds.most_rounds_per_epoch),
        ("window_seconds", max(limits.window_seconds for limits in windows), bounds.most_window_seconds),
        ("gate_loss_rise", plan.gate.loss_rise, bounds.most_gate_loss_rise),
    )
    over = [f"{name} is {value}, the charter allows at most {bound}" for name, value, bound in most if value > bound]
    return (
        *over,
        *_size_mistakes(plan, bounds),
        *_choice_mistakes("method", method.name, bounds.methods),
        *_choice_mistakes("server_optimizer", method.server_optimizer, bounds.server_optimizers),
        *(("the charter does not allow manifests to name the survivors",) if _names_too_much(plan, bounds) else ()),
    )


def _size_mistakes(plan: Plan, bounds: PlanBounds) -> tuple[str, ...]:
    """What follows from several fields together; fields that contradict each other are `Plan.check`'s to name."""
    mistakes: list[str] = []
    try:
        parameters = plan.layout().parameters
        if parameters > bounds.most_parameters:
            mistakes.append(f"the adapter has {parameters} parameters, the charter allows {bounds.most_parameters}")
    except AccordError:
        pass
    if plan.masking.lanes >= 1 and plan.masking.most_participants >= 1:
        steps = lane_limit(plan.masking.lanes, plan.masking.most_participants)
        if steps < bounds.least_lane_limit:
            mistakes.append(
                f"{plan.masking.lanes} lanes for {plan.masking.most_participants} participants leave {steps} steps an "
                f"element, the charter asks for {bounds.least_lane_limit}"
            )
    return tuple(mistakes)


def _choice_mistakes(name: str, value: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    if not allowed or value in allowed:
        return ()
    return (f"{name} {value!r} is not among the charter's: {', '.join(allowed)}",)


def _names_too_much(plan: Plan, bounds: PlanBounds) -> bool:
    return plan.name_survivors and not bounds.allow_named_survivors
