"""The statement says what was promised and spent, what is not covered, and claims nothing for an organisation."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from participant.__main__ import main
from participant.policy import PrivacyBounds
from participant.privacy.desk import usual_delta
from participant.privacy.ledger import Ledger
from participant.privacy.statement import statement_of, words_of
from tests.unit.privacy.test_desk import NOISE, PLAIN, begin, begin_all, desk_of, plan_of, spent
from tests.unit.test_participant_config import CONFIG, POLICY

BOUNDS = PrivacyBounds(epsilon=8.0)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "state" / "privacy" / "records.jsonl", counter=tmp_path / "state/privacy-records.counter")


def statement(ledger, *, plans=(), bounds=BOUNDS, records=400):
    return statement_of(
        training=ledger.training(),
        figures=ledger.figures(),
        plans=plans,
        bounds=bounds,
        data_set="records",
        records=records,
    )


def told(*args, **options):
    """Without line breaks, which are where the page ends."""
    return " ".join(words_of(statement(*args, **options)).split())


def test_a_run_is_told_with_what_it_spent_and_what_its_plan_asked(ledger, tmp_path):
    plan = plan_of(4.0, spare_rounds=0)
    begin_all(desk_of(ledger), plan, (1, 2), tmp_path)
    found = statement(ledger, plans=[plan])
    assert found.epsilon == spent(ledger)
    assert found.left == pytest.approx(8.0 - found.epsilon)
    [run] = found.runs
    assert (run.run, run.rounds, run.steps, run.records, run.epsilon_asked) == ("tune", 2, 20, 400, 4.0)
    assert run.delta == found.delta == usual_delta(400)
    words = told(ledger, plans=[plan])
    assert f"({found.epsilon:.2f}, 0.00025)-differentially private" in words
    assert "Unit: one record, which is one row" in words
    assert f"epsilon 8; {found.left:.2f} is left" in words
    assert "Run tune: epsilon" in words
    assert "its plan's is 4" in words


def test_what_is_not_covered_is_said_as_plainly_as_what_is(ledger, tmp_path):
    begin(desk_of(ledger), plan_of(), 1, tmp_path)
    words = told(ledger)
    for claim in (
        "a person with k rows has k times this epsilon",
        "held-out records, which are never trained on",
        "figures about them leave in sums with other sites', without noise",
        "no epsilon is claimed for a whole organisation",
        "That is not differential privacy",
        "numbers of training records",
    ):
        assert claim in words


def test_runs_without_private_training_are_named_with_what_that_means(ledger):
    words = told(ledger, plans=[PLAIN])
    assert "No private training has been counted" in words
    assert f"Runs without private training: {PLAIN.run}. These have no formal bound" in words


def test_noisy_figures_have_an_epsilon_of_their_own_and_say_whom_it_counts_on(ledger, tmp_path):
    begin(desk_of(ledger), plan_of(noise=NOISE), 1, tmp_path)
    found = statement(ledger)
    assert found.figures_rounds == 1
    assert 0 < found.figures_epsilon < 2
    words = told(ledger)
    assert (
        f"({found.figures_epsilon:.2f}, 0.00025)-differentially private with respect to adding or removing one held-out"
        in words
    )
    assert "being honest and staying to the end" in words


def test_a_site_without_a_budget_is_told_how_to_set_one(ledger):
    assert "policy.toml can ([privacy] epsilon" in told(ledger, bounds=None)


def test_no_line_is_wider_than_a_page(ledger, tmp_path):
    begin(desk_of(ledger), plan_of(noise=NOISE), 1, tmp_path)
    assert max(map(len, words_of(statement(ledger, plans=[replace(PLAIN, run="other")])).splitlines())) <= 100


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    (tmp_path / "policy.toml").write_text(POLICY + "privacy = { epsilon = 8.0 }\n")
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps({"instruction": f"say {n}", "output": str(n)}) + "\n" for n in range(50))
    )
    (tmp_path / "participant.toml").write_text(CONFIG)
    return tmp_path / "participant.toml"


def test_the_command_reads_the_sites_own_files_and_makes_none(config, tmp_path, capsys):
    assert main(["privacy", "--config", str(config)]) == 0
    assert "No private training has been counted" in capsys.readouterr().out
    assert not (tmp_path / "state").exists()


def test_the_command_prints_json_for_scripts(config, ledger, tmp_path, capsys):
    begin(desk_of(ledger), plan_of(4.0), 1, tmp_path)
    assert main(["privacy", "--config", str(config), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["budget"] == 8.0
    assert 0 < found["epsilon"] < 4.0
    assert found["runs"][0]["run"] == "tune"


def test_a_ledger_that_is_not_believed_ends_the_command_with_its_reason(config, ledger, tmp_path, capsys):
    begin(desk_of(ledger), plan_of(4.0), 1, tmp_path)
    (tmp_path / "state" / "privacy" / "records.jsonl").write_bytes(b"")
    assert main(["privacy", "--config", str(config)]) == 7
    assert "has 0 entries and had 1" in capsys.readouterr().err
