"""What the training process does for domains: an adapter beneath, candidate templates, one domain's records alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from common import basemodel
from common.adapters import ADAPTER_FILE, open_flat, write_adapter_folder
from common.errors import DataInvalid, DigestMismatch, ShapeMismatch
from common.instructions import InstructionSet, Task, chat_instruction_set
from common.methods import Method
from common.record_bounds import LOSS_BOUND
from participant.training.data import Exchange, Record
from participant.training.job import (
    DataSettings,
    Device,
    EvaluationSettings,
    FrozenAdapter,
    Hyperparameters,
    JobKind,
    Precision,
    Resources,
    TrainingJob,
    write_job,
)
from participant.training.result import RESULT_FILE, JobResult
from participant.training.tokens import Encoder, encode_all, load_tokenizer
from participant.training.worker import run_job
from tests.tiny_model import TINY_SPEC, make_tiny_adapter, make_tiny_model

COLOURS = (("sky", "blue"), ("grass", "green"), ("blood", "red"), ("sea", "blue"), ("leaf", "green"))


@dataclass
class Site:
    """A site's files, and the job that the tests vary; done in this process."""

    folder: Path
    job: TrainingJob

    def run(self, name: str, **changes: Any) -> JobResult:
        folder = self.folder / name
        write_job(folder, replace(self.job, **changes))
        stop = SimpleNamespace(is_set=lambda: False)
        run_job(folder, lambda progress: None, stop)  # type: ignore[arg-type]
        return JobResult.from_json((folder / RESULT_FILE).read_bytes())


def write_records(path: Path, count: int, *, offset: int = 0) -> Path:
    with path.open("w") as file:
        for number in range(offset, offset + count):
            thing, colour = COLOURS[number % len(COLOURS)]
            row = {"instruction": "Name the colour.", "input": f"{thing} {number}", "output": colour, "label": colour}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def site(tmp_path: Path, model: Path) -> Site:
    job = TrainingJob(
        kind=JobKind.TRAIN,
        base_model=model,
        base_model_digest=basemodel.describe(model).digest,
        global_adapter=Path("../global"),
        global_adapter_digest=make_tiny_adapter(tmp_path / "global", model),
        adapter=TINY_SPEC,
        method=Method(),
        hyperparameters=Hyperparameters(learning_rate=5e-3, batch_size=4, steps=12, max_length=64, seed=5),
        instruction_set=chat_instruction_set(),
        data=DataSettings(
            train_path=write_records(tmp_path / "train.jsonl", 30),
            held_out_path=write_records(tmp_path / "held.jsonl", 8, offset=500),
        ),
        evaluation=EvaluationSettings(max_new_tokens=8),
        resources=Resources(checkpoint_every_steps=0, device=Device.CPU, precision=Precision.FLOAT32),
    )
    return Site(tmp_path, job)


def moved_adapter(site: Site, name: str, *, seed: int) -> FrozenAdapter:
    """An adapter that changes every layer."""
    folder = site.folder / name
    make_tiny_adapter(folder, site.job.base_model, seed=seed)
    layout = TINY_SPEC.layout(basemodel.describe(site.job.base_model).layers)
    flat = np.array(open_flat(folder / ADAPTER_FILE, layout))
    flat += 0.1 * np.random.default_rng(seed).standard_normal(flat.shape, dtype=np.float32)
    digest = write_adapter_folder(folder, flat, layout, TINY_SPEC.peft_config("tiny"))
    return FrozenAdapter(folder=Path("..") / name, digest=digest, spec=TINY_SPEC, method=Method())


def losses(result: JobResult) -> list[float]:
    return [score.loss_sum for score in result.scores]


def test_an_adapter_beneath_is_part_of_the_model_as_if_it_were_the_global_one(site: Site) -> None:
    moved = moved_adapter(site, "moved", seed=3)
    alone = site.run("base", kind=JobKind.EVALUATE)
    own = site.run("own", kind=JobKind.EVALUATE, global_adapter=moved.folder, global_adapter_digest=moved.digest)
    beneath = site.run("beneath", kind=JobKind.EVALUATE, beneath=(moved,))
    assert losses(beneath) == pytest.approx(losses(own), rel=1e-5)
    assert abs(losses(beneath)[0] - losses(alone)[0]) > 1.0


def test_what_is_trained_on_top_moves_and_makes_the_model_better_and_what_is_beneath_stays(site: Site) -> None:
    moved = moved_adapter(site, "moved", seed=3)
    before = (site.folder / "moved" / ADAPTER_FILE).read_bytes()
    first = site.run("train", beneath=(moved,))
    top = Path("../train/adapter")
    trained = site.run(
        "after",
        kind=JobKind.EVALUATE,
        beneath=(moved,),
        global_adapter=top,
        global_adapter_digest=first.adapter_digest,
    )
    assert losses(trained)[0] < 0.9 * losses(site.run("beneath", kind=JobKind.EVALUATE, beneath=(moved,)))[0]
    assert (site.folder / "moved" / ADAPTER_FILE).read_bytes() == before


