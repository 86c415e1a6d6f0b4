"""What a plan may say of privacy: each mistake is named, defaults fit the plan's words, and manifests carry it."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.domains import PlanDomain
from common.errors import PlanInvalid
from common.instructions import Task
from common.manifest import read_manifest
from common.plan import METRIC_GROUPS, Plan
from common.privacy import LargestPart, MetricNoise, Privacy, PrivateTraining, largest_part, noisy_words, told_sums
from common.secagg import MetricGroup
from coordinator.domain_planning import with_domains
from coordinator.manifests import build_manifest
from coordinator.privacy_planning import with_privacy
from coordinator.services.admin_client import plan_settings
from participant.policy import PrivacyBounds
from participant.policy_file import load_policy
from tests.unit.rounds import made
from tests.unit.test_participant_config import POLICY as POLICY_TEXT

ROOT = Path(__file__).parents[2]

PLAN = made.plan()
ASKED = '{"training": {"epsilon": 4.0}, "metrics": {"multiplier": 10.0}}'
NAN = float("nan")


def test_asked_terms_become_the_plans_with_a_bound_for_every_word_of_the_groups():
    plan, mistakes = with_privacy(PLAN, ASKED)
    assert mistakes == []
    assert plan.privacy.training == PrivateTraining(4.0)
    assert plan.privacy.metrics is not None
    assert plan.privacy.metrics.most("heldout_tokens") == 1.0
    assert {part.word for part in plan.privacy.metrics.parts} == {w for group in METRIC_GROUPS for w in group.words}
    assert Plan.from_bytes(plan.to_bytes()) == plan


def test_a_plan_that_asks_for_nothing_says_so():
    assert with_privacy(PLAN, "") == (PLAN, [])
    assert PLAN.privacy == Privacy()


@pytest.mark.parametrize(
    ("asked", "why"),
    [("{", "privacy_json"), ('{"epsilon": 4}', "epsilon"), ('{"training": {}}', "training.epsilon")],
)
def test_terms_that_cannot_be_read_are_a_mistake_of_the_settings(asked, why):
    _, mistakes = with_privacy(PLAN, asked)
    assert why in mistakes[0]


def test_noise_is_refused_for_a_word_of_which_nothing_is_known():
    groups = (*PLAN.masking.metric_groups, MetricGroup("odd", ("oddity",)))
    odd = replace(PLAN, masking=replace(PLAN.masking, metric_groups=groups))
    assert "oddity" in with_privacy(odd, ASKED)[1][0]


PARTS = tuple(LargestPart(word, largest_part(word) or 0.0) for word in noisy_words(PLAN.masking.metric_groups))
BROKEN = {
    "epsilon must be over 0": Privacy(PrivateTraining(0.0)),
    "epsilon must be over 0 and at most 100": Privacy(PrivateTraining(NAN)),
    "clip must be": Privacy(PrivateTraining(1.0, clip=float("inf"))),
    "delta must be": Privacy(PrivateTraining(1.0, delta=0.5)),
    "spare_rounds must be": Privacy(PrivateTraining(1.0, spare_rounds=-1)),
    "multiplier must be": Privacy(metrics=MetricNoise(NAN, PARTS)),
    "they differ in": Privacy(metrics=MetricNoise(1.0, PARTS[1:])),
    "distinct words": Privacy(metrics=MetricNoise(1.0, (*PARTS, PARTS[0]))),
    "does not cut a record's part in heldout_loss": Privacy(
        metrics=MetricNoise(1.0, (replace(PARTS[0], most=0.1), *PARTS[1:]))
    ),
}


@pytest.mark.parametrize("why", BROKEN)
def test_terms_that_promise_nothing_are_a_mistake_of_the_plan(why):
    with pytest.raises(PlanInvalid, match=why):
        replace(PLAN, privacy=BROKEN[why]).check()


def test_the_manifest_says_what_the_plan_asks_of_each_site_or_nothing():
    def manifest_of(plan):
        return build_manifest(
            plan,
            plan_digest="ab" * 32,
            round_number=1,
            digest="cd" * 32,
            parent=None,
            survivors=("a", "b", "c"),
            metrics=(),
            instruction_set=plan.instruction_set,
            at=datetime(2026, 1, 1, tzinfo=UTC),
        )

    plan, _ = with_privacy(PLAN, ASKED)
    assert read_manifest(manifest_of(plan).to_bytes()).privacy == plan.privacy
    assert manifest_of(PLAN).privacy is None


def test_noise_takes_no_sum_below_zero_and_a_lie_stays_one():
    noise = MetricNoise(1.0, PARTS)
    assert told_sums({"heldout_tokens": -3.0, "train_steps": -3.0}, noise) == {
        "heldout_tokens": 0.0,
        "train_steps": -3.0,
    }
    assert told_sums({"heldout_tokens": -3.0}, None) == {"heldout_tokens": -3.0}


def test_what_a_site_reaches_alone_is_not_told_where_training_is_private():
    domains = (PlanDomain("law", (Task.NER,)),)
    plan, mistakes = with_domains(PLAN, domains, '{"reference": "local"}')
    assert mistakes == []
    plan.check()
    with pytest.raises(PlanInvalid, match="local trains without privacy"):
        replace(plan, privacy=Privacy(PrivateTraining(4.0))).check()


def test_words_of_domains_get_their_bounds_and_training_sizes_no_noise():
    plan, mistakes = with_domains(PLAN, (PlanDomain("law", (Task.NER,)),), '{"reference": "given"}')
    assert mistakes == []
    plan, mistakes = with_privacy(plan, ASKED)
    assert mistakes == []
    plan.check()
    assert plan.privacy.metrics is not None
    assert plan.privacy.metrics.most("law/ner/loss") == 6.0
    assert plan.privacy.metrics.most("law/records") is None


def test_the_example_settings_make_a_private_plan():
    settings = tomllib.loads((ROOT / "deploy" / "examples" / "private.toml").read_text())
    plan, mistakes = with_privacy(PLAN, plan_settings(settings).privacy_json)
    assert mistakes == []
    assert plan.privacy.training == PrivateTraining(4.0, clip=0.5, spare_rounds=1)
    plan.check()


def test_the_documents_policy_and_settings_can_be_read(tmp_path):
    budget, run = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "privacy.md").read_text(), flags=re.DOTALL)
    (tmp_path / "policy.toml").write_text(POLICY_TEXT + budget)
    assert load_policy(tmp_path / "policy.toml").privacy == PrivacyBounds(
        8.0, most_epsilon_in_a_run=4.0, must_train_privately=True
    )
    assert with_privacy(PLAN, tomllib.loads(run)["privacy_json"])[1] == []
