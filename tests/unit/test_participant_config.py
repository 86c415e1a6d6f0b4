"""The participant's two files: what they become, and what a person is told about every mistake."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.errors import ConfigInvalid
from participant.config import CharterMode, load_config, load_unpinned_config
from participant.policy_file import load_policy
from participant.training.job import Device

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"

CONFIG = """
state_directory = "state"
policy_file = "policy.toml"
base_models = [{ source = "model" }]
data = { train_file = "train.jsonl" }
charter = { mode = "coordinator" }
"""
POLICY = """
base_models = { allow = "any" }
adapter = { most_rank = 8 }
masking = { least_cohort = 3, most_element_clip = 0.1, most_update_norm = 10.0 }
training = { most_learning_rate = 0.001, most_steps_per_round = 10, most_batch_size = 8, most_length = 512 }
rounds = { most_in_a_run = 5 }
"""


@pytest.fixture
def written(tmp_path):
    def write(text: str, name: str = "participant.toml") -> Path:
        file = tmp_path / name
        file.write_text(text)
        return file

    return write


def told(file: Path, load=load_config) -> str:
    with pytest.raises(ConfigInvalid) as caught:
        load(file)
    return str(caught.value)


# --- participant.toml ----------------------------------------------------------------------------------------------


def test_the_example_configuration_loads():
    config = load_config(EXAMPLES / "participant.toml")
    assert config.policy_file == EXAMPLES / "policy.toml"
    assert config.charter.mode is CharterMode.PINNED
    assert config.charter.file == EXAMPLES / "charter.json"
    assert config.metrics.is_served


def test_every_setting_of_the_example_is_also_documented_by_the_model():
    load_config(EXAMPLES / "participant.toml")
    uncommented = "\n".join(
        line.removeprefix("# ")
        for line in (EXAMPLES / "participant.toml").read_text().splitlines()
        if line.startswith("# ") and "=" in line and line.removeprefix("# ").split(" =")[0].isidentifier()
    )
    assert {line.split(" =")[0] for line in uncommented.splitlines()} == {
        "source",
        "digest",
        "most_train_records",
        "most_none_fraction",
        "address",
        "proxy",
        "proxy_password_file",
        "poll_seconds",
        "keepalive_seconds",
        "journal_counter",
        "memory_mebibytes",
        "processes",
        "sharding",
        "certificate",
        "key",
        "client_ca",
        "trust",
        "endpoint",
        "ca",
    }


def test_relative_paths_are_relative_to_the_file_and_not_to_where_the_command_runs(written, monkeypatch):
    file = written(CONFIG)
    monkeypatch.chdir("/")
    config = load_config(file)
    assert config.state_directory == file.parent / "state"
    assert config.data.train_file == file.parent / "train.jsonl"
    assert config.base_models[0].source == str(file.parent / "model")
    assert config.identity_directory == file.parent / "state" / "identity"
    assert config.cache_directory == file.parent / "state" / "base-models"


def test_a_hub_name_is_no_path_and_a_home_folder_is_found(written, monkeypatch):
    monkeypatch.setenv("HOME", "/home/site")
    text = CONFIG.replace('{ source = "model" }', '{ source = "hub:owner/name@main" }, { source = "~/model.gguf" }')
    assert [model.source for model in load_config(written(text)).base_models] == [
        "hub:owner/name@main",
        "/home/site/model.gguf",
    ]


def test_all_mistakes_are_told_at_once_with_their_paths(written):
    message = told(
        written("""
