"""The gate: a candidate that does worse on everybody's held-out records is set aside, and the run goes back."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from common.plan import METRIC_GROUPS
from tests.rpc.federation import Federation, MadeUpTrainer, delta_of

EVERY_GROUP = frozenset(group.name for group in METRIC_GROUPS)


def add_sites(federation: Federation, loss: Callable[[int], float]) -> None:
    for index in range(3):
        federation.add_site(f"site-{index}", MadeUpTrainer(delta_of(index), records=500, loss=loss))


def run_to_the_end(federation: Federation) -> None:
    federation.turn_until(lambda: federation.state() in ("succeeded", "failed"))


def test_a_candidate_over_the_bound_is_set_aside_and_training_goes_on_from_the_accepted_adapter(
    federation: Federation,
) -> None:
    # Round 2 measures what round 1 has made, and so on. The candidate of round 2 is the bad one.
    add_sites(federation, lambda round_: {1: 2.0, 2: 1.9, 3: 2.2}.get(round_, 1.8))
    federation.create_run(rounds=3, gate_loss_rise=0.1)
    run_to_the_end(federation)

    first, second, third, fourth, fifth = (federation.round(number) for number in range(1, 6))
    assert federation.state() == "succeeded"
    bad = second["adapter_digest"]
    assert third["base_adapter_digest"] == bad
    assert (third["state"], third["reason"], third["adapter_digest"]) == ("failed", "CANDIDATE_SET_ASIDE", "")
    assert bad[:12] in third["message"]
    assert "2.2000" in third["message"]
    assert "2.0900" in third["message"]  # 1.9 * (1 + 0.1)
    assert fourth["base_adapter_digest"] == first["adapter_digest"]
    assert fifth["kind"] == "evaluate"

    by_digest = {row["name"].removeprefix("adapters/"): row for row in federation.adapters()}
    assert by_digest[bad]["state"] == "set_aside"
    assert by_digest[bad]["heldout_loss"] == pytest.approx(2.2, abs=1e-5)
    assert by_digest[first["adapter_digest"]]["state"] == "accepted"
    assert federation.run()["accepted_adapter_digest"] == fourth["adapter_digest"]
    assert json.loads(by_digest[fourth["adapter_digest"]]["manifest_json"])["parent"] == first["adapter_digest"]
    (line,) = federation.audit("adapter_set_aside")
    assert line["subject"] == f"adapters/{bad}"
    assert "2.2000" in line["details_json"]


def test_what_was_trained_from_a_candidate_that_is_set_aside_is_never_made(federation: Federation) -> None:
    add_sites(federation, lambda round_: {1: 2.0, 2: 3.0}.get(round_, 1.8))
    federation.create_run(rounds=2)
    run_to_the_end(federation)

    known = {row["name"].removeprefix("adapters/") for row in federation.adapters()}
    assert {key.removeprefix("adapters/") for key in federation.blobs("adapters")} == known


def test_the_evaluation_round_can_set_the_last_candidate_aside_and_ends_the_run_all_the_same(
    federation: Federation,
) -> None:
    add_sites(federation, lambda round_: {1: 2.0, 2: 1.9, 3: 5.0}[round_])
    federation.create_run(rounds=2)
    run_to_the_end(federation)

    last = federation.round(3)
    assert (last["kind"], last["state"], last["reason"]) == ("evaluate", "failed", "CANDIDATE_SET_ASIDE")
    assert federation.state() == "succeeded"
    assert federation.run()["accepted_adapter_digest"] == federation.round(1)["adapter_digest"]
    kept = federation.sites["site-0"].state / "adapters" / federation.round(1)["adapter_digest"]
    assert (kept / "adapter_config.json").exists()


def test_a_loss_exactly_at_the_bound_passes(federation: Federation) -> None:
    add_sites(federation, lambda round_: {1: 2.0, 2: 2.5}[round_])
    federation.create_run(rounds=1, gate_loss_rise=0.25)
    run_to_the_end(federation)

    assert federation.round(2)["state"] == "succeeded"
    assert federation.run()["accepted_adapter_digest"] == federation.round(1)["adapter_digest"]


def test_the_masked_figures_are_the_true_sums_of_what_the_sites_have_measured(federation: Federation) -> None:
    own = [
        {"heldout_loss": 130.5, "heldout_tokens": 61.0, "classification_correct": 3.0, "classification_total": 8.0},
        {"heldout_loss": 12.25, "heldout_tokens": 7.0, "span_true_positives": 5.0, "span_false_positives": 2.0},
        {"heldout_loss": 99.0, "heldout_tokens": 40.0, "span_false_negatives": 4.0, "rouge_sum": 1.5},
    ]
    own[2]["rouge_total"] = 4.0
    for index, metrics in enumerate(own):
        metrics |= {"train_loss": 3.5 * index, "train_steps": 2.0}
        # Every site has records of every task: what each lacks here, it has got wrong.
        trainer = MadeUpTrainer(delta_of(index), records=100 + index, metrics=metrics, groups=EVERY_GROUP)
        federation.add_site(f"site-{index}", trainer)
    federation.create_run(rounds=1)
    run_to_the_end(federation)

    for number in (1, 2):
        figures = {metric["name"]: metric["value"] for metric in federation.round(number)["metrics"]}
        assert figures["heldout_loss"] == pytest.approx((130.5 + 12.25 + 99) / (61 + 7 + 40), abs=1e-6)
        assert figures["heldout_tokens"] == 108
        assert figures["classification_accuracy"] == pytest.approx(3 / 8)
        assert figures["span_f1"] == pytest.approx(2 * 5 / (2 * 5 + 2 + 4))
        assert figures["rouge_l"] == pytest.approx(1.5 / 4)
        assert figures["train_loss"] == pytest.approx(10.5 / 6)
        assert figures["train_records"] == 303
        assert figures["survivors"] == 3
        assert figures["weight"] == pytest.approx(0.303, abs=1e-8)
    manifest = json.loads(federation.adapters()[0]["manifest_json"])
    assert manifest["metrics"]["heldout_loss"] == pytest.approx((130.5 + 12.25 + 99) / 108, abs=1e-6)


def test_sites_without_held_out_records_leave_the_candidate_to_pass(federation: Federation) -> None:
    add_sites(federation, lambda round_: 0.0)
    for site in federation.sites.values():
        site.trainer.groups = frozenset()
    federation.create_run(rounds=1)
    run_to_the_end(federation)

    assert federation.round(2)["state"] == "succeeded"
    assert "too few of the cohort have held-out records" in federation.audit("adapter_accepted")[0]["details_json"]
