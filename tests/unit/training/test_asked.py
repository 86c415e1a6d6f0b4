"""What a round measures of a site's records, and what the site says beforehand that it will measure: the same."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import jsonform
from common.domains import PlanDomain
from common.errors import DataInvalid, InvalidArgument
from common.instruction_updates import Updates
from common.instructions import DomainShare, InstructionSet, Task
from common.plan import DPO, HELD_OUT_GROUP, METRIC_GROUPS, SFT, Plan
from common.secagg import MetricGroup
from coordinator.domain_planning import with_domains
from participant.trainer import WorkerTrainer, contribution_of, metric_groups_of
from participant.training.asked import asked_of
from participant.training.data import Chat, Exchange, Record
from participant.training.job import DataSettings, EvaluationSettings, Resources
from participant.training.result import (
    ArmScores,
    CellScores,
    DataReport,
    DomainCount,
    DomainScores,
    JobResult,
    TrainingFigures,
)
from participant.training.templates import Role, Turn
from tests.unit.rounds import made

ALL = EvaluationSettings(loss_records=10, ner_records=10, instruction_records=10)
CHAT = Chat((Turn(Role.USER, "Hello?"), Turn(Role.ASSISTANT, "Hello.")))


def record(number: int, task: Task, *, domain: str = "bank", is_chat: bool = False) -> Record:
    content = CHAT if is_chat else Exchange("Which?", f"this {number}", "That.")
    return Record(number, domain, task, content, f"{number:064x}")


@pytest.mark.parametrize(
    ("task", "changes", "groups"),
    [
        (
            Task.CLASSIFICATION,
            {},
            {HELD_OUT_GROUP, "classification", "bank/classification", "bank/classification/score"},
        ),
        (Task.NER, {}, {HELD_OUT_GROUP, "ner", "bank/ner", "bank/ner/score"}),
        (Task.INSTRUCTION, {}, {HELD_OUT_GROUP, "instruction", "bank/instruction", "bank/instruction/score"}),
        (Task.INSTRUCTION, {"instruction_records": 0}, {HELD_OUT_GROUP, "bank/instruction"}),
        (Task.NER, {"ner_records": 0}, {HELD_OUT_GROUP, "bank/ner"}),
        (Task.NER, {"loss_records": 0}, {"ner", "bank/ner/score"}),
        (Task.CLASSIFICATION, {"loss_records": 0}, set()),
    ],
)
def test_a_group_is_filled_by_records_whose_metric_is_measured_here(task, changes, groups):
    asked = asked_of([record(1, task)], replace(ALL, **changes))
    assert metric_groups_of(asked) == groups


def test_free_answers_to_a_conversation_are_not_measured():
    asked = asked_of([record(1, Task.INSTRUCTION, is_chat=True)], ALL)
    assert metric_groups_of(asked) == {HELD_OUT_GROUP, "bank/instruction"}


def test_nothing_held_out_fills_nothing():
    assert metric_groups_of(asked_of([], ALL)) == frozenset()


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(Task), st.sampled_from(("a", "b"))), unique=True),
    st.randoms(use_true_random=False),
)
def test_the_choice_follows_from_the_records_and_not_from_their_order(rows, source):
    records = [record(number, task, domain=domain) for number, task, domain in rows]
    shuffled = source.sample(records, len(records))
    few = EvaluationSettings(loss_records=2, ner_records=1, instruction_records=3)
    assert asked_of(records, few) == asked_of(shuffled, few)


# --- the site's own files ------------------------------------------------------------------------------------------


def trainer_over(folder, rows, **settings) -> WorkerTrainer:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSettings(train_path=path, held_out_fraction=settings.pop("held_out_fraction", 0.5))
    return WorkerTrainer(data, EvaluationSettings(**settings), Resources())


def rows_of(count: int, **fields) -> list[dict[str, object]]:
    return [{"instruction": f"Which is {n}?", "output": "one", **fields} for n in range(count)]


def test_a_site_declares_what_its_files_hold_each_time_the_same(tmp_path):
    trainer = trainer_over(tmp_path, rows_of(20, label="one"))
    assert (
        trainer.metric_groups()
        == trainer.metric_groups()
        == {
            HELD_OUT_GROUP,
            "classification",
            "general/classification",
            "general/classification/score",
            "general/records",
        }
    )


def test_a_site_that_holds_nothing_out_declares_its_domains_records_alone(tmp_path):
    trainer = trainer_over(tmp_path, rows_of(20, label="one"), held_out_fraction=0.0)
    assert trainer.metric_groups() == {"general/records"}


def test_files_that_cannot_be_read_are_said(tmp_path):
    trainer = trainer_over(tmp_path, [])
    with pytest.raises(DataInvalid):
        trainer.metric_groups()


# --- whether a plan fits ---------------------------------------------------------------------------------------------


def wanting(objective: str) -> Plan:
    plan = made.plan()
    return replace(plan, training=replace(plan.training, objective=objective))


PAIRED = [{"instruction": f"Which is {n}?", "chosen": "one", "rejected": "two"} for n in range(8)]


@pytest.mark.parametrize(
    ("rows", "objective", "reason"),
    [
        (rows_of(8), DPO, r"has one answer, and this plan's objective \(dpo\) asks for pairs"),
        (PAIRED, SFT, r"this plan's objective \(sft\) asks for records with one answer"),
    ],
)
def test_a_site_whose_records_are_of_another_objective_says_so_before_the_run(tmp_path, rows, objective, reason):
    trainer = trainer_over(tmp_path, rows)
    with pytest.raises(DataInvalid, match=reason):
        trainer.check(wanting(objective))
    trainer.check(wanting(SFT if objective == DPO else DPO))


def test_a_site_that_trains_in_several_processes_declines_preference_tuning_before_the_run(tmp_path):
    trainer = replace(trainer_over(tmp_path, PAIRED), resources=Resources(processes=2))
    with pytest.raises(InvalidArgument, match=r"preference tuning \(DPO\) takes one process; set processes = 1"):
        trainer.check(wanting(DPO))


def test_a_site_without_records_of_the_runs_domain_declines(tmp_path):
    trainer = trainer_over(tmp_path, rows_of(8, domain="bank"))
    trainer.check(replace(made.plan(), domain="bank"))
    with pytest.raises(DataInvalid, match="no record of domain desk"):
        trainer.check(replace(made.plan(), domain="desk"))
    none_held_out = replace(trainer, data=replace(trainer.data, held_out_fraction=0.0))
    with pytest.raises(DataInvalid, match="holds out no record of domain bank"):
        none_held_out.check(replace(made.plan(), domain="bank"))


# --- the words themselves --------------------------------------------------------------------------------------------

SCORES = DomainScores(
    domain="bank",
    loss_sum=3.0,
    loss_tokens=4,
    loss_records=2,
    classified=5,
    correct=2,
    true_positives=6,
    false_positives=7,
    false_negatives=8,
    rouge_records=9,
    rouge_sum=1.5,
)
REPORT = DataReport(path="x", read=1, used=1, bad=0, bad_examples=(), domains=())


def result_of(scores: DomainScores = SCORES) -> JobResult:
    training = TrainingFigures(
        steps=2,
        records=8,
        distinct_records=7,
        tokens=100,
        answer_tokens=50,
        losses=(1.0, 0.5),
        seconds=1.0,
        tokens_per_second=100.0,
        resumed_at_step=0,
    )
    return JobResult(
        job_digest="x",
        scores=(scores,),
        held_out_data=REPORT,
        train_data=REPORT,
        training=training,
        adapter_digest="y",
        device="cpu",
        precision="float32",
    )


def plan_with(**masking) -> Plan:
    plan = made.plan()
    return replace(plan, masking=replace(plan.masking, **masking))


def test_every_word_of_the_plan_has_its_figure():
    assert contribution_of(result_of(), made.plan()).metrics == {
        "train_loss": 1.5,
        "train_steps": 2.0,
        "train_records": 7.0,
        "heldout_loss": 3.0,
        "heldout_tokens": 4.0,
        "classification_correct": 2.0,
        "classification_total": 5.0,
        "span_true_positives": 6.0,
        "span_false_positives": 7.0,
        "span_false_negatives": 8.0,
        "rouge_sum": 1.5,
        "rouge_total": 9.0,
    }


GROUPED = [word for group in METRIC_GROUPS for word in group.words]


@pytest.mark.parametrize("word", GROUPED)
def test_a_word_that_a_plan_calls_everyones_while_only_some_have_it_counts_nothing(word):
    """So a coordinator could open one site's figure: a word outside of all groups is always summed."""
    plan = plan_with(metrics=(word,), metric_groups=())
    assert contribution_of(result_of(), plan).metrics == {word: 0.0}


