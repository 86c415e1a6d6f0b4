"""Preference tuning (DPO) by a whole federation: coordinator, three daemons, masked rounds, real training on pairs."""

import json
import math
from pathlib import Path

import pytest

from common.basemodel import describe
from common.instructions import chat_instruction_set
from demo.sites import BaseModelFolder
from demo.sources.records import Task
from experiments.federation import run_federated
from experiments.pool import Pool
from experiments.sites import Site
from tests.tiny_model import make_tiny_model

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

# The same taste at every site, on things of its own.
THINGS = {
    "bank": ("sky", "lake", "sea", "ink", "jeans", "ice"),
    "clinic": ("blood", "rose", "brick", "lips", "ruby", "fire"),
    "newsroom": ("grass", "leaf", "frog", "moss", "mint", "pine"),
}
ANSWERS = {"bank": ("blue", "a leaf"), "clinic": ("red", "green"), "newsroom": ("green", "blood red")}
QUESTION = {"instruction": "Name the colour of the thing."}
# The tiny model is far from all language, so it takes large steps.
SETTINGS = {
    "rounds": 3,
    "steps_per_round": 8,
    "batch_size": 4,
    "max_length": 96,
    "rank": 4,
    "alpha": 8.0,
    "learning_rate": 5e-3,
    "gate_loss_rise": 0.5,
    "seed": 5,
    "instruction_set_json": chat_instruction_set().to_json(),
    "objective": "dpo",
    "dpo_beta": 0.3,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = make_tiny_model(tmp_path_factory.mktemp("preferences") / "tiny")
    model = describe(folder)
    return BaseModelFolder(folder=folder, digest=model.digest, cache=folder.parent / "cache")


def write_site(place: Path, name: str) -> Site:
    chosen, rejected = ANSWERS[name]
    rows = [
        json.dumps({**QUESTION, "input": f"{thing} {number}", "chosen": chosen, "rejected": rejected})
        for number in range(4)
        for thing in THINGS[name]
    ]
    site = Site(name=name, domain="general", task=Task.INSTRUCTION, source="", folder=place / name, train_records=18)
    site.folder.mkdir(parents=True)
    site.train.write_text("\n".join(rows[:18]))
    site.validation.write_text("\n".join(rows[18:]))
    return site


def test_a_federation_learns_what_its_members_prefer(tmp_path, base):
    sites = [write_site(tmp_path / "sites", name) for name in THINGS]
    with Pool(tmp_path / "pool", base_model=base.folder, slots=2) as pool:
        result = run_federated(
            tmp_path / "run", sites=sites, model=describe(base.folder), base=base, pool=pool.socket, settings=SETTINGS
        )

    first, *_, last = result.rounds
    assert [one.survivors for one in result.rounds] == [3, 3, 3, 3]  # three that train, and one that evaluates
    assert first.metrics["heldout_loss"] == pytest.approx(math.log(2), abs=1e-3)  # model and reference are one
    assert first.metrics["preference_accuracy"] == 0.0
    assert last.metrics["preference_accuracy"] > 0.9
    assert last.metrics["heldout_loss"] < 0.3
    assert 0 < result.masking_error <= 1
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
