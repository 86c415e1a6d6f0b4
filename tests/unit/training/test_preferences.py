from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from common.errors import DataInvalid, TrainingStopped
from common.methods import Method
from common.plan import HELD_OUT_GROUP, PREFERENCE_GROUP
from participant.trainer import metric_groups_of
from participant.training import data
from participant.training.asked import asked_of
from participant.training.evaluate import evaluate, questions
from participant.training.job import DataSettings, EvaluationSettings, Hyperparameters, Resources
from participant.training.loop import TrainingTask, train
from participant.training.methods import client_method
from participant.training.preferences import dpo_losses, margins, without_adapter
from participant.training.states import PlainStates, quick_states
from participant.training.tokens import encode_all
from tests.tiny_model import TINY_SPEC

BETA = 0.3
PAIRS = [
    ("sky", "blue", "red as blood"),
    ("grass", "green", "blue"),
    ("blood", "red", "a green leaf"),
    ("sea", "blue", "no"),
]


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def pairs(tmp_path, encoder):
    rows = [
        {"instruction": "Name the colour.", "input": f"{thing} {n}", "chosen": chosen, "rejected": rejected}
        for n, (thing, chosen, rejected) in enumerate(PAIRS * 3)
    ]
    encoded, too_long = encode_all(encoder, data.read_records(write(tmp_path / "pairs.jsonl", rows))[0])
    assert not too_long
    return encoded


@pytest.fixture
def task(pairs):
    return TrainingTask(
        records=pairs,
        weights=[1.0] * len(pairs),
        hyperparameters=Hyperparameters(
            learning_rate=5e-3, batch_size=4, steps=12, max_length=96, seed=3, dpo_beta=BETA
        ),
        resources=Resources(micro_batch_size=4),
        method=client_method(Method(), TINY_SPEC, round_=1),
        job_digest="job",
        checkpoint=None,
    )


def run(model, task, *, stop_after=None):
    steps = []
    return train(
        model,
        task,
        on_progress=lambda progress: steps.append(progress.step),
        should_stop=lambda: stop_after is not None and bool(steps) and steps[-1] >= stop_after,
    )


