"""What a site refuses: every bound of its policy and of the charter, alone and all at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.adapters import AdapterSpec, LinearLayer
from common.basemodel import BaseModel
from common.charter import CHARTER_FORM, USUAL_BOUNDS, Charter, CharterMember
from common.domains import PlanDomain
from common.errors import BaseModelMismatch, ClockWrong, PolicyRefusal
from common.instruction_updates import Updates
from common.instructions import (
    DomainShare,
    DomainWeight,
    InstructionSet,
    PromptForm,
    Task,
    Template,
    chat_instruction_set,
)
from common.plan import Gate, Masking, Method, PhaseLimits, Phases, Plan, Training
from participant import guard
from participant.guard import DayLedger, Transfer
from participant.hours import Hours, parse_opening
from participant.policy import (
    AdapterBounds,
    DailyLimits,
    InstructionSetBounds,
    MaskingBounds,
    Policy,
    TrainingBounds,
)

BASE_MODEL = BaseModel(
    name="tiny",
    digest="ab" * 32,
    architecture="LlamaForCausalLM",
    layers=(LinearLayer("model.layers.0.self_attn.q_proj", 16, 16), LinearLayer("model.layers.0.mlp.up_proj", 64, 16)),
    parameters=2000,
    dtype="F32",
)
SITES = ("bank", "clinic", "newsroom", "school")
CHARTER = Charter(
    federation="example",
    members=tuple(CharterMember(site, f"accord://example/participants/{site}", (), None) for site in SITES),
    coordinator_public_key="cd" * 32,
    least_cohort=3,
    colluders=None,
    base_model_digests=(),
    bounds=USUAL_BOUNDS,
    form=CHARTER_FORM,
)
LIMITS = PhaseLimits(quorum=3, window_seconds=60)
PLAN = Plan(
    run="tune",
    run_id="ef" * 32,
    federation="example",
    charter_digest=CHARTER.digest,
    coordinator_public_key="cd" * 32,
    base_model=BASE_MODEL,
    adapter=AdapterSpec(rank=8, alpha=16.0, target_modules=("q_proj",)),
    rounds=3,
    method=Method(),
    training=Training(learning_rate=5e-4, steps_per_round=10, batch_size=8, max_length=512, seed=0),
    phases=Phases(LIMITS, LIMITS, LIMITS, LIMITS, LIMITS),
    masking=Masking(
        least_cohort=3,
        most_participants=4,
        rounds_per_epoch=16,
        element_clip=0.01,
        max_update_norm=1.0,
        weight_cap=1000,
        lanes=4,
        colluders=1,
    ),
    gate=Gate(loss_rise=0.1, most_failed_rounds=3),
    instruction_set=chat_instruction_set().to_json(),
)
TRANSFER = guard.transfer_of(PLAN)
# Every bound is exactly what PLAN asks for.
POLICY = Policy(
    base_models=frozenset({BASE_MODEL.digest}),
    methods=frozenset({"fedit"}),
    adapter=AdapterBounds(most_rank=8, modules=frozenset({"q_proj"}), most_parameters=256),
    masking=MaskingBounds(least_cohort=3, most_element_clip=0.01, most_update_norm=1.0, least_colluders=0),
    training=TrainingBounds(
        most_learning_rate=5e-4, most_steps_per_round=10, most_batch_size=8, most_length=512
    ),
    most_rounds_in_a_run=3,
    instruction_set=InstructionSetBounds(most_template_characters=21),
    daily=DailyLimits(rounds=2, upload_bytes=TRANSFER.upload_bytes, download_bytes=TRANSFER.download_bytes),
    hours=Hours(UTC, parse_opening("mon-fri 19:00-07:00")),
    most_records=1000,
)  # fmt: skip
# A busy machine is no failure of the guard.
UNHURRIED = settings(deadline=None, max_examples=40)
MONDAY_NIGHT = datetime(2026, 1, 5, 22, 0, tzinfo=UTC)
MONDAY_NOON = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
MONDAY = DayLedger(date(2026, 1, 5))


def changed(value, path: str, to):
    """A copy of nested frozen values with one field changed."""
    name, _, rest = path.partition(".")
    return replace(value, **{name: changed(getattr(value, name), rest, to) if rest else to})


def review(plan: Plan, *, policy: Policy = POLICY, charter: Charter = CHARTER, participant: str = "bank") -> None:
    guard.review(plan, policy=policy, charter=charter, participant=participant)


def refused_fields(plan: Plan, **others) -> set[str]:
    with pytest.raises(PolicyRefusal) as caught:
        review(plan, **others)
    named = set(caught.value.metadata["fields"].split(","))
    for name in named:
        assert f"{name}: " in str(caught.value)
    return named


def test_a_plan_exactly_at_every_bound_is_accepted():
    review(PLAN)


def test_a_site_may_keep_away_from_domain_adapters_and_share_in_all_others():
    policy = changed(POLICY, "adapter.may_be_of_a_domain", False)
    review(PLAN, policy=policy)
    assert "domain" in refused_fields(replace(PLAN, domain="clinic"), policy=policy)
    assert "domain" not in refused_fields(replace(PLAN, domain="clinic"))


# --- a plan looser than the policy in any one field ----------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A bound of the policy, the plan's field that it bounds, values beyond it, and the field that is named.

    lifted: bounds that also depend on the field and would be named too.
    """

    bound: str
    field: str
    beyond: st.SearchStrategy
    named: str = ""
    lifted: tuple[str, ...] = ()