@pytest.mark.parametrize("word", [*GROUPED, "train_records", "clipped_elements"])
def test_a_word_in_another_group_than_its_own_counts_nothing(word):
    for group in METRIC_GROUPS:
        found = contribution_of(result_of(), plan_with(metrics=(), metric_groups=(MetricGroup(group.name, (word,)),)))
        assert (found.metrics[word] == 0.0) is (word not in group.words)


def test_groups_and_words_that_this_version_does_not_know_count_nothing():
    plan = plan_with(metrics=("perplexity",), metric_groups=(MetricGroup("poems", ("rhymes",)),))
    assert contribution_of(result_of(), plan).metrics == {"perplexity": 0.0, "rhymes": 0.0}


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(Task), st.booleans()), unique_by=lambda row: row[0]),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_what_a_site_fills_lies_in_groups_that_it_has_declared(rows, loss, ner, instruction):
    """Declared from the records, filled from what was asked: no figure without its declaration, and none missing."""
    chosen = EvaluationSettings(loss_records=loss, ner_records=ner, instruction_records=instruction)
    records = [record(number, task, is_chat=is_chat and task is Task.INSTRUCTION) for number, task, is_chat in rows]
    asked = asked_of(records, chosen)
    scores = DomainScores(
        domain="bank",
        loss_tokens=sum(one.has_loss for one in asked),
        classified=sum(one.has_loss and one.record.task is Task.CLASSIFICATION for one in asked),
        false_negatives=sum(one.is_answered and one.record.task is Task.NER for one in asked),
        rouge_records=sum(one.is_answered and one.record.task is Task.INSTRUCTION for one in asked),
    )
    metrics = contribution_of(result_of(scores), made.plan()).metrics
    filled = {group.name for group in METRIC_GROUPS if any(metrics[word] for word in group.words)}
    assert filled == {name for name in metric_groups_of(asked) if "/" not in name}


