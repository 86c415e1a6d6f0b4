"""What the demo's sites write before they join: files that the participant reads, and policies that fit the plan."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from common.basemodel import BaseModel
from common.errors import ConfigInvalid, InvalidArgument
from coordinator.services.admin_client import plan_settings
from demo.__main__ import build_parser, settings_of
from demo.domains import Site
from demo.settings import DemoSettings, Training
from demo.sites import STYLES, BaseModelFolder, pin_charter, prepare_site
from demo.sources.records import Task
from participant.config import load_config, load_unpinned_config
from participant.policy_file import load_policy

MODEL = BaseModelFolder(Path('/models/"tiny" one'), "a" * 64, Path("/cache"))


@pytest.fixture
def site(tmp_path):
    for part in ("train", "heldout"):
        (tmp_path / f"{part}.jsonl").write_text('{"instruction": "Say it.", "output": "It."}\n')
    return Site(
        name="clinic",
        title='clinic: "what" is it\\',
        domain="medicine",
        task=Task.CLASSIFICATION,
        source="a package",
        note="",
        labels=(),
        train_path=tmp_path / "train.jsonl",
        held_out_path=tmp_path / "heldout.jsonl",
        train_records=1,
        held_out_records=1,
    )


@pytest.fixture
def settings(tmp_path):
    return DemoSettings(root=tmp_path / "root", cache=tmp_path / "cache", records=12)


def test_a_site_has_its_own_records_and_pins_the_charter_once_it_is_agreed(tmp_path, site, settings):
    folder = tmp_path / "clinic"
    prepare_site(folder, site, model=MODEL, settings=settings, style=0)
    with pytest.raises(ConfigInvalid, match="mode is pinned"):
        load_config(folder / "participant.toml")
    assert load_unpinned_config(folder / "participant.toml").charter.digest is None
    pin_charter(folder, site, "b" * 64, model=MODEL, settings=settings)
    config = load_config(folder / "participant.toml")
    assert config.charter.mode.value == "pinned"
    assert config.charter.digest == "b" * 64
    assert config.data.train_file == folder / "data" / "train.jsonl"
    assert config.data.train_file.read_bytes() == site.train_path.read_bytes()
    assert config.data.most_train_records == 12
    assert [(model.source, model.digest) for model in config.base_models] == [(str(MODEL.folder), MODEL.digest)]
    assert config.state_directory == folder / "state"


@pytest.mark.parametrize("style", range(len(STYLES)))
@pytest.mark.parametrize("rounds", [1, 500])
def test_every_policy_can_be_read_and_allows_what_the_demo_asks_for(tmp_path, site, settings, style, rounds):
    asked = replace(settings, training=replace(Training(), rounds=rounds, steps_per_round=3000, learning_rate=0.009))
    prepare_site(tmp_path / "site", site, model=MODEL, settings=asked, style=style)
    policy = load_policy(tmp_path / "site" / "policy.toml")
    training = asked.training
    assert policy.base_models == frozenset({MODEL.digest})
    assert policy.masking.least_cohort == 3
    assert policy.most_rounds_in_a_run >= rounds
    assert (policy.daily.rounds or 0) > rounds
    assert policy.adapter.most_rank >= training.rank
    assert policy.training.most_steps_per_round >= training.steps_per_round
    assert policy.training.most_learning_rate >= training.learning_rate
    # The coordinator's default: twice what plain steps could move an element.
    assert policy.masking.most_element_clip >= 2 * training.learning_rate * training.steps_per_round


def test_no_two_sites_agree_to_the_same(tmp_path, site, settings):
    texts = set()
    for style in range(len(STYLES)):
        prepare_site(tmp_path / str(style), site, model=MODEL, settings=settings, style=style)
        texts.add(str(tomllib.loads((tmp_path / str(style) / "policy.toml").read_text())))
    assert len(texts) == len(STYLES)


def test_plan_settings_are_those_of_the_api(settings):
    model = BaseModel("tiny", "a" * 64, "TinyForCausalLM", (), 0, "F32")
    message = plan_settings(settings.training.plan_settings(model))
    assert (message.rank, message.rounds) == (8, 3)
    with pytest.raises(InvalidArgument):
        plan_settings({**settings.training.plan_settings(model), "ranks": 8})


def test_the_command_line_becomes_settings(tmp_path):
    words = ["--rounds", "5", "--steps", "2", "--records", "6", "--json", "r.json", "--folder", str(tmp_path)]
    settings = settings_of(build_parser().parse_args(words))
    assert (settings.training.rounds, settings.training.steps_per_round) == (5, 2)
    assert (settings.records, settings.judging.loss_records, settings.judging.ner_records) == (6, 6, 6)
    assert settings.json_file == Path("r.json")
    assert settings.root == tmp_path


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_rounds_that_are_no_number_of_rounds_are_refused(rounds, capsys):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["--rounds", rounds])
    assert ended.value.code == 2
    assert "--rounds" in capsys.readouterr().err