def over(value: float) -> st.SearchStrategy:
    return st.floats(value, 1e3 * value, exclude_min=True, allow_nan=False)


SIZES = ("adapter.most_parameters", "daily.upload_bytes", "daily.download_bytes")
CASES = [
    Case("base_models", "base_model.digest", st.text("0123456789abcdef", min_size=64, max_size=64), "base_model"),
    Case("methods", "method.name", st.sampled_from(["ffa_lora", "rolora"])),
    Case("adapter.most_rank", "adapter.rank", st.integers(9, 16), lifted=SIZES),
    Case("adapter.modules", "adapter.target_modules", st.just(("q_proj", "up_proj")), lifted=SIZES),
    Case("adapter.most_parameters", "adapter.rank", st.integers(9, 16), "adapter.parameters",
         lifted=("adapter.most_rank", *SIZES[1:])),
    Case("daily.upload_bytes", "adapter.rank", st.integers(9, 16), "transfer.upload",
         lifted=("adapter.most_rank", "adapter.most_parameters", "daily.download_bytes")),
    Case("daily.download_bytes", "adapter.rank", st.integers(9, 16), "transfer.download",
         lifted=("adapter.most_rank", "adapter.most_parameters", "daily.upload_bytes")),
    Case("masking.most_element_clip", "masking.element_clip", over(0.01)),
    Case("masking.most_update_norm", "masking.max_update_norm", over(1.0)),
    Case("training.most_learning_rate", "training.learning_rate", st.floats(5e-4, 0.01, exclude_min=True)),
    Case("training.most_steps_per_round", "training.steps_per_round", st.integers(11, 100_000)),
    Case("training.most_batch_size", "training.batch_size", st.integers(9, 1024)),
    Case("training.most_length", "training.max_length", st.integers(513, 131_072)),
    Case("most_rounds_in_a_run", "rounds", st.integers(4, 1000)),
]  # fmt: skip

# Bounds that a plan alone cannot break by one field; each has a test of its own below, privacy's beside its parts.
ELSEWHERE = {
    "adapter.may_be_of_a_domain",
    "masking.least_cohort",
    "masking.least_colluders",
    "instruction_set.most_template_characters",
    "instruction_set.placeholders",
    "daily.rounds",
    "hours.time_zone",
    "hours.openings",
    "most_records",
    "privacy",
}


def lifted(policy: Policy, bounds: tuple[str, ...]) -> Policy:
    for bound in bounds:
        policy = changed(policy, bound, 10**9 if bound == "adapter.most_rank" else None)
    return policy


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.bound)
def test_a_plan_looser_in_one_field_is_refused_and_the_field_is_named(case):
    policy = lifted(POLICY, case.lifted)

    @UNHURRIED
    @given(case.beyond)
    def refused(value):
        plan = changed(PLAN, case.field, value)
        assert refused_fields(plan, policy=policy, charter=replace(CHARTER, bounds=LOOSE)) - {"charter"} == {
            case.named or case.field
        }

    refused()


LOOSE = replace(USUAL_BOUNDS, most_element_clip=1e9, most_update_norm=1e9)


