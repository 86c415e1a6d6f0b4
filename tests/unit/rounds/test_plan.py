"""A plan names every field that is wrong, alone and all at once, and reads back as it was written."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from common.errors import PlanInvalid
from common.masking import secagg_plan
from common.plan import METRIC_GROUPS, METRIC_WORDS, PhaseLimits, Plan, TensorClip
from common.secagg import MetricGroup
from tests.unit.rounds import made

PLAN = made.plan()


def masking(**changes) -> Plan:
    return replace(PLAN, masking=replace(PLAN.masking, **changes))


def training(**changes) -> Plan:
    return replace(PLAN, training=replace(PLAN.training, **changes))


def adapter(**changes) -> Plan:
    return replace(PLAN, adapter=replace(PLAN.adapter, **changes))


def gate(**changes) -> Plan:
    return replace(PLAN, gate=replace(PLAN.gate, **changes))


def phase(name: str, **changes) -> Plan:
    limits = replace(getattr(PLAN.phases, name), **changes)
    return replace(PLAN, phases=replace(PLAN.phases, **{name: limits}))


NAN, INFINITY = float("nan"), float("inf")
BROKEN = {
    "form 2": replace(PLAN, form=2),
    "suite 1": masking(suite=1),
    "least_cohort must be at least 3": masking(least_cohort=2),
    "most_participants is smaller": masking(most_participants=2),
    "lanes must be 1 to 8": masking(lanes=9),
    "weight_cap": masking(weight_cap=0),
    "metrics must be distinct": masking(metrics=(*METRIC_WORDS, METRIC_WORDS[0])),
    "metrics must be distinct names": masking(metrics=(*METRIC_WORDS, METRIC_GROUPS[0].words[0])),
    "metric_groups must": masking(metric_groups=(*METRIC_GROUPS, MetricGroup(METRIC_GROUPS[0].name, ("another",)))),
    "metric_groups must have": masking(metric_groups=(MetricGroup("empty", ()),)),
    "rounds_per_epoch": masking(rounds_per_epoch=257),
    "element_clip": masking(element_clip=0.0),
    "tensor_clips: 'lora_B'": masking(tensor_clips=(TensorClip("lora_B", 0.2),)),
    "tensor_clips: 'lora_A'": masking(tensor_clips=(TensorClip("lora_A", NAN),)),
    "tensor_clips: ''": masking(tensor_clips=(TensorClip("", 0.01),)),
    "max_update_norm": masking(max_update_norm=INFINITY),
    "colluders": masking(colluders=-1),
    "rounds must be at least 1": replace(PLAN, rounds=0),
    "adapter rank": adapter(rank=0),
    "adapter alpha": adapter(alpha=NAN),
    "adapts no module": adapter(target_modules=()),
    "learning_rate must": training(learning_rate=-1.0),
    "steps_per_round": training(steps_per_round=0),
    "batch_size": training(batch_size=0),
    "max_length": training(max_length=7),
    "server_learning_rate": replace(PLAN, method=replace(PLAN.method, server_learning_rate=0.0)),
    "gate.loss_rise": gate(loss_rise=-0.1),
    "gate.most_failed_rounds": gate(most_failed_rounds=0),
    "evaluation_records": replace(PLAN, evaluation_records=-1),
    "quorum of forming": phase("forming", quorum=2),
    "quorum of training": phase("training", quorum=2),
    "quorum of collecting": phase("collecting", quorum=2),
    "quorum of key_setup": phase("key_setup", quorum=2),
    **{
        f"window of {name}": phase(name, window_seconds=0)
        for name in ("forming", "training", "collecting", "unmasking", "key_setup")
    },
}


@pytest.mark.parametrize("named", BROKEN)
def test_one_broken_field_is_named_and_nothing_else_is_said(named):
    with pytest.raises(PlanInvalid) as refused:
        BROKEN[named].check()
    assert named in refused.value.message
    assert ";" not in refused.value.message


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY, 0.0, -1.0])
@pytest.mark.parametrize("field", ["element_clip", "max_update_norm"])
def test_bounds_are_positive_numbers(field, value):
    with pytest.raises(PlanInvalid, match=field):
        masking(**{field: value}).check()


def test_all_mistakes_are_said_at_once():
    wrong = replace(masking(lanes=0, weight_cap=0), rounds=0)
    with pytest.raises(PlanInvalid) as refused:
        wrong.check()
    assert all(word in refused.value.message for word in ("lanes", "weight_cap", "rounds"))


def test_the_first_tensor_clip_that_fits_holds_and_element_clip_for_the_rest():
    one, all_b = TensorClip("layers.0.self_attn.q_proj.lora_B", 0.01), TensorClip("lora_B", 0.02)
    for clips, expected in (((one, all_b), [0.1, 0.01]), ((all_b, one), [0.1, 0.02]), ((), [0.1, 0.1])):
        made = masking(tensor_clips=clips)
        made.check()
        assert [slot.clip for slot in secagg_plan(made, bytes(32)).slots_of(1)] == expected
        assert Plan.from_bytes(made.to_bytes()) == made


def test_a_plan_reads_back_byte_for_byte():
    PLAN.check()
    assert Plan.from_bytes(PLAN.to_bytes()) == PLAN
    assert Plan.from_bytes(PLAN.to_bytes()).to_bytes() == PLAN.to_bytes()


def without(key: str) -> bytes:
    document = json.loads(PLAN.to_bytes())
    del document[key]
    return json.dumps(document).encode()


@pytest.mark.parametrize("key", ["run", "run_id", "masking", "phases", "base_model", "instruction_set"])
def test_a_missing_field_is_named(key):
    with pytest.raises(PlanInvalid, match=key):
        Plan.from_bytes(without(key))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"null"])
def test_what_is_no_plan_is_refused(content):
    with pytest.raises(PlanInvalid, match="the plan is not valid"):
        Plan.from_bytes(content)


def test_an_unknown_field_and_a_wrong_type_are_named():
    document = json.loads(PLAN.to_bytes())
    with pytest.raises(PlanInvalid, match="no_such_thing"):
        Plan.from_bytes(json.dumps({**document, "no_such_thing": 1}).encode())
    with pytest.raises(PlanInvalid, match="rounds"):
        Plan.from_bytes(json.dumps({**document, "rounds": "2"}).encode())


def test_limits_of_a_phase_are_a_value():
    assert PhaseLimits(3, 10) == PhaseLimits(quorum=3, window_seconds=10)
