"""What the fixed point of a plan's defaults does to real LoRA deltas, whatever their size."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from common import basemodel
from common.adapters import ADAPTER_FILE, open_flat
from common.instructions import Task, chat_instruction_set
from common.masking import plan_digest, secagg_plan
from common.methods import Method
from common.secagg import Clipping, Packer, RoundKind, SecaggPlan, TailSums, decode_chunk, fixed_weight
from coordinator.planning import PlanSettings
from participant.training.data import Exchange, Record
from participant.training.job import Hyperparameters, Resources
from participant.training.loop import TrainingTask, train
from participant.training.methods import client_method
from participant.training.model import load_model
from participant.training.tokens import Encoded, Encoder
from tests.tiny_model import TINY_SPEC
from tests.unit.test_planning import charter, plan

STEPS = 10
SITES = 3
THINGS = (("sky", "blue"), ("grass", "green"), ("blood", "red"), ("leaf", "green"), ("sea", "deep blue"))
# Learning rate and size of an element, root mean square over the adapter, that ten steps of it come to.
SIZES = {1e-5: 1e-4, 1e-4: 1e-3, 1e-3: 1e-2, 1e-2: 1e-1}


@pytest.fixture(scope="module")
def deltas(tiny_folder, layout, adapter_folder, tokenizer):
    """By learning rate, what each of three sites with records of their own has trained."""
    torch.set_num_threads(1)
    encoder = Encoder(tokenizer, chat_instruction_set(), max_length=96)
    start = np.array(open_flat(adapter_folder / ADAPTER_FILE, layout))
    found: dict[float, list[np.ndarray]] = {}
    for learning_rate in SIZES:
        for site in range(SITES):
            model = load_model(
                tiny_folder,
                spec=TINY_SPEC,
                layout=layout,
                start=start,
                device=torch.device("cpu"),
                precision=torch.float32,
            )
            encoded = (
                encoder.encode(
                    Record(n, "g", Task.INSTRUCTION, Exchange("Name the colour.", f"{thing} {n}", colour), f"{n:02x}")
                )
                for n, (thing, colour) in enumerate(THINGS[site:] * 4)
            )
            records = [record for record in encoded if isinstance(record, Encoded)]
            task = TrainingTask(
                records=records,
                weights=[1.0] * len(records),
                hyperparameters=Hyperparameters(
                    learning_rate=learning_rate, batch_size=4, steps=STEPS, max_length=96, seed=site
                ),
                resources=Resources(micro_batch_size=4),
                method=client_method(Method(), TINY_SPEC, round_=1),
                job_digest="job",
                checkpoint=None,
            )
            train(model, task, on_progress=lambda progress: None, should_stop=lambda: False)
            found.setdefault(learning_rate, []).append(model.flat() - start)
    return found


def default_plan(tiny_folder, learning_rate: float, members: int) -> SecaggPlan:
    """What a run has when its operator says nothing but model, adapter and training."""
    settings = PlanSettings(
        basemodel.describe(tiny_folder),
        rank=TINY_SPEC.rank,
        alpha=TINY_SPEC.alpha,
        target_modules=TINY_SPEC.target_modules,
        learning_rate=learning_rate,
        steps_per_round=STEPS,
    )
    bounds = replace(charter().bounds, most_learning_rate=1.0)
    made = plan(settings, charter(members, bounds=bounds))
    return secagg_plan(made, plan_digest(made.to_bytes()))


def mean_by_lanes(made: SecaggPlan, updates, weights) -> tuple[np.ndarray, Clipping]:
    layout = made.layout(RoundKind.TRAINING, 1)
    totals = [np.zeros(layout.words_in(chunk), dtype=np.uint64) for chunk in range(layout.lane_chunks)]
    clippings = []
    for index, (update, weight) in enumerate(zip(updates, weights, strict=True)):
        key = hashlib.sha256(bytes([index])).digest()
        packer = Packer(made, round_=1, alpha=weight, rounding_key=key)
        for chunk, total in enumerate(totals):
            words, clipping = packer.pack_chunk(chunk, update[slice(*layout.parameters_in(chunk))])
            total += words
            clippings.append(clipping)
    tail = TailSums(len(weights), sum(weights), {})
    mean = np.concatenate([decode_chunk(made, chunk, total, tail, round_=1) for chunk, total in enumerate(totals)])
    return mean, Clipping.of_all(clippings)


@pytest.mark.parametrize("members", [3, 10, 30])
@pytest.mark.parametrize("learning_rate", sorted(SIZES))
def test_the_mean_of_real_deltas_is_within_a_thousandth_whatever_their_size(
    deltas, tiny_folder, learning_rate, members
):
    made = default_plan(tiny_folder, learning_rate, members)
    updates = [deltas[learning_rate][index % SITES] for index in range(members)]
    weights = [fixed_weight(1 - 0.5 * (index % 2)) / 2**30 for index in range(members)]

    mean, clipping = mean_by_lanes(made, updates, weights)

    exact = sum(weight * update.astype(np.float64) for weight, update in zip(weights, updates, strict=True))
    exact /= sum(weights)
    size = float(np.sqrt(np.mean(exact**2)))
    assert SIZES[learning_rate] / 10 < size < SIZES[learning_rate]
    assert np.linalg.norm(mean - exact) <= 1e-3 * np.linalg.norm(exact)
    assert clipping.elements == 0
