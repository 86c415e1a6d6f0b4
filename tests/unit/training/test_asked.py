"""What a round measures of a site's records, and what the site says beforehand that it will measure: the same."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import DataInvalid
from common.instructions import Task
from common.plan import HELD_OUT_GROUP, METRIC_GROUPS, Plan
from common.secagg import MetricGroup
from participant.trainer import WorkerTrainer, contribution_of, metric_groups_of
from participant.training.asked import asked_of
from participant.training.data import Chat, Exchange, Record
from participant.training.job import DataSettings, EvaluationSettings, Resources
from participant.training.result import DataReport, DomainScores, JobResult, TrainingFigures
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
        (Task.CLASSIFICATION, {}, {HELD_OUT_GROUP, "classification"}),
        (Task.NER, {}, {HELD_OUT_GROUP, "ner"}),
        (Task.INSTRUCTION, {}, {HELD_OUT_GROUP, "instruction"}),
        (Task.INSTRUCTION, {"instruction_records": 0}, {HELD_OUT_GROUP}),
        (Task.NER, {"ner_records": 0}, {HELD_OUT_GROUP}),
        (Task.NER, {"loss_records": 0}, {"ner"}),
        (Task.CLASSIFICATION, {"loss_records": 0}, set()),
    ],
)
def test_a_group_is_filled_by_records_whose_metric_is_measured_here(task, changes, groups):
    asked = asked_of([record(1, task)], replace(ALL, **changes))
    assert metric_groups_of(asked) == groups


def test_free_answers_to_a_conversation_are_not_measured():
    asked = asked_of([record(1, Task.INSTRUCTION, is_chat=True)], ALL)
    assert metric_groups_of(asked) == {HELD_OUT_GROUP}


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
    assert trainer.metric_groups() == trainer.metric_groups() == {HELD_OUT_GROUP, "classification"}


def test_a_site_that_holds_nothing_out_declares_nothing(tmp_path):
    assert trainer_over(tmp_path, rows_of(20, label="one"), held_out_fraction=0.0).metric_groups() == frozenset()


def test_files_that_cannot_be_read_are_said(tmp_path):
    trainer = trainer_over(tmp_path, [])
    with pytest.raises(DataInvalid):
        trainer.metric_groups()


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
    assert filled == metric_groups_of(asked)
