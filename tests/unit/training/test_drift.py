"""Whether what is meant to hold sites together does: sites that each know one colour, twenty steps a round."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from common import basemodel
from common.adapters import AdapterSpec, FlatVector
from common.instructions import Task, chat_instruction_set
from common.methods import Method, adapter_method
from participant.training.data import Exchange, Record
from participant.training.job import Hyperparameters, Resources
from participant.training.loop import TrainingTask, train
from participant.training.methods import client_method
from participant.training.model import load_model
from participant.training.tokens import Encoder
from tests.tiny_model import TINY_SPEC

SPEC = AdapterSpec(4, 8.0, TINY_SPEC.target_modules)
SITES = (
    (("sky", "sea"), "blue"),
    (("grass", "leaf"), "green"),
    (("blood", "rose"), "red"),
    (("coal", "night"), "black"),
)
STEPS, ROUNDS, RATE = 20, 4, 1e-2


@pytest.fixture(scope="module")
def federate(tiny_folder, tokenizer):
    """Held-out loss over all sites' records after a few rounds of a method."""
    encoder = Encoder(tokenizer, chat_instruction_set(), max_length=96)
    layers = basemodel.describe(tiny_folder).layers

    def records(site, first, count):
        things, colour = SITES[site]
        asked = [Exchange("Name the colour.", f"{things[n % 2]} {first + n}", colour) for n in range(count)]
        return [encoder.encode(Record(n, "g", Task.INSTRUCTION, one, f"{n:02x}")) for n, one in enumerate(asked)]

    held_out = [record for site in range(len(SITES)) for record in records(site, 500, 6)]

    def run(method):
        torch.set_num_threads(1)
        kind = adapter_method(method, SPEC)
        layout = kind.layout(layers)
        sent = [slot for slot in layout.slots if kind.is_sent(slot.name, 0)]
        flat = np.concatenate([values for _, values in kind.initial(layers, seed=0)])
        # c and c_i as whole stored vectors, which are zero where nothing moves.
        mean: FlatVector = np.zeros_like(flat)
        own: list[FlatVector] = [np.zeros_like(flat) for _ in SITES]

        def load(start):
            return load_model(
                tiny_folder,
                spec=SPEC,
                method=method,
                layout=layout,
                start=start,
                device=torch.device("cpu"),
                precision=torch.float32,
            )

        for round_ in range(1, ROUNDS + 1):
            trained = []
            for site in range(len(SITES)):
                step = mean - own[site]
                correction = {
                    slot.name: torch.from_numpy(step[slot.offset :][: slot.size].reshape(slot.shape).copy())
                    for slot in sent
                    if method.control_variates
                }
                task = TrainingTask(
                    records=records(site, 0, 16),
                    weights=[1.0] * 16,
                    hyperparameters=Hyperparameters(
                        learning_rate=RATE, batch_size=4, steps=STEPS, max_length=96, seed=10 * round_ + site
                    ),
                    resources=Resources(micro_batch_size=4, checkpoint_every_steps=0),
                    method=client_method(method, SPEC, round_=round_, correction=correction),
                    job_digest="job",
                    checkpoint=None,
                )
                model = load(flat)
                train(model, task, on_progress=lambda progress: None, should_stop=lambda: False)
                trained.append(model.flat())
                own[site] = own[site] - mean + (flat - trained[-1]) / (STEPS * RATE)
            after = np.asarray(np.mean(trained, axis=0, dtype=np.float64), dtype=np.float32)
            mean = np.asarray((flat - after) / (STEPS * RATE), dtype=np.float32)
            flat = after
        model = load(flat)
        batch = model.batch([record.ids for record in held_out])
        counts = torch.zeros_like(batch.ids, dtype=torch.bool)
        for row, record in enumerate(held_out):
            counts[row, : len(record.ids)] = torch.tensor(record.is_answer)
        with torch.no_grad():
            logits = model.logits(model.hidden(batch)[:, :-1][counts[:, 1:]])
        return float(functional.cross_entropy(logits, batch.ids[:, 1:][counts[:, 1:]]))

    return run


@pytest.mark.slow
def test_control_variates_lower_the_loss_of_sites_that_drift_apart(federate):
    plain = federate(Method(name="ffa_lora"))
    corrected = federate(Method(name="ffa_lora", control_variates=True))

    assert corrected < 0.95 * plain