def plain_log_probability(model, encoded):
    """Of an answer, token by token from all logits."""
    ids = torch.tensor([encoded.ids])
    losses = functional.cross_entropy(model.causal(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
    return -sum(loss for loss, counts in zip(losses, encoded.is_answer[1:], strict=True) if counts)


def test_margins_and_loss_are_those_of_the_closed_formula(moved, pairs):
    with torch.no_grad():
        own = [plain_log_probability(moved, p) - plain_log_probability(moved, p.rejected) for p in pairs[:4]]
        with without_adapter(moved):
            reference = [plain_log_probability(moved, p) - plain_log_probability(moved, p.rejected) for p in pairs[:4]]
        with quick_states(moved) as states:
            found = margins(moved, states, pairs[:4])
    torch.testing.assert_close(found, torch.stack(own), rtol=1e-4, atol=1e-4)
    gain = torch.stack(own) - torch.stack(reference)
    wanted = torch.log1p(torch.exp(-BETA * gain))
    torch.testing.assert_close(dpo_losses(found, torch.stack(reference), beta=BETA), wanted, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_equation_7(moved, pairs):
    """The paper's gradient: -beta sigmoid(-beta gain) (grad log p(chosen) - grad log p(rejected))."""
    states = PlainStates(moved)
    factor = next(factor for name, factor in moved.factors.items() if ".lora_B." in name)
    factor.requires_grad_(True)
    own = margins(moved, states, pairs[:1])
    [by_margin] = torch.autograd.grad(own.sum(), factor, retain_graph=True)
    reference = own.detach() - 0.7
    [found] = torch.autograd.grad(dpo_losses(own, reference, beta=BETA).sum(), factor)
    weight = -BETA * torch.sigmoid(torch.tensor(-BETA * 0.7))
    torch.testing.assert_close(found, weight * by_margin)


def test_the_reference_is_the_model_without_the_adapter_and_the_adapter_comes_back(moved, tiny_folder, pairs):
    before = moved.flat().copy()
    ids = torch.tensor([pairs[0].ids])
    with without_adapter(moved), torch.no_grad():
        found = moved.causal(input_ids=ids).logits
    wanted = AutoModelForCausalLM.from_pretrained(tiny_folder)(input_ids=ids).logits
    torch.testing.assert_close(found, wanted)
    assert np.array_equal(moved.flat(), before)


def test_training_begins_at_log_two_and_the_chosen_answers_gain(adapted, task, pairs, encoder):
    figures = run(adapted, replace(task, hyperparameters=replace(task.hyperparameters, steps=25)))
    # Before the first step the model is the reference.
    assert figures.losses[0] == pytest.approx(np.log(2), rel=1e-5)
    assert figures.losses[-1] < 0.5 * figures.losses[0]
    assert figures.tokens > figures.answer_tokens + sum(len(pair.ids) for pair in pairs)
    asked = questions(pairs, known=pairs, encoder=encoder, settings=EvaluationSettings())
    [scores] = evaluate(
        adapted,
        asked,
        encoder=encoder,
        settings=EvaluationSettings(),
        batch_size=5,
        on_progress=lambda progress: None,
        should_stop=lambda: False,
        dpo_beta=BETA,
    )
    assert (scores.pairs, scores.loss_tokens, scores.classified) == (12, 12, 0)
    assert scores.preference_accuracy is not None
    assert scores.preference_accuracy > 0.9
    assert scores.margin_sum > 0.0
    assert scores.mean_loss is not None
    assert scores.mean_loss < np.log(2)


@pytest.fixture
def reset(adapted):
    """Puts the model's adapter back to where it was at first."""
    first = adapted.flat().copy()

    def back():
        with torch.no_grad():
            for slot, factor in zip(adapted.layout.slots, adapted.factors.values(), strict=True):
                values = first[slot.offset : slot.offset + slot.size].reshape(slot.shape)
                factor.copy_(torch.from_numpy(values.copy()))

    return back


def test_micro_batches_change_memory_and_not_the_gradient(adapted, task, reset):
    wanted = run(adapted, task).losses
    flat = adapted.flat().copy()
    reset()
    found = run(adapted, replace(task, resources=Resources(micro_batch_size=1))).losses
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
    np.testing.assert_allclose(adapted.flat(), flat, atol=1e-3)


def test_a_stopped_job_goes_on_and_ends_with_the_same_bits(adapted, task, reset, tmp_path):
    whole = run(adapted, task)
    wanted = adapted.flat().copy()
    kept = replace(task, checkpoint=tmp_path / "checkpoint")
    reset()
    with pytest.raises(TrainingStopped, match="step 5 of 12"):
        run(adapted, kept, stop_after=5)
    reset()
    assert run(adapted, kept).losses == whole.losses
    assert np.array_equal(adapted.flat(), wanted)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"chosen": "a"}, "needs both"),
        ({"chosen": "a", "rejected": " "}, "needs both"),
        ({"chosen": "a", "rejected": "a "}, "the same"),
        ({"chosen": "a", "rejected": "b", "output": "c"}, "beside"),
        ({"chosen": "a", "rejected": "b", "task": "classification"}, "only have the task instruction"),
    ],
)
def test_a_pair_that_cannot_be_learned_from_is_refused_with_the_reason(tmp_path, fields, reason):
    path = write(tmp_path / "bad.jsonl", [{"instruction": "Which?"} | fields])
    with pytest.raises(DataInvalid, match=reason):
        data.read_records(path)


def test_pairs_and_single_answers_do_not_mix(tmp_path):
    rows = [{"instruction": f"q{n}", "output": "a"} for n in range(5)]
    pair = {"instruction": "p", "chosen": "a", "rejected": "b"}
    with pytest.raises(DataInvalid, match="files of their own"):
        data.load(DataSettings(train_path=write(tmp_path / "mixed.jsonl", [*rows, pair]), held_out_fraction=0.0))


def test_a_site_with_pairs_declares_their_metric_and_no_tasks(pairs):
    asked = asked_of([pair.record for pair in pairs], EvaluationSettings(instruction_records=50))
    assert metric_groups_of(asked) == {HELD_OUT_GROUP, PREFERENCE_GROUP}
