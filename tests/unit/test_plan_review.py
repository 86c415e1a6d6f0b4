"""A plan against its charter: every bound bites on its own, at the value after the last that is allowed."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from common.adapters import AdapterSpec, LinearLayer
from common.basemodel import BaseModel
from common.charter import CHARTER_FORM, USUAL_BOUNDS, Charter, CharterMember, PlanBounds
from common.plan import Gate, Masking, Method, PhaseLimits, Phases, Plan, Training
from common.plan_review import plan_mistakes
from common.secagg.ring import lane_limit

LIMITS = PhaseLimits(quorum=3, window_seconds=60)
# 2 LoRA factors of rank 8 on a 16x16 layer.
PARAMETERS = 8 * 16 + 16 * 8
PLAN = Plan(
    run="tune",
    run_id="ef" * 32,
    federation="north",
    charter_digest="",
    coordinator_public_key="cd" * 32,
    base_model=BaseModel(
        name="tiny",
        digest="ab" * 32,
        architecture="LlamaForCausalLM",
        layers=(LinearLayer("model.layers.0.self_attn.q_proj", 16, 16),),
        parameters=2000,
        dtype="F32",
    ),
    adapter=AdapterSpec(rank=8, alpha=16.0, target_modules=("q_proj",)),
    rounds=3,
    method=Method(server_learning_rate=0.75),
    training=Training(learning_rate=5e-4, steps_per_round=10, batch_size=4, max_length=512, seed=0),
    phases=Phases(LIMITS, replace(LIMITS, window_seconds=90), LIMITS, LIMITS, LIMITS),
    masking=Masking(
        least_cohort=3,
        most_participants=5,
        rounds_per_epoch=16,
        element_clip=0.02,
        max_update_norm=2.5,
        weight_cap=1000,
        lanes=4,
        colluders=0,
    ),
    gate=Gate(loss_rise=0.1, most_failed_rounds=3),
    instruction_set="{}",
    name_survivors=True,
)
# Each bound is exactly what PLAN asks for.
TIGHT = PlanBounds(
    most_rounds=3,
    most_rank=8,
    most_alpha=16.0,
    most_parameters=PARAMETERS,
    most_learning_rate=5e-4,
    most_server_learning_rate=0.75,
    most_steps_per_round=10,
    most_batch_size=4,
    most_length=512,
    most_element_clip=0.02,
    most_update_norm=2.5,
    most_weight_cap=1000,
    least_lane_limit=lane_limit(4, 5),
    most_participants=5,
    most_rounds_per_epoch=16,
    most_window_seconds=90,
    most_gate_loss_rise=0.1,
    methods=("fedit",),
    server_optimizers=("fedavg",),
    allow_named_survivors=True,
)
TIGHTER: dict[str, Any] = {
    "least_lane_limit": lane_limit(4, 5) + 1,
    "methods": ("ffa",),
    "server_optimizers": ("fedadam",),
    "allow_named_survivors": False,
}
CHARTER = Charter(
    federation="north",
    members=tuple(CharterMember(site, f"accord://north/participants/{site}", (), None) for site in ("a", "b", "c")),
    coordinator_public_key="cd" * 32,
    least_cohort=3,
    colluders=None,
    base_model_digests=("ab" * 32,),
    bounds=TIGHT,
    form=CHARTER_FORM,
)


def under(charter: Charter, plan: Plan = PLAN) -> Plan:
    return replace(plan, charter_digest=charter.digest)


def tightened(name: str) -> PlanBounds:
    value: Any = getattr(TIGHT, name)
    below = value - 1 if isinstance(value, int) else value * 0.99 if isinstance(value, float) else None
    changes: dict[str, Any] = {name: TIGHTER.get(name, below)}
    return replace(TIGHT, **changes)


def test_a_plan_that_is_exactly_at_every_bound_keeps_to_the_charter():
    assert plan_mistakes(under(CHARTER), CHARTER) == ()


@pytest.mark.parametrize("name", [field.name for field in fields(PlanBounds)])
def test_every_bound_bites_alone(name):
    charter = replace(CHARTER, bounds=tightened(name))

    assert len(plan_mistakes(under(charter), charter)) == 1


def test_empty_choices_allow_what_is_known():
    charter = replace(CHARTER, base_model_digests=(), bounds=replace(TIGHT, methods=(), server_optimizers=()))

    assert plan_mistakes(under(charter), charter) == ()


@pytest.mark.parametrize("phase", ["forming", "training", "collecting", "unmasking", "key_setup"])
def test_the_window_of_every_phase_is_bounded(phase):
    plan = under(CHARTER, replace(PLAN, phases=replace(PLAN.phases, **{phase: PhaseLimits(3, 91)})))

    assert plan_mistakes(plan, CHARTER) == ("window_seconds is 91, the charter allows at most 90",)


@pytest.mark.parametrize(
    ("charter", "word"),
    [
        (replace(CHARTER, federation="south"), "federation"),
        (replace(CHARTER, coordinator_public_key="00" * 32), "coordinator_public_key"),
        (replace(CHARTER, base_model_digests=("00" * 32,)), "base model tiny"),
        (replace(CHARTER, least_cohort=4), "least_cohort is 3"),
        (replace(CHARTER, colluders=1), "colluders is 0, the charter assumes 1"),
    ],
)
def test_who_and_what_a_plan_is_for_must_be_the_charters(charter, word):
    (mistake,) = plan_mistakes(under(charter), charter)

    assert word in mistake


def test_a_plan_made_under_another_charter_is_not_this_ones():
    (mistake,) = plan_mistakes(under(replace(CHARTER, least_cohort=4)), CHARTER)

    assert "made under charter" in mistake


def test_everything_is_said_at_once():
    charter = replace(CHARTER, bounds=replace(TIGHT, most_rounds=1, most_rank=1, methods=("ffa",)))

    assert len(plan_mistakes(under(charter), charter)) == 3


def test_the_usual_bounds_allow_a_usual_plan():
    charter = replace(CHARTER, bounds=USUAL_BOUNDS)

    assert plan_mistakes(replace(under(charter), name_survivors=False), charter) == ()