policy_file = "policy.toml"
state_directry = "state"
base_models = [{ source = "a" }, { sorce = "b" }]
data = { train_file = "train.jsonl", held_out_fraction = 1.5 }
charter = { mode = "pinned" }
coordinator = { address = "accord.example.org" }
training = { threads = 0, device = "tpu" }
""")
    )
    assert "has 9 mistakes" in message
    assert "state_directry: there is no such setting; did you mean state_directory?" in message
    assert "state_directory: is missing" in message
    assert "base_models[1].sorce: there is no such setting; did you mean source?" in message
    assert "base_models[1].source: is missing" in message
    assert "data.held_out_fraction: " in message
    assert "charter: mode is pinned, which needs file and digest" in message
    assert "coordinator.address: 'accord.example.org' is not host:port" in message
    assert "training.threads: " in message
    assert "training.device: " in message


def test_a_pinned_charter_is_the_default(written):
    assert "which needs file and digest" in told(
        written(CONFIG.replace('charter = { mode = "coordinator" }', "charter = {}"))
    )


def test_what_comes_before_the_charter_is_pinned_can_be_done_without_it(written):
    config = load_unpinned_config(written(CONFIG.replace('charter = { mode = "coordinator" }', "charter = {}")))
    assert config.charter.mode is CharterMode.PINNED
    assert config.charter.digest is None


def test_a_digest_that_nobody_compares_is_a_mistake(written):
    text = CONFIG.replace('{ mode = "coordinator" }', '{ mode = "coordinator", digest = "' + "a" * 64 + '" }')
    assert "only compared with" in told(written(text))


def test_a_base_model_named_twice_is_a_mistake(written):
    assert "twice" in told(written(CONFIG.replace('[{ source = "model" }]', '[{ source = "m" }, { source = "m" }]')))


def test_no_base_model_is_a_mistake(written):
    assert "base_models: " in told(written(CONFIG.replace('[{ source = "model" }]', "[]")))


@pytest.mark.parametrize("address", ["host", "host:0", "host:70000", "https://host:443", ":7443", "host:7443/path"])
def test_an_address_that_is_not_host_and_port_is_a_mistake(written, address):
    assert "is not host:port" in told(written(CONFIG + f'coordinator = {{ address = "{address}" }}'))


@pytest.mark.parametrize("address", ["accord.example.org:7443", "127.0.0.1:1", "[::1]:65535"])
def test_an_address_may_be_a_name_or_a_number(written, address):
    text = CONFIG + f'coordinator = {{ address = "{address}" }}'
    assert load_config(written(text)).coordinator.address == address


def test_a_missing_file_and_broken_toml_are_told(written, tmp_path):
    assert "cannot read" in told(tmp_path / "nowhere.toml")
    assert "is not TOML" in told(written("state_directory = [\n"))


def test_the_policys_limit_on_records_holds_whatever_the_configuration_says(written):
    config = load_config(
        written(
            CONFIG.replace("train.jsonl", "train.jsonl").replace(" }\ncharter", ", most_train_records = 500 }\ncharter")
        )
    )
    assert config.data.settings(load_policy(written(POLICY, "policy.toml"))).train_limit == 500
    strict = load_policy(written(POLICY + "data = { most_records = 100 }", "policy.toml"))
    assert config.data.settings(strict).train_limit == 100
    assert load_config(written(CONFIG)).data.settings(strict).train_limit == 100


def test_settings_reach_the_training_process(written):
    config = load_config(
        written(CONFIG + 'training = { threads = 3, device = "cpu" }\nevaluation = { loss_records = 7 }')
    )
    assert config.training.resources().threads == 3
    assert config.training.resources().device is Device.CPU
    assert config.evaluation.settings().loss_records == 7


# --- policy.toml ---------------------------------------------------------------------------------------------------


def test_the_example_policy_loads_and_its_hours_are_the_sites_own():
    policy = load_policy(EXAMPLES / "policy.toml")
    assert policy.base_models is None
    assert policy.adapter.modules is not None
    assert "q_proj" in policy.adapter.modules
    assert policy.hours.is_open(datetime(2026, 7, 6, 16, 30, tzinfo=UTC))  # Monday 18:30 in Zurich
    assert not policy.hours.is_open(datetime(2026, 7, 6, 15, 30, tzinfo=UTC))


def test_limits_in_mebibytes_become_bytes(written):
    policy = load_policy(written(POLICY + "transfer = { most_upload_mebibytes_a_day = 3 }", "policy.toml"))
    assert policy.daily.upload_bytes == 3 * 1024 * 1024
    assert policy.daily.download_bytes is None


@pytest.mark.parametrize("section", ["base_models", "adapter", "masking", "training", "rounds"])
def test_what_a_site_must_decide_has_no_default(written, section):
    text = "\n".join(line for line in POLICY.splitlines() if not line.startswith(section))
    assert f"{section}: is missing" in told(written(text, "policy.toml"), load_policy)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('allow = "any"', 'allow = "all"', "base_models.allow: "),
        ('allow = "any"', 'allow = ["abc"]', "base_models.allow[0]: is not a digest"),
        ('allow = "any"', "allow = []", "base_models.allow: "),
        ("least_cohort = 3", "least_cohort = 2", "masking.least_cohort: "),
        ("most_update_norm = 10.0", "most_update_norm = nan", "masking.most_update_norm: "),
        ("most_update_norm = 10.0", "most_update_norm = inf", "masking.most_update_norm: "),
        ("most_rank = 8", "most_rank = 8, most_rnk = 9", "adapter.most_rnk: there is no such setting; did you mean"),
        ("most_in_a_run = 5", 'most_in_a_run = "many"', "rounds.most_in_a_run: "),
    ],
)  # fmt: skip
def test_a_mistake_in_the_policy_is_told_with_its_path(written, old, new, expected):
    assert expected in told(written(POLICY.replace(old, new), "policy.toml"), load_policy)


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ('hours = { time_zone = "Europe/Zuerich" }', "hours.time_zone: 'Europe/Zuerich' is not a time zone"),
        ('hours = { allow = ["mon 9-17"] }', "hours.allow: 'mon 9-17' are no hours; write days and hours like"),
        ('instruction_set = { placeholders = ["secret"] }', "instruction_set.placeholders: secret is no placeholder"),
    ],
)
def test_hours_and_placeholders_are_checked_when_the_policy_is_read(written, addition, expected):
    assert expected in told(written(POLICY + addition, "policy.toml"), load_policy)
