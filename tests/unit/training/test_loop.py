from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForCausalLM

from common.adapters import ADAPTER_CONFIG_FILE, ADAPTER_FILE, open_flat
from common.errors import TrainingFailed, TrainingStopped
from common.methods import Method
from participant.training import answers
from participant.training.answers import answer_flags, answer_losses
from participant.training.job import Hyperparameters, Resources
from participant.training.loop import TrainingTask, train
from participant.training.methods import LocalMethod, client_method
from participant.training.model import AfterHead, load_model, save_adapter
from tests.tiny_model import TINY_SPEC

SETTINGS = Hyperparameters(learning_rate=5e-3, batch_size=4, steps=6, max_length=96, seed=11)


def flat_of(model):
    return model.flat().copy()


@pytest.fixture
def task(records):
    return TrainingTask(
        records=records,
        weights=[1.0] * len(records),
        hyperparameters=SETTINGS,
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


def test_answer_loss_equals_the_plain_one_over_all_logits(adapted, records):
    part = records[:5]
    batch = adapted.batch([record.ids for record in part])
    found = answer_losses(adapted, adapted.hidden(batch), batch, answer_flags(adapted, part, batch.ids.shape[1]))
    wanted: list[torch.Tensor] = []
    for record in part:
        ids = torch.tensor([record.ids])
        logits = adapted.causal(input_ids=ids).logits[0, :-1]
        losses = functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        wanted.extend(loss for loss, counts in zip(losses, record.is_answer[1:], strict=True) if counts)
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-5, atol=1e-6)
    assert len(found) == sum(record.answer_tokens for record in part)


def test_the_head_in_parts_gives_the_same_losses(adapted, records, monkeypatch):
    batch = adapted.batch([record.ids for record in records])
    flags = answer_flags(adapted, records, batch.ids.shape[1])
    whole = answer_losses(adapted, adapted.hidden(batch), batch, flags)
    monkeypatch.setattr(answers, "HEAD_ROWS", 3)
    torch.testing.assert_close(answer_losses(adapted, adapted.hidden(batch), batch, flags), whole)


def test_training_lowers_the_loss_and_moves_the_factors_only(adapted, task, tiny_folder):
    before = {name: value.clone() for name, value in adapted.causal.state_dict().items() if "lora" not in name}
    start = flat_of(adapted)
    figures = run(adapted, replace(task, hyperparameters=replace(SETTINGS, steps=25)))
    assert figures.losses[-1] < 0.7 * figures.losses[0]
    assert not np.array_equal(flat_of(adapted), start)
    after = adapted.causal.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_figures_count_what_was_trained(adapted, task):
    figures = run(adapted, task)
    assert (figures.steps, figures.records, figures.distinct_records, len(figures.losses)) == (6, 24, 15, 6)
    assert 24 * 2 <= figures.answer_tokens < figures.tokens


def test_micro_batches_change_memory_and_not_the_gradient(adapted, task, tiny_folder, layout, adapter_folder):
    run(adapted, task)
    other = load_model(
        tiny_folder,
        spec=TINY_SPEC,
        layout=layout,
        start=open_flat(adapter_folder / ADAPTER_FILE, layout),
        device=torch.device("cpu"),
        precision=torch.float32,
    )
    figures = run(other, replace(task, resources=Resources(micro_batch_size=1)))
    assert figures.records == 24
    np.testing.assert_allclose(flat_of(other), flat_of(adapted), atol=2e-5)


def test_a_stopped_job_goes_on_from_its_checkpoint_and_ends_with_the_same_bits(
    adapted, task, tiny_folder, layout, adapter_folder, tmp_path
):
    whole = run(adapted, task)
    kept = replace(
        task, checkpoint=tmp_path / "checkpoint", resources=Resources(micro_batch_size=4, checkpoint_every_steps=4)
    )

    def fresh():
        return load_model(
            tiny_folder,
            spec=TINY_SPEC,
            layout=layout,
            start=open_flat(adapter_folder / ADAPTER_FILE, layout),
            device=torch.device("cpu"),
            precision=torch.float32,
        )

    with pytest.raises(TrainingStopped, match="step 3 of 6"):
        run(fresh(), kept, stop_after=3)
    second = fresh()
    figures = run(second, kept)
    assert figures.resumed_at_step == 3
    assert (figures.losses, figures.tokens, figures.answer_tokens) == (whole.losses, whole.tokens, whole.answer_tokens)
    assert np.array_equal(flat_of(second), flat_of(adapted))


def test_a_checkpoint_of_another_job_or_a_spoilt_one_counts_as_none(adapted, task, tmp_path):
    kept = replace(task, checkpoint=tmp_path / "checkpoint", resources=Resources(checkpoint_every_steps=2))
    run(adapted, kept)
    assert run(adapted, replace(kept, job_digest="another")).resumed_at_step == 0
    (tmp_path / "checkpoint").write_bytes(b"\x07" * 100)
    assert run(adapted, replace(kept, job_digest="third")).resumed_at_step == 0


def test_a_loss_that_is_not_finite_ends_training(adapted, task):
    with torch.no_grad():
        next(iter(adapted.factors.values())).fill_(float("inf"))
    with pytest.raises(TrainingFailed, match=r"step 1 gave loss nan.*learning rate"):
        run(adapted, task)


def test_factors_that_a_method_does_not_train_keep_their_bits(adapted, task):
    class TrainB(LocalMethod):
        def is_trained(self, name):
            return ".lora_B." in name

    start = {name: factor.detach().clone() for name, factor in adapted.factors.items()}
    run(adapted, replace(task, method=TrainB(kind=task.method.kind, turn=0)))
    moved = {name for name, factor in adapted.factors.items() if not torch.equal(factor, start[name])}
    assert moved == {name for name in start if ".lora_B." in name}


def test_a_methods_penalty_pulls_towards_the_global_adapter(adapted, task, tiny_folder, layout, adapter_folder):
    class Pull(LocalMethod):
        def penalty(self, local, start):
            return 100.0 * sum((value - start[name]).square().sum() for name, value in local.items())

    start = flat_of(adapted)
    other = load_model(
        tiny_folder, spec=TINY_SPEC, layout=layout, start=start, device=torch.device("cpu"), precision=torch.float32
    )
    run(adapted, task)
    run(other, replace(task, method=Pull(kind=task.method.kind, turn=0)))
    assert np.linalg.norm(flat_of(other) - start) < 0.8 * np.linalg.norm(flat_of(adapted) - start)


# --- the adapter's files ----------------------------------------------------------------------------------------------


def test_the_saved_adapter_is_in_the_layout_and_loads_with_peft(adapted, task, tiny_folder, layout, tmp_path, records):
    run(adapted, task)
    save_adapter(adapted, tmp_path / "adapter", spec=TINY_SPEC, base_model_name="tiny")
    assert np.array_equal(open_flat(tmp_path / "adapter" / ADAPTER_FILE, layout), flat_of(adapted))
    assert (tmp_path / "adapter" / ADAPTER_CONFIG_FILE).is_file()
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter")
    ids = torch.tensor([records[0].ids])
    torch.testing.assert_close(plain(input_ids=ids).logits, adapted.causal(input_ids=ids).logits)


def test_logits_after_a_scaling_head_are_scaled_and_capped():
    logits = torch.tensor([[-40.0, 0.0, 40.0]])
    found = AfterHead(factor=0.5, soft_cap=30.0).apply(logits)
    torch.testing.assert_close(found, 30.0 * torch.tanh(0.5 * logits / 30.0))
