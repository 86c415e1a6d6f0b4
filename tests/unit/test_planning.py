"""From what an operator asks for to a plan: every default, and every reason to refuse."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from common.adapters import LinearLayer
from common.basemodel import BaseModel
from common.charter import CHARTER_FORM, USUAL_BOUNDS, Charter, CharterMember
from common.domains import PlanDomain
from common.errors import PlanInvalid
from common.instructions import InstructionSet, PromptForm, chat_instruction_set
from common.masking import secagg_plan
from common.plan import PREFERENCE_METRICS, PhaseLimits, Plan, TensorClip
from common.secagg import RoundKind
from common.secagg.ring import lane_limit
from common.sent import sent_vectors
from coordinator.planning import PhaseChoice, PlanSettings, RunIdentity, all_linear, make_plan

KEY = "cd" * 32
MODEL = BaseModel(
    name="made-up",
    digest="ab" * 32,
    architecture="MadeUpForCausalLM",
    layers=tuple(
        LinearLayer(f"model.layers.{index}.{part}", 24, 16)
        for index in range(2)
        for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
    ),
    parameters=4096,
    dtype="F32",
)
IDENTITY = RunIdentity(run="support", run_id="ef" * 32, federation="lab", coordinator_public_key=KEY)
PLENTY = 10**12


def charter(members: int = 4, **changes: object) -> Charter:
    """Made without certificates: planning looks at names and bounds."""
    base = Charter(
        federation="lab",
        members=tuple(
            CharterMember(f"site-{n:04d}", f"accord://lab/participants/site-{n:04d}", (), None) for n in range(members)
        ),
        coordinator_public_key=KEY,
        least_cohort=3,
        colluders=None,
        base_model_digests=(),
        bounds=USUAL_BOUNDS,
        form=CHARTER_FORM,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def plan(settings: PlanSettings | None = None, under: Charter | None = None, most_upload_bytes: int = PLENTY) -> Plan:
    return make_plan(
        settings or PlanSettings(MODEL),
        identity=IDENTITY,
        charter=under or charter(),
        most_upload_bytes=most_upload_bytes,
    )


def mistakes(settings: PlanSettings, under: Charter | None = None, most_upload_bytes: int = PLENTY) -> str:
    with pytest.raises(PlanInvalid) as refused:
        plan(settings, under, most_upload_bytes)
    return refused.value.message


def test_an_empty_request_takes_the_defaults_that_the_api_names():
    made = plan()
    assert made.adapter.rank == 8
    assert made.adapter.alpha == 16
    assert made.adapter.target_modules == ("down_proj", "q_proj", "v_proj")
    assert made.rounds == 3
    assert (made.method.name, made.method.server_optimizer, made.method.server_learning_rate) == ("fedit", "fedavg", 1)
    assert (made.training.learning_rate, made.training.steps_per_round) == (5e-4, 10)
    assert (made.training.batch_size, made.training.max_length) == (8, 512)
    assert made.masking.element_clip == pytest.approx(1.25 * 5e-4 * 10)
    assert made.masking.max_update_norm == pytest.approx(1.25 * 5e-3 * math.sqrt(made.layout().parameters))
    assert (made.masking.weight_cap, made.masking.rounds_per_epoch) == (1000, 16)
    assert (made.masking.least_cohort, made.masking.most_participants) == (3, 4)
    assert (made.gate.loss_rise, made.gate.most_failed_rounds) == (0.1, 3)
    assert made.phases.forming == PhaseLimits(3, 120)
    assert made.phases.training == PhaseLimits(3, 21_600)
    assert made.phases.collecting == PhaseLimits(3, 1800)
    assert made.phases.unmasking == PhaseLimits(3, 600)
    assert made.phases.key_setup == PhaseLimits(3, 300)
    assert not made.name_survivors


def test_a_tensor_clip_that_fits_no_tensor_is_a_mistake():
    clips = (TensorClip("lora_B", 1e-3), TensorClip("lora_C", 1e-3))
    assert "no tensor with 'lora_C' in its name" in mistakes(PlanSettings(MODEL, tensor_clips=clips))
    assert plan(PlanSettings(MODEL, tensor_clips=clips[:1])).masking.tensor_clips == clips[:1]


def test_a_plan_reads_back_as_it_was_written():
    made = plan(PlanSettings(MODEL, rank=4, seed=7))
    assert Plan.from_bytes(made.to_bytes()) == made


def test_what_is_said_is_kept():
    made = plan(
        PlanSettings(
            MODEL,
            rank=4,
            target_modules=("q_proj",),
            training=PhaseChoice(quorum=4),
            unmasking=PhaseChoice(window_seconds=60),
            element_clip=0.5,
            learning_rate=1e-3,
        )
    )
    assert made.adapter.target_modules == ("q_proj",)
    assert made.phases.training == PhaseLimits(4, 21_600)
    assert made.phases.unmasking == PhaseLimits(3, 60)
    assert made.masking.element_clip == 0.5


@pytest.mark.parametrize(("members", "lanes"), [(3, 4), (10, 4), (11, 3), (100, 3), (1000, 3)])
def test_an_element_is_two_bytes_up_to_ten_members_and_less_than_three_beyond(members, lanes):
    made = plan(under=charter(members))
    assert made.masking.lanes == lanes
    assert lane_limit(lanes, members) >= 512


def test_the_cohort_is_never_below_the_charters():
    assert plan(under=charter(6, least_cohort=5)).masking.least_cohort == 5
    assert "least_cohort is 4, the charter's is 5" in mistakes(
        PlanSettings(MODEL, least_cohort=4), charter(6, least_cohort=5)
    )
    assert "least_cohort must be at least 3" in mistakes(PlanSettings(MODEL, least_cohort=2))


def test_colluders_are_the_charters():
    assert plan(under=charter(colluders=1)).masking.colluders == 1
    assert plan(under=charter(colluders=0)).masking.colluders == 0


@pytest.mark.parametrize(("members", "colluders"), [(3, 0), (4, 1), (5, 1), (6, 1), (7, 2), (10, 3), (100, 33)])
def test_colluders_are_a_third_of_the_charters_members_however_few_may_take_part(members, colluders):
    """A coordinator chooses who is in a roster: a small one must not make the number smaller."""
    made = plan(PlanSettings(MODEL, most_participants=max(3, colluders + 2)), charter(members))
    assert made.masking.colluders == colluders
    masked = secagg_plan(made, bytes(32))
    for roster in range(made.masking.least_cohort, made.masking.most_participants + 1):
        assert masked.thresholds(roster).colluders == colluders


@pytest.mark.parametrize(("members", "least"), [(3, 3), (4, 3), (5, 3), (7, 4), (10, 5), (100, 35)])
def test_a_run_waits_by_default_for_as_many_as_there_can_be_thresholds_for(members, least):
    """Small federations need not have everybody there; of ten members, with three that collude, any five will do."""
    made = plan(under=charter(members))
    assert made.masking.least_cohort == made.phases.forming.quorum == made.phases.key_setup.quorum == least
    masked = secagg_plan(made, bytes(32))
    assert masked.thresholds(least).survivors == least


def test_a_roster_that_is_too_small_for_its_colluders_is_refused_with_what_to_do():
    few = plan(PlanSettings(MODEL, least_cohort=3), charter(10))
    with pytest.raises(
        PlanInvalid, match=r"4 members cannot withstand 3 colluders: 5 must survive\. Have more members "
    ):
        secagg_plan(few, bytes(32)).thresholds(4)
    assert "masking: 4 members cannot withstand 3 colluders" in mistakes(
        PlanSettings(MODEL, least_cohort=3, most_participants=4), charter(10)
    )


def test_a_quorum_that_nobody_can_reach_is_refused_at_once():
    assert "quorum of collecting is 5, and at most 4 can take part" in mistakes(
        PlanSettings(MODEL, collecting=PhaseChoice(quorum=5))
    )


def test_a_quorum_below_the_cohort_is_refused():
    assert "quorum of training is below least_cohort" in mistakes(PlanSettings(MODEL, training=PhaseChoice(quorum=2)))


def test_thresholds_that_no_cohort_can_meet_are_refused():
    assert "masking:" in mistakes(PlanSettings(MODEL), charter(3, colluders=2))


def test_what_this_version_cannot_run_is_refused_with_what_it_can():
    message = mistakes(PlanSettings(MODEL, method="magic", server_optimizer="fedmagic"))
    assert "method 'magic' is not known; known: fedit" in message
    assert "server optimiser 'fedmagic' is not known; known: fedavg" in message


def test_a_model_or_a_module_outside_the_agreement_is_refused():
    assert MODEL.name in mistakes(PlanSettings(MODEL), charter(base_model_digests=("00" * 32,)))
    assert "k_proj" in mistakes(PlanSettings(MODEL, target_modules=("k_proj",)))


def test_bounds_of_the_charter_hold():
    message = mistakes(PlanSettings(MODEL, rounds=5000, rank=9999, learning_rate=0.5))
    assert "rounds is 5000, the charter allows at most 1000" in message
    assert "rank is 9999" in message
    assert "learning_rate is 0.5" in message
    assert "name the survivors" in mistakes(PlanSettings(MODEL, name_survivors=True))


def test_an_update_that_the_coordinator_would_refuse_is_refused_before_anybody_trains():
    message = mistakes(PlanSettings(MODEL), most_upload_bytes=1000)
    assert "limits.upload_bytes is 1000" in message


def test_figures_that_are_no_numbers_are_refused():
    assert "learning_rate must be a positive number" in mistakes(PlanSettings(MODEL, learning_rate=math.nan))
    assert "element_clip must be a positive number" in mistakes(PlanSettings(MODEL, element_clip=-1.0))


def test_mistakes_are_listed_once_each():
    message = mistakes(PlanSettings(MODEL, rounds=5000, method="magic", least_cohort=2))
    parts = message.split("; ")
    assert len(parts) == len(set(parts)) >= 3


def test_the_instruction_set_is_the_built_in_one_or_the_operators_and_a_broken_one_is_refused():
    assert plan().instruction_set == chat_instruction_set().to_json()
    own = InstructionSet(PromptForm.PLAIN, chat_instruction_set().templates).to_json()
    assert plan(PlanSettings(MODEL, instruction_set=own)).instruction_set == own
    message = mistakes(PlanSettings(MODEL, instruction_set='{"form": "song"}', rounds=5000))
    assert "instruction_set:" in message
    assert "rounds is 5000" in message


def test_all_linear_names_each_kind_of_layer_once():
    assert all_linear(MODEL) == ("down_proj", "q_proj", "v_proj")


def test_a_core_or_heads_are_planned_in_one_line_and_sent_alone():
    core = plan(PlanSettings(MODEL, method="core", rank=4))
    heads = plan(PlanSettings(MODEL, method="ravan", rank=4, heads=3))

    assert [sum(slot.size for slot in secagg_plan(made, bytes(32)).slots_of(1)) for made in (core, heads)] == [
        6 * 4 * 4,
        6 * 3 * 4 * 4,
    ]
    assert heads.method.heads == 3
    assert plan(PlanSettings(MODEL, method="ravan", rank=4)).method.heads == 4


def test_options_of_the_clients_reach_the_plan_and_one_that_does_not_fit_is_refused():
    made = plan(PlanSettings(MODEL, proximal_weight=0.01, alignment=0.5)).method
    assert (made.proximal_weight, made.alignment) == (0.01, 0.5)
    assert plan(PlanSettings(MODEL, method="core", control_variates=True)).method.control_variates

    assert "core leaves one frozen" in mistakes(PlanSettings(MODEL, method="core", alignment=0.5))
    assert "heads is ravan's" in mistakes(PlanSettings(MODEL, method="core", heads=2))
    assert "68 wide, more than the smaller side" in mistakes(PlanSettings(MODEL, method="ravan", rank=17))
    assert "rank 17 is larger than the smaller side" in mistakes(PlanSettings(MODEL, method="core", rank=17))


def test_a_method_takes_its_own_usual_rate_and_clips_for_what_it_sends():
    made = {name: plan(PlanSettings(MODEL, method=name)) for name in ("fedit", "ffa_lora", "rolora")}
    assert [one.training.learning_rate for one in made.values()] == [5e-4, 1.5e-3, 1.5e-3]
    parameters = {name: max(sent.parameters for sent in sent_vectors(one)) for name, one in made.items()}
    assert parameters["ffa_lora"] == parameters["rolora"] < parameters["fedit"]
    for name, one in made.items():
        assert one.masking.max_update_norm == pytest.approx(one.masking.element_clip * math.sqrt(parameters[name]))
    assert plan(PlanSettings(MODEL, method="rolora", learning_rate=1e-4)).training.learning_rate == 1e-4


def test_a_schedule_is_read_as_it_is_said():
    made = plan(PlanSettings(MODEL, method="rolora", schedule="B, B,A", phase_rounds=2))
    assert (made.method.schedule, made.method.phase_rounds) == (("B", "B", "A"), 2)
    assert "such as B,A or B,B,A" in mistakes(PlanSettings(MODEL, method="rolora", schedule="B"))
    assert "such as B,A or B,B,A" in mistakes(PlanSettings(MODEL, method="rolora", schedule="A,C"))
    assert "schedule and phase_rounds are rolora's" in mistakes(PlanSettings(MODEL, schedule="B,A"))
    assert "must be 2 to 64 rounds" in mistakes(PlanSettings(MODEL, method="rolora", phase_rounds=65))


def test_server_optimisers_take_their_usual_settings_and_no_others():
    usual = {
        "fedavg": (1.0, 0.0, 0.0, 0.0),
        "fedavgm": (1.0, 0.9, 0.0, 0.0),
        "fedadam": (1e-3, 0.9, 0.99, 1e-4),
        "fedyogi": (1e-3, 0.9, 0.99, 1e-4),
        "fedadagrad": (1e-3, 0.0, 0.0, 1e-4),
    }
    for name, expected in usual.items():
        method = plan(PlanSettings(MODEL, server_optimizer=name)).method
        assert (method.server_learning_rate, method.beta1, method.beta2, method.tau) == expected
    assert plan(PlanSettings(MODEL, server_optimizer="fedavgm", beta1=0.5)).method.beta1 == 0.5
    assert "tau is not a setting of fedavgm, set 0" in mistakes(
        PlanSettings(MODEL, server_optimizer="fedavgm", tau=1.0)
    )
    assert "beta1 of fedadam must be from 0" in mistakes(PlanSettings(MODEL, server_optimizer="fedadam", beta1=1.0))


def test_a_rate_falls_along_a_cosine_over_the_rounds_and_bounds_keep_to_the_highest():
    made = plan(PlanSettings(MODEL, rounds=5, learning_rate=1e-3, learning_rate_schedule="cosine"))
    rates = [made.training.learning_rate_in(number, rounds=made.rounds) for number in range(1, 8)]
    assert rates[:5] == pytest.approx(
        [1e-3, 1e-3 * (1 - 0.9 * (1 - math.sqrt(0.5)) / 2), 5.5e-4, 2.3180e-4, 1e-4], rel=1e-4
    )
    assert rates[5:] == [rates[4]] * 2
    assert made.masking.element_clip == pytest.approx(1.25 * 1e-3 * 10)
    constant = plan(PlanSettings(MODEL, rounds=5)).training
    assert {constant.learning_rate_in(number, rounds=5) for number in range(1, 6)} == {5e-4}
    assert "known: constant, cosine" in mistakes(PlanSettings(MODEL, learning_rate_schedule="magic"))
    assert "over 0 and at most 1" in mistakes(
        PlanSettings(MODEL, learning_rate_schedule="cosine", final_rate_fraction=1.5)
    )
    assert "with a constant rate it is 1" in mistakes(PlanSettings(MODEL, final_rate_fraction=0.5))


def test_the_product_monitor_is_fedits_and_counts_in_the_upload():
    assert sent_vectors(plan(PlanSettings(MODEL, product_probes=4)))[0].extra_elements == 4 * 6
    assert "rolora is exact, set 0" in mistakes(PlanSettings(MODEL, method="rolora", product_probes=4))
    assert "product_probes must be from 0 (off) to 64" in mistakes(PlanSettings(MODEL, product_probes=65))
    bare = secagg_plan(plan(), bytes(32)).layout(RoundKind.TRAINING, 1).bytes
    assert "limits.upload_bytes" in mistakes(PlanSettings(MODEL, product_probes=64), most_upload_bytes=bare)


def test_preference_tuning_is_one_line_and_has_a_metric_group_of_its_own():
    made = plan(PlanSettings(MODEL, objective="dpo"))
    assert (made.training.objective, made.training.dpo_beta) == ("dpo", 0.1)
    assert PREFERENCE_METRICS in made.masking.metric_groups
    usual = plan()
    assert (usual.training.objective, usual.training.dpo_beta) == ("sft", 0.0)
    assert PREFERENCE_METRICS not in usual.masking.metric_groups


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (PlanSettings(MODEL, objective="ppo"), "objective 'ppo' is not known; known: sft, dpo"),
        (PlanSettings(MODEL, dpo_beta=0.2), "dpo_beta is for objective dpo"),
        (PlanSettings(MODEL, objective="dpo", dpo_beta=-1.0), "dpo_beta must be a positive number"),
        (PlanSettings(MODEL, objective="dpo", domains=(PlanDomain("bank"),)), "goes without domains"),
    ],
)
def test_an_objective_that_is_unknown_or_does_not_fit_is_refused(settings, reason):
    assert reason in mistakes(settings)
