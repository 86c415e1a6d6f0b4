"""What the policy asks of a plan's privacy, what the file says of it, and how one record's part is cut."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.errors import ConfigInvalid, DataInvalid, PolicyRefusal
from common.privacy import LARGEST_PARTS, Privacy
from participant import guard
from participant.policy import PrivacyBounds
from participant.policy_file import load_policy
from participant.privacy.files import private_records
from participant.training.bounds import bounded
from participant.training.job import DataSettings
from participant.training.result import DomainScores
from tests.unit.privacy.test_desk import NOISE, plan_of
from tests.unit.test_guard import CHARTER, PLAN, POLICY
from tests.unit.test_participant_config import POLICY as POLICY_TEXT


def refusal(bounds, privacy=None):
    plan = replace(PLAN, privacy=privacy or Privacy())
    with pytest.raises(PolicyRefusal) as caught:
        guard.review(plan, policy=replace(POLICY, privacy=bounds), charter=CHARTER, participant="bank")
    return str(caught.value)


def test_a_site_that_trains_privately_only_refuses_a_plan_that_does_not():
    assert "with differential privacy only" in refusal(PrivacyBounds(8.0, must_train_privately=True))


def test_a_site_that_gives_noisy_figures_only_refuses_a_plan_that_asks_for_exact_ones():
    bounds = PrivacyBounds(8.0, must_have_noisy_figures=True)
    assert "with noise only" in refusal(bounds, plan_of().privacy)


def test_a_plans_delta_may_not_be_over_the_sites():
    bounds = PrivacyBounds(8.0, delta=1e-6)
    assert "privacy.training.delta: is 1e-05" in refusal(bounds, plan_of(delta=1e-5).privacy)


def test_a_plan_that_asks_for_all_that_the_site_wants_is_joined():
    bounds = PrivacyBounds(8.0, must_train_privately=True, must_have_noisy_figures=True)
    plan = replace(PLAN, privacy=replace(plan_of().privacy, metrics=NOISE))
    guard.review(plan, policy=replace(POLICY, privacy=bounds), charter=CHARTER, participant="bank")
    guard.review(PLAN, policy=POLICY, charter=CHARTER, participant="bank")


def written(tmp_path, section):
    file = tmp_path / "policy.toml"
    file.write_text(POLICY_TEXT + section)
    return file


def test_the_policy_file_says_budget_and_requirements(tmp_path):
    section = (
        '[privacy]\nepsilon = 8.0\nunit = "record"\nrequire = ["training", "figures"]\nmost_epsilon_in_a_run = 2.0\n'
    )
    assert load_policy(written(tmp_path, section)).privacy == PrivacyBounds(
        8.0, most_epsilon_in_a_run=2.0, must_train_privately=True, must_have_noisy_figures=True
    )
    assert load_policy(written(tmp_path, "")).privacy is None


@pytest.mark.parametrize(
    "section",
    [
        "[privacy]\nepsilon = 0.0\n",
        "[privacy]\ndelta = 1e-5\n",
        '[privacy]\nepsilon = 1.0\nunit = "organisation"\n',
        "[privacy]\nepsilon = 1.0\ndelta = 0.5\n",
        '[privacy]\nepsilon = 1.0\ndata_set = "../other"\n',
        '[privacy]\nepsilon = 1.0\nrequire = ["everything"]\n',
    ],
)
def test_a_budget_that_says_nothing_sound_is_a_mistake_of_the_file(tmp_path, section):
    with pytest.raises(ConfigInvalid, match="privacy"):
        load_policy(written(tmp_path, section))


def test_one_records_part_is_cut_to_the_largest_and_its_loss_counts_once():
    long = DomainScores(domain="law", loss_sum=9000.0, loss_tokens=300, loss_records=1, loss_square_sum=900.0)
    cut = bounded(long)
    assert (cut.loss_sum, cut.loss_tokens, cut.loss_square_sum) == (6.0, 1, 36.0)
    usual = bounded(replace(long, loss_sum=600.0))
    assert (usual.loss_sum, usual.loss_tokens) == (2.0, 1)
    spans = bounded(DomainScores(domain="law", ner_records=1, true_positives=50, false_negatives=3))
    assert (spans.true_positives, spans.false_negatives) == (LARGEST_PARTS["span_true_positives"], 3)
    assert (spans.loss_sum, spans.loss_tokens) == (0.0, 0)


def test_records_are_counted_only_where_no_limit_chooses_among_them(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("".join(f'{{"instruction": "say {n}", "output": "{n}"}}\n' for n in range(50)))
    settings = DataSettings(train_path=file, held_out_fraction=0.0)
    assert private_records(settings) == 50
    assert private_records(replace(settings, train_limit=50)) == 50
    with pytest.raises(DataInvalid, match="10 records are left out"):
        private_records(replace(settings, train_limit=40))