def test_an_adapter_beneath_that_is_not_what_the_plan_names_is_not_used(site: Site) -> None:
    moved = moved_adapter(site, "moved", seed=3)
    with pytest.raises(DigestMismatch):
        site.run("other", beneath=(replace(moved, digest="00" * 32),))
    with pytest.raises(ShapeMismatch):
        site.run("missing", beneath=(replace(moved, folder=Path("../nowhere")),))


# --- candidate templates -----------------------------------------------------------------------------------------


def with_candidates(*systems: str) -> InstructionSet:
    plain = chat_instruction_set()
    own = next(template for template in plain.templates if template.task is Task.CLASSIFICATION)
    found = tuple(replace(own, system=system, name=f"t{place}") for place, system in enumerate(systems))
    others = tuple(template for template in plain.templates if template.task is not Task.CLASSIFICATION)
    return replace(plain, templates=(*others, *found))


def test_every_candidate_is_measured_by_the_same_records_and_as_if_it_were_served(site: Site) -> None:
    systems = ("", "Be terse.", "You name colours of things.")
    # Untrained the tiny model is beyond the bound everywhere, whatever it is told.
    steps = replace(site.job.hyperparameters, steps=20)
    trained = {
        "global_adapter": Path("../train/adapter"),
        "global_adapter_digest": site.run("train", hyperparameters=steps).adapter_digest,
        "kind": JobKind.EVALUATE,
    }
    result = site.run("all", instruction_set=with_candidates(*systems), candidate_records=5, **trained)
    (cell,) = result.cells
    assert (cell.domain, cell.task, cell.rows) == ("general", Task.CLASSIFICATION, 8)
    assert cell.nats == pytest.approx(result.scores[0].loss_sum)
    assert cell.loss < 8 * LOSS_BOUND
    few = EvaluationSettings(loss_records=5, max_new_tokens=8)
    for arm, system in zip(cell.arms, systems, strict=True):
        used = with_candidates(system)
        alone = site.run(f"alone-{arm.name}", instruction_set=used, evaluation=few, **trained)
        assert arm.rows == 5
        assert arm.loss == pytest.approx(alone.cells[0].loss, rel=1e-5)
        assert arm.squares == pytest.approx(alone.cells[0].squares, rel=1e-5)
    assert len({round(arm.loss, 6) for arm in cell.arms}) == 3


def test_candidates_are_left_unmeasured_in_rounds_in_which_they_are_not_due(site: Site) -> None:
    result = site.run("plain", kind=JobKind.EVALUATE, instruction_set=with_candidates("", "Be terse."))
    assert result.cells[0].arms == ()


def test_training_draws_among_the_candidates(site: Site) -> None:
    """Of two templates, one with a system message: more tokens than with the one alone, fewer than with the other."""
    tokens = []
    for name, systems in (("plain", ("",)), ("both", ("", "Be terse.")), ("terse", ("Be terse.",))):
        training = site.run(name, instruction_set=with_candidates(*systems)).training
        assert training is not None
        tokens.append(training.tokens)
    assert tokens[0] < tokens[1] < tokens[2]


def test_a_record_keeps_its_drawn_template_within_a_round_and_draws_again_in_the_next(model: Path) -> None:
    used = with_candidates("", "Be terse.")
    tokenizer = load_tokenizer(model)
    records = [
        Record(n, "general", Task.CLASSIFICATION, Exchange("Which?", f"this {n}", "that"), f"{n:064x}")
        for n in range(200)
    ]

    def lengths(seed: int) -> list[int]:
        encoder = Encoder(tokenizer, used, max_length=128, draw_seed=seed)
        return [len(one.ids) for one in encode_all(encoder, records)[0]]

    assert lengths(1) == lengths(1)
    changed = sum(one != other for one, other in zip(lengths(1), lengths(2), strict=True))
    assert 60 < changed < 140


# --- one domain alone --------------------------------------------------------------------------------------------


def test_a_job_for_one_domain_sees_no_record_of_another(site: Site, tmp_path: Path) -> None:
    for name, count, offset in (("mixed-train", 20, 0), ("mixed-held", 8, 500)):
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for number in range(offset, offset + count):
                row = {"instruction": "Name it.", "input": f"thing {number}", "output": "blue"}
                file.write(json.dumps({**row, "domain": "clinic" if number % 4 == 0 else "desk"}) + "\n")
    data = DataSettings(
        train_path=tmp_path / "mixed-train.jsonl", held_out_path=tmp_path / "mixed-held.jsonl", only_domain="clinic"
    )
    result = site.run("clinic", data=data)
    assert [score.domain for score in result.scores] == ["clinic"]
    assert [(one.domain, one.records) for one in result.train_data.domains] == [("clinic", 5)]
    assert (result.train_data.read, result.train_data.used, result.train_data.left_out) == (20, 5, 15)
    assert (result.held_out_data.used, result.held_out_data.left_out) == (2, 6)
    with pytest.raises(DataInvalid, match="no record of domain court; there are clinic, desk"):
        site.run("court", data=replace(data, only_domain="court"))