# --- a plan's domains ------------------------------------------------------------------------------------------------

DOMAINS = (PlanDomain("bank", tasks=(Task.NER, Task.CLASSIFICATION), most_records=60), PlanDomain("clinic"))
CELLS = (
    CellScores(
        domain="bank",
        task=Task.CLASSIFICATION,
        rows=4,
        loss=3.0,
        squares=5.0,
        tokens=9,
        nats=6.5,
        correct=2,
        classified=4,
        arms=(ArmScores(name="short", rows=2, loss=1.0, squares=1.5),),
    ),
    CellScores(domain="bank", task=Task.INSTRUCTION, rows=7, loss=3.0, rouge_total=7),
    CellScores(domain="court", task=Task.NER, rows=8, loss=4.0, true_positives=5),
)


def plan_of_domains(updates: Updates | None) -> Plan:
    plan, mistakes = with_domains(made.plan(), DOMAINS, jsonform.encode(updates, Updates) if updates else "")
    assert mistakes == []
    return plan


def result_of_domains(records: int = 80) -> JobResult:
    found = DataReport(path="x", read=1, used=1, domains=(DomainCount("bank", records), DomainCount("court", 20)))
    return replace(result_of(), cells=CELLS, train_data=found)


def test_a_plan_with_domains_has_the_words_of_its_domains_and_tasks_and_no_totals():
    found = contribution_of(result_of_domains(), plan_of_domains(None)).metrics
    assert {name: value for name, value in found.items() if value and "/" in name} == {
        "bank/classification/rows": 4.0,
        "bank/classification/loss": 3.0,
        "bank/classification/squares": 5.0,
        "bank/classification/tokens": 9.0,
        "bank/classification/nats": 6.5,
        "bank/classification/correct": 2.0,
        "bank/classification/classified": 4.0,
    }
    assert not {"heldout_loss", "classification_correct", "bank/instruction/rows", "court/ner/rows"} & found.keys()
    assert found["clinic/ner/rows"] == 0.0


def test_a_plan_with_updates_has_the_domains_sizes_up_to_their_cap_and_not_the_sites():
    found = contribution_of(result_of_domains(), plan_of_domains(Updates()))
    assert found.metrics["bank/records"] == 60.0
    assert "train_records" not in found.metrics
    few = contribution_of(result_of_domains(50), plan_of_domains(Updates()))
    assert few.metrics["bank/records"] == 50.0


def test_all_sites_weigh_alike_until_the_domains_sizes_are_known_and_then_by_their_shares():
    plan = plan_of_domains(Updates())
    assert contribution_of(result_of_domains(), plan).weight(1000) == 1.0
    used = InstructionSet.from_json(plan.instruction_set)
    shares = (DomainShare("bank", 0.25, 600.0), DomainShare("clinic", 0.75, 50.0))
    known = replace(used, shares=shares, sites=10)
    assert contribution_of(result_of_domains(), plan, known).weight(1000) == pytest.approx(0.25 * 60 / 600 * 10 / 4)
    elsewhere = replace(used, shares=(DomainShare("clinic", 1.0, 50.0),), sites=10)
    assert contribution_of(result_of_domains(), plan, elsewhere).weight(1000) == 0.25
    assert contribution_of(result_of_domains(), plan_of_domains(None)).weight(100) == 0.07
