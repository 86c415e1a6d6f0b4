from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from common.errors import TrainingStopped
from common.instructions import Task, chat_instruction_set
from common.methods import Method
from participant.training.data import Exchange, Record
from participant.training.evaluate import evaluate, label_choices, questions
from participant.training.job import EvaluationSettings, Hyperparameters, Resources
from participant.training.loop import TrainingTask, train
from participant.training.methods import client_method
from participant.training.scoring import Mention, count_spans, rouge_l
from participant.training.tokens import Encoder
from tests.tiny_model import TINY_SPEC

LABELS = ("red", "blue", "green", "deep blue", "deep green", "blu")
THINGS = ("sky", "sea", "grass", "leaf", "blood", "card", "apple", "text", "line", "user", "flu", "measles")


@pytest.fixture
def encoder(tokenizer):
    return Encoder(tokenizer, chat_instruction_set(), max_length=128)


@pytest.fixture
def classified(encoder):
    return [
        encoder.encode(
            Record(n, f"d{n % 2}", Task.CLASSIFICATION, Exchange("Which?", thing, LABELS[n % len(LABELS)]), f"{n:064x}")
        )
        for n, thing in enumerate(THINGS)
    ]


@pytest.fixture
def entities(encoder):
    return [
        encoder.encode(
            Record(
                n,
                "clinic",
                Task.NER,
                Exchange("List every Disease.", f"{thing} {'and the ' * n}", f"Disease: {thing}"),
                f"{n:064x}",
                mentions=(Mention("Disease", thing),),
            )
        )
        for n, thing in enumerate(THINGS[:7])
    ]


def teach(model, records, steps):
    """Some training, so that answers are neither all right nor all noise."""
    task = TrainingTask(
        records=records,
        weights=[1.0] * len(records),
        hyperparameters=Hyperparameters(learning_rate=2e-2, batch_size=4, steps=steps, max_length=128, seed=3),
        resources=Resources(),
        method=client_method(Method(), TINY_SPEC, round_=1),
        job_digest="x",
        checkpoint=None,
    )
    train(model, task, on_progress=lambda progress: None, should_stop=lambda: False)


def scores_of(model, held_out, encoder, *, batch_size=4, **settings):
    chosen = EvaluationSettings(**{"max_new_tokens": 12, **settings})
    asked = questions(held_out, known=held_out, encoder=encoder, settings=chosen)
    found = evaluate(
        model,
        asked,
        encoder=encoder,
        settings=chosen,
        batch_size=batch_size,
        on_progress=lambda progress: None,
        should_stop=lambda: False,
    )
    return {score.domain: score for score in found}


def greedy(model, encoder, item, max_new_tokens, allowed=None):
    """Decoding as the textbook has it: the whole text again for every token, no cache, no batch."""
    ids = list(item.ids[: item.prompt_tokens])
    answer: list[int] = []
    while len(answer) < max_new_tokens:
        with torch.inference_mode():
            logits = model.causal(input_ids=torch.tensor([ids])).logits[0, -1]
        options = (
            None
            if allowed is None
            else sorted({label[len(answer)] for label in allowed if label[: len(answer)] == tuple(answer)})
        )
        token = int(logits.argmax()) if options is None else options[int(logits[options].argmax())]
        answer.append(token)
        ids.append(token)
        if token in encoder.stop_ids:
            break
    return tuple(answer)


def test_loss_is_the_sum_over_answer_tokens_per_domain(adapted, classified, encoder):
    scores = scores_of(adapted, classified, encoder)
    for domain in ("d0", "d1"):
        total, count = 0.0, 0
        for item in (item for item in classified if item.record.domain == domain):
            ids = torch.tensor([item.ids])
            with torch.inference_mode():
                logits = adapted.causal(input_ids=ids).logits[0, item.prompt_tokens - 1 : -1]
            total += float(functional.cross_entropy(logits, ids[0, item.prompt_tokens :], reduction="sum"))
            count += item.answer_tokens
        assert scores[domain].loss_sum == pytest.approx(total, rel=1e-5)
        assert (scores[domain].loss_tokens, scores[domain].loss_records) == (count, 6)


