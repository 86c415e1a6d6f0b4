"""`accord-participant personalise` with a tiny model: real children, a table, and a folder that PEFT loads."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from common.adapters import ADAPTER_FILE, AdapterSpec, file_digest
from common.basemodel import describe
from common.clock import SystemClock
from common.domains import PlanDomain
from common.errors import InvalidArgument
from common.instructions import InstructionSet
from common.manifest import SIGNATURE_FILE, Manifest
from common.methods import Method
from common.plan import DPO, Beneath, Plan, domain_groups
from participant.cli.personalise import work_of
from participant.config import ParticipantConfig, load_config
from participant.journal import Journal, RunEntry, RunStanding
from participant.personal import PersonalWork
from tests.site_files import write_site
from tests.tiny_model import TINY_SPEC, make_tiny_adapter, make_tiny_model
from tests.unit.rounds import made

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
COLOURS = ("blue", "green", "red")
POLICY = """
base_models = { allow = "any" }
adapter = { most_rank = 8 }
masking = { least_cohort = 3, most_element_clip = 10.0, most_update_norm = 1000.0 }
training = { most_learning_rate = 1.0, most_steps_per_round = 100, most_batch_size = 8, most_length = 512 }
rounds = { most_in_a_run = 5 }
"""


def shelve(config: Path, model: Path, plan: Plan, *, seed: int, spec: AdapterSpec) -> str:
    """An adapter of a run as the daemon keeps it."""
    shelf = load_config(config).adapters_directory
    shelf.mkdir(parents=True, exist_ok=True)
    digest = make_tiny_adapter(shelf / ".arriving", model, seed=seed, spec=spec)
    manifest = Manifest(
        federation="lab", run=plan.run, round=1, digest=digest, parent=None, base_model="tiny",
        base_model_digest=plan.base_model.digest, plan_digest="cd" * 32, charter_digest="ef" * 32, adapter=spec,
        method="fedit", server_optimizer="fedavg", instruction_set_digest="01" * 32, survivor_count=3, survivors=None,
        metrics={}, privacy=None, created_at="2026-01-01T12:00:00Z",
        domain=plan.domain, beneath=plan.beneath.adapter if plan.beneath else None,
    )  # fmt: skip
    (shelf / ".arriving" / "manifest.json").write_bytes(manifest.to_bytes())
    (shelf / ".arriving" / SIGNATURE_FILE).write_text("00" * 64)
    (shelf / ".arriving").rename(shelf / digest)
    return digest


def plan_of(model: Path, *, run: str) -> Plan:
    plan = made.plan()
    training = replace(plan.training, learning_rate=5e-3, steps_per_round=10, batch_size=4, max_length=64)
    return replace(
        plan, run=run, base_model=describe(model, name="tiny"), adapter=TINY_SPEC, training=training, rounds=2
    )


@pytest.fixture
def site(tmp_path: Path) -> tuple[Path, Path]:
    """A site's configuration and its base model; the site has an adapter of a global run and one of a domain's."""
    config = write_site(tmp_path / "site", policy=POLICY)
    model = make_tiny_model(tmp_path / "tiny")
    text = config.read_text().replace('source = "model"', f'source = "{model}"')
    config.write_text(text + 'training = { precision = "float32", device = "cpu" }\n')
    with (tmp_path / "site" / "train.jsonl").open("w") as file:
        for number in range(120):
            colour = COLOURS[number % 3]
            row = {"instruction": "Name the colour.", "input": f"{colour} thing {number}", "output": colour}
            file.write(json.dumps({**row, "domain": "clinic" if number % 2 else "desk"}) + "\n")
    plan = plan_of(model, run="tune")
    below = shelve(config, model, plan, seed=1, spec=TINY_SPEC)
    domains = (PlanDomain("clinic"),)
    own = replace(
        plan,
        run="clinics",
        domain="clinic",
        domains=domains,
        beneath=Beneath(below, "tune", TINY_SPEC, Method()),
        masking=replace(
            plan.masking,
            metric_groups=domain_groups(domains, InstructionSet.from_json(plan.instruction_set), None),
        ),
    )
    shelve(config, model, own, seed=2, spec=TINY_SPEC)
    journal = Journal(load_config(config).journal_file)
    for one in (plan, own):
        one.check()
        journal.put_run(RunEntry(one.run, one.to_bytes(), "ab" * 32, b"", RunStanding.JOINED, SystemClock().now()))
    journal.close()
    return config, model


def joined_plan(config: ParticipantConfig, run: str) -> Plan:
    journal = Journal(config.journal_file)
    known = journal.run(run)
    journal.close()
    assert known is not None
    return Plan.from_bytes(known.plan)


def personalise(config: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "participant", "personalise", "--config", str(config), *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
    )


def test_a_run_by_preferences_is_refused_with_what_can_be_done(site: tuple[Path, Path]) -> None:
    config = load_config(site[0])
    plan = joined_plan(config, "clinics")
    preferred = replace(plan, training=replace(plan.training, objective=DPO, dpo_beta=0.1))
    with pytest.raises(InvalidArgument, match="trained by preferences"):
        work_of(config, preferred, argparse.Namespace())


def test_a_sites_own_model_is_better_than_the_federations_and_loads_as_a_peft_folder(
    site: tuple[Path, Path], tmp_path: Path
) -> None:
    config, model = site
    state = load_config(config).state_directory
    ended = personalise(config, "--run", "clinics", "--rank", 2, "--json", tmp_path / "own")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    rows = {row["name"]: row for row in told["models"]}
    assert list(rows) == ["base", "+ global", "+ clinic", "+ site", "alone", "chosen scales"]
    assert rows["+ site"]["scales"] == [1.0, 1.0, 1.0, 0.0]
    assert rows["alone"]["scales"] == [0.0, 0.0, 0.0, 1.0]
    assert rows["alone"]["loss"] < rows["base"]["loss"]
    assert told["adapters"] == ["global", "clinic", "site", "alone"]
    assert rows["chosen scales"]["choosing_loss"] <= min(row["choosing_loss"] for row in rows.values())
    assert rows["chosen scales"]["loss"] < 0.9 * rows["base"]["loss"]
    # Of 120 records a tenth is held out, half of them the clinic's, and these in two halves.
    assert told["records"] + told["choosing_records"] < 12

    base = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32)
    ids = torch.arange(8).unsqueeze(0)
    before = base(input_ids=ids).logits
    own = PeftModel.from_pretrained(base, str(tmp_path / "own"))
    assert not torch.allclose(own(input_ids=ids).logits, before)
    private = state / "personal" / "clinics" / "train" / "adapter" / ADAPTER_FILE
    assert file_digest(private) != file_digest(tmp_path / "own" / ADAPTER_FILE)

    # The daemon may delete its adapters meanwhile: what was trained on is held here.
    held = state / "personal" / "clinics" / "adapters"
    job = json.loads((state / "personal" / "clinics" / "train" / "job.json").read_text())
    assert [Path(one["folder"]).parent for one in job["beneath"]] == [held, held]

    alone = json.loads((state / "personal" / "clinics" / "alone" / "train" / "job.json").read_text())
    assert alone["beneath"] == [], "without the federation"

    again = personalise(config, "--run", "clinics", tmp_path / "own")
    assert again.returncode != 0
    assert "exists; name a folder that does not" in again.stderr


def test_a_run_in_which_the_site_had_no_part_is_named(site: tuple[Path, Path], tmp_path: Path) -> None:
    ended = personalise(site[0], "--run", "other", tmp_path / "own")
    assert ended.returncode != 0
    assert "this site has not taken part in run other" in ended.stderr


def test_what_a_site_reaches_alone_can_be_left_out(site: tuple[Path, Path]) -> None:
    config = load_config(site[0])
    plan = joined_plan(config, "tune")

    def work(alone_steps: int | None) -> PersonalWork:
        return work_of(
            config,
            plan,
            argparse.Namespace(rank=None, steps=7, learning_rate=None, rows=8, alone_steps=alone_steps),
        )

    assert work(0).alone is None
    by_default, fewer = work(None).alone, work(3).alone
    assert by_default is not None
    assert by_default.hyperparameters.steps == 7
    assert by_default.spec.rank == plan.adapter.rank
    assert fewer is not None
    assert fewer.hyperparameters.steps == 3