def leaves(value, prefix: str = "") -> set[str]:
    if not is_dataclass(value):
        return {prefix.removesuffix(".")}
    return set().union(*(leaves(getattr(value, item.name), f"{prefix}{item.name}.") for item in fields(value)))


def test_every_bound_of_the_policy_has_a_case():
    assert {case.bound for case in CASES} | ELSEWHERE == leaves(POLICY)


@pytest.mark.parametrize("field", ["masking.element_clip", "masking.max_update_norm", "training.learning_rate"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_compares_with_nothing_is_refused(field, value):
    assert field in refused_fields(changed(PLAN, field, value))


@UNHURRIED
@given(st.sets(st.sampled_from(CASES[7:]), min_size=1), st.data())
def test_every_reason_is_listed(cases, data):
    plan = PLAN
    for case in cases:
        plan = changed(plan, case.field, data.draw(case.beyond))
    assert refused_fields(plan, charter=replace(CHARTER, bounds=LOOSE)) - {"charter"} == {case.field for case in cases}


@UNHURRIED
@given(st.integers(4, 1000))
def test_a_smaller_cohort_than_the_sites_is_refused(least):
    assert refused_fields(PLAN, policy=changed(POLICY, "masking.least_cohort", least)) == {"masking.least_cohort"}


def test_fewer_assumed_colluders_than_the_sites_are_refused():
    review(PLAN, policy=changed(POLICY, "masking.least_colluders", 1))
    assert refused_fields(PLAN, policy=changed(POLICY, "masking.least_colluders", 2)) == {"masking.colluders"}


def test_a_plan_that_counts_its_colluders_among_fewer_than_the_charters_members_is_refused():
    """Three of the four would be none: the site asks its own copy of the charter."""
    with pytest.raises(PolicyRefusal, match="colluders is 0, the charter assumes 1"):
        review(changed(PLAN, "masking.colluders", 0))


def test_any_base_model_and_any_module_are_allowed_where_the_policy_says_any():
    policy = lifted(POLICY, ("base_models", "adapter.modules", *SIZES))
    plan = changed(changed(PLAN, "base_model.digest", "99" * 32), "adapter.target_modules", ("q_proj", "up_proj"))
    review(plan, policy=policy)


def test_a_module_that_the_base_model_lacks_is_refused_by_name():
    plan = changed(PLAN, "adapter.target_modules", ("q_proj", "o_proj"))
    policy = changed(POLICY, "adapter.modules", frozenset({"q_proj", "o_proj"}))
    assert refused_fields(plan, policy=policy) == {"adapter.target_modules"}


def test_what_a_coordinator_wrote_is_shown_short_and_escaped():
    with pytest.raises(PolicyRefusal) as caught:
        review(changed(PLAN, "method.name", "evil\n\x1b[2J" + "x" * 10_000))
    assert "\\n\\x1b" in str(caught.value)
    assert len(str(caught.value)) < 1000


# --- instruction sets ----------------------------------------------------------------------------------------------


def instruction_set(**template) -> InstructionSet:
    usual = {"prompt": "{instruction}\n{input}", "prompt_without_input": "{instruction}"}
    return InstructionSet(
        form=PromptForm.CHAT, templates=tuple(Template(task=task, **{**usual, **template}) for task in Task)
    )


LOOSE_TEMPLATES = changed(POLICY, "instruction_set.most_template_characters", 1000)
LEAKING = [
    (instruction_set(prompt="{instruction} {input} {label}"), "'label'"),
    (instruction_set(system="Records of {path}"), "'path'"),
    (instruction_set(labels=("yes", "{id}")), "'id'"),
]


@pytest.mark.parametrize(("templates", "named"), LEAKING)
def test_a_template_that_asks_for_other_fields_is_refused_in_plan_and_round(templates, named):
    plan = replace(PLAN, instruction_set=templates.to_json())
    with pytest.raises(PolicyRefusal, match=named):
        review(plan, policy=LOOSE_TEMPLATES)
    with pytest.raises(PolicyRefusal, match=named):
        guard.review_round(PLAN, policy=LOOSE_TEMPLATES, instruction_set=templates)


def test_a_placeholder_that_the_site_does_not_agree_to_is_refused():
    policy = changed(LOOSE_TEMPLATES, "instruction_set.placeholders", frozenset({"instruction", "input", "output"}))
    plan = replace(PLAN, instruction_set=instruction_set(system="You work for {domain}.").to_json())
    review(plan, policy=LOOSE_TEMPLATES)
    assert refused_fields(plan, policy=policy) == {"instruction_set"}


@UNHURRIED
@given(st.integers(1, 1000), st.sampled_from(["prompt", "prompt_without_input", "system"]))
def test_a_long_template_is_refused(extra, part):
    text = "{instruction} {input}" + "x" * extra
    plan = replace(PLAN, instruction_set=instruction_set(**{part: text if part != "system" else "x" * 22}).to_json())
    assert refused_fields(plan) == {"instruction_set"}


def test_an_instruction_set_that_is_none_is_refused():
    assert refused_fields(replace(PLAN, instruction_set="{}")) == {"instruction_set"}


def test_a_round_with_the_instruction_set_of_its_plan_is_accepted():
    guard.review_round(PLAN, policy=POLICY, instruction_set=InstructionSet.from_json(PLAN.instruction_set))


UPDATED_PLAN = replace(
    PLAN, domains=(PlanDomain("bank"),), updates=Updates(), instruction_set=instruction_set(name="own").to_json()
)


def used_in_a_round(**changes: Any) -> InstructionSet:
    return replace(InstructionSet.from_json(UPDATED_PLAN.instruction_set), **changes)


def test_a_round_of_a_plan_with_updates_may_change_numbers():
    shares = (DomainShare("bank", 1.0, 100.0),)
    templates = tuple(replace(one, probability=1.0, is_served=True) for one in used_in_a_round().templates)
    used = used_in_a_round(shares=shares, sites=3, version=2, templates=templates)
    guard.review_round(UPDATED_PLAN, policy=LOOSE_TEMPLATES, instruction_set=used)


@pytest.mark.parametrize(
    ("plan", "used", "why"),
    [
        (PLAN, replace(InstructionSet.from_json(PLAN.instruction_set), version=2), "the plan has no updates"),
        (UPDATED_PLAN, instruction_set(name="own", system="Speak like a pirate."), "a template that the plan has not"),
        (UPDATED_PLAN, used_in_a_round(form=PromptForm.PLAIN), "more than updates may change"),
        (UPDATED_PLAN, used_in_a_round(domain_weights=(DomainWeight("bank", 2.0),)), "more than updates may change"),
        (
            UPDATED_PLAN,
            used_in_a_round(shares=(DomainShare("court", 1.0, 100.0),), sites=3),
            "a domain that the plan has not",
        ),
    ],
    ids=["no updates", "another text", "another form", "other weights", "another domain"],
)
def test_a_round_that_changes_more_than_its_plan_says_is_refused(plan, used, why):
    with pytest.raises(PolicyRefusal, match=why):
        guard.review_round(plan, policy=LOOSE_TEMPLATES, instruction_set=used)


@pytest.mark.parametrize(
    "offset", [-guard.MOST_CLOCK_SKEW, timedelta(seconds=PLAN.phases.training.window_seconds) + guard.MOST_CLOCK_SKEW]
)
def test_a_deadline_at_the_very_edge_of_the_plans_window_is_accepted_and_one_beyond_it_is_not(offset):
    now = datetime(2026, 5, 4, 12, tzinfo=UTC)
    guard.review_deadline(PLAN, deadline=now + offset, now=now)
    beyond = timedelta(seconds=1 if offset > timedelta(0) else -1)
    with pytest.raises(ClockWrong, match="compare the clocks") as refusal:
        guard.review_deadline(PLAN, deadline=now + offset + beyond, now=now)
    assert refusal.value.metadata["fields"] == "deadline"


# --- the charter ---------------------------------------------------------------------------------------------------

CHARTER_BREAKS: list[tuple[str, Callable[[Plan], Plan], str]] = [
    ("another charter", lambda plan: replace(plan, charter_digest="00" * 32), "charter"),
    ("another federation", lambda plan: replace(plan, federation="other"), "charter"),
    ("another coordinator key", lambda plan: replace(plan, coordinator_public_key="00" * 32), "charter"),
    ("other colluders", lambda plan: changed(plan, "masking.colluders", 0), "charter"),
    ("too few lanes for all members", lambda plan: changed(plan, "masking.most_participants", 3),
     "masking.most_participants"),
    ("more rounds than agreed", lambda plan: replace(plan, rounds=1001), "charter"),
    ("a contradiction in itself", lambda plan: changed(plan, "masking.lanes", 0), "plan"),
    ("not a number", lambda plan: changed(plan, "gate.loss_rise", float("nan")), "plan"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "change", "named"), CHARTER_BREAKS, ids=lambda item: item if isinstance(item, str) else ""
)
def test_a_plan_that_breaks_the_charter_is_refused(what, change, named):
    assert named in refused_fields(change(PLAN), policy=changed(POLICY, "most_rounds_in_a_run", 2000))


def test_a_smaller_cohort_and_another_base_model_than_the_charters_are_refused():
    charter = replace(CHARTER, least_cohort=4, base_model_digests=("77" * 32,))
    with pytest.raises(
        PolicyRefusal, match=r"base model tiny .* is not among .* least_cohort is 3, the charter's is 4"
    ):
        review(replace(PLAN, charter_digest=charter.digest), charter=charter)


def test_a_site_that_the_charter_does_not_name_takes_no_part():
    assert refused_fields(PLAN, participant="stranger") == {"charter.members"}


# --- the base model ------------------------------------------------------------------------------------------------


def test_the_base_model_is_found_by_digest_among_several():
    other = replace(BASE_MODEL, name="other", digest="55" * 32)
    own = replace(BASE_MODEL, name="our own name for it")
    assert guard.check_base_model(PLAN, [other, own]) is own


def test_another_base_model_is_refused_and_both_digests_are_shown():
    with pytest.raises(BaseModelMismatch) as caught:
        guard.check_base_model(PLAN, [replace(BASE_MODEL, name="ours", digest="55" * 32)])
    assert BASE_MODEL.digest in str(caught.value)
    assert "ours (555555555555)" in str(caught.value)


def test_a_plan_that_describes_the_same_digest_otherwise_is_refused():
    plan = changed(PLAN, "base_model.layers", (LinearLayer("model.layers.0.self_attn.q_proj", 16, 4096),))
    with pytest.raises(BaseModelMismatch, match="layers"):
        guard.check_base_model(plan, [BASE_MODEL])


# --- now -----------------------------------------------------------------------------------------------------------


def now_refused(now: datetime, today: DayLedger, *, transfer: Transfer = TRANSFER) -> set[str]:
    with pytest.raises(PolicyRefusal) as caught:
        guard.may_take_part_now(POLICY, now=now, today=today, transfer=transfer)
    return set(caught.value.metadata["fields"].split(","))


def test_within_hours_and_limits_a_site_takes_part():
    guard.may_take_part_now(POLICY, now=MONDAY_NIGHT, today=replace(MONDAY, rounds=1), transfer=TRANSFER)


def test_outside_its_hours_a_site_says_when_it_opens():
    with pytest.raises(PolicyRefusal, match="they open at 2026-01-05 19:00 UTC"):
        guard.may_take_part_now(POLICY, now=MONDAY_NOON, today=MONDAY)


def test_a_days_rounds_and_bytes_are_limits():
    assert now_refused(MONDAY_NIGHT, replace(MONDAY, rounds=2)) == {"rounds.most_in_a_day"}
    assert now_refused(MONDAY_NIGHT, replace(MONDAY, upload_bytes=1)) == {"transfer.most_upload_mebibytes_a_day"}
    assert now_refused(MONDAY_NIGHT, replace(MONDAY, download_bytes=1)) == {"transfer.most_download_mebibytes_a_day"}


def test_all_reasons_against_now_are_listed():
    assert now_refused(MONDAY_NOON, replace(MONDAY, rounds=9, upload_bytes=9, download_bytes=9)) == {
        "hours",
        "rounds.most_in_a_day",
        "transfer.most_upload_mebibytes_a_day",
        "transfer.most_download_mebibytes_a_day",
    }


def test_a_ledger_of_another_day_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="the ledger is of 2026-01-04"):
        guard.may_take_part_now(POLICY, now=MONDAY_NIGHT, today=DayLedger(date(2026, 1, 4)))


def test_a_rounds_bytes_are_those_of_its_vector_and_its_adapter():
    # 8 * 16 + 16 * 8 = 256 parameters in four lanes a word, and two tail words beside the metrics.
    assert Transfer(upload_bytes=8 * (64 + 2 + len(PLAN.masking.metric_words)), download_bytes=1024) == TRANSFER