@pytest.mark.parametrize("steps", [1, 12, 60])
def test_accuracy_is_that_of_greedy_decoding_bound_to_the_labels(adapted, classified, encoder, steps):
    teach(adapted, classified, steps)
    scores = scores_of(adapted, classified, encoder)
    for domain in ("d0", "d1"):
        group = [item for item in classified if item.record.domain == domain]
        allowed = [encoder.encode_answer(item.record, item.record.content.output) for item in group]
        right = sum(greedy(adapted, encoder, item, 20, allowed) == item.ids[item.prompt_tokens :] for item in group)
        assert (scores[domain].correct, scores[domain].classified) == (right, len(group))


@pytest.mark.parametrize("steps", [1, 15, 60])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_span_counts_are_those_of_plain_greedy_decoding_in_any_batch(adapted, entities, encoder, steps, batch_size):
    teach(adapted, entities, steps)
    score = scores_of(adapted, entities, encoder, batch_size=batch_size)["clinic"]
    counts = [
        count_spans(encoder.decode(greedy(adapted, encoder, item, 12)), item.record.mentions) for item in entities
    ]
    assert score.ner_records == len(entities)
    assert (score.true_positives, score.false_positives, score.false_negatives, score.malformed_lines) == (
        sum(count.true_positives for count in counts),
        sum(count.false_positives for count in counts),
        sum(count.false_negatives for count in counts),
        sum(count.malformed_lines for count in counts),
    )


def test_instruction_answers_are_scored_by_rouge_where_asked_for(adapted, encoder):
    items = [
        encoder.encode(Record(n, "g", Task.INSTRUCTION, Exchange("Say it.", thing, f"the {thing}"), f"{n:064x}"))
        for n, thing in enumerate(THINGS[:4])
    ]
    teach(adapted, items, 40)
    assert scores_of(adapted, items, encoder)["g"].rouge_records == 0
    score = scores_of(adapted, items, encoder, instruction_records=2)["g"]
    wanted = sum(
        rouge_l(encoder.decode(greedy(adapted, encoder, item, 12)), item.record.content.output) for item in items[:2]
    )
    assert (score.rouge_records, score.loss_records) == (2, 4)
    assert score.rouge_sum == pytest.approx(wanted)


def test_limits_hold_per_domain_and_choose_the_same_records_in_any_order(encoder, classified):
    settings = EvaluationSettings(loss_records=2)
    asked = questions(classified, known=classified, encoder=encoder, settings=settings)
    again = questions(classified[::-1], known=classified, encoder=encoder, settings=settings)
    assert [item.encoded.record.digest for item in asked] == [item.encoded.record.digest for item in again]
    assert [item.encoded.record.domain for item in asked] == ["d0", "d0", "d1", "d1"]


def test_where_a_records_part_is_bounded_no_other_records_answer_is_among_its_choices(tokenizer, encoder, classified):
    """One record with a label of its own would else change the choices, and the answers, of all others."""
    settings = EvaluationSettings(is_bounded=True)
    with_own = questions(classified, known=classified, encoder=encoder, settings=settings)
    with_fewer = questions(classified[:1], known=classified[:1], encoder=encoder, settings=settings)
    assert [(item.has_loss, item.choices) for item in with_own] == [(True, None)] * len(classified)
    assert with_fewer[0].choices is None
    chat = chat_instruction_set()
    templates = tuple(replace(template, labels=LABELS) for template in chat.templates)
    planned = Encoder(tokenizer, replace(chat, templates=templates), max_length=128)
    asked = questions(classified, known=classified, encoder=planned, settings=settings)
    assert all(item.choices for item in asked)


def test_zero_limits_ask_nothing(adapted, classified, encoder):
    assert scores_of(adapted, classified, encoder, loss_records=0) == {}


def test_choices_are_the_beginnings_of_the_labels():
    choices = label_choices([(1, 2, 9), (1, 3, 9), (4, 9)])
    assert choices == {
        (): {1, 4},
        (1,): {2, 3},
        (1, 2): {9},
        (1, 3): {9},
        (4,): {9},
    }


def test_evaluation_stops_when_asked_to(adapted, classified, encoder):
    settings = EvaluationSettings()
    asked = questions(classified, known=classified, encoder=encoder, settings=settings)
    with pytest.raises(TrainingStopped):
        evaluate(
            adapted,
            asked,
            encoder=encoder,
            settings=settings,
            batch_size=4,
            on_progress=lambda progress: None,
            should_stop=lambda: True,
        )
