"""Whole runs against the real coordinator: what is published, what is counted, what operators may do meanwhile."""

from __future__ import annotations

import numpy as np

from participant.metrics import WorkPhase
from tests.rpc.federation import Federation


def test_a_run_publishes_the_weighted_mean_of_the_deltas_and_ends_with_an_evaluation(federation: Federation) -> None:
    names = federation.add_sites(3)
    federation.create_run(rounds=2)
    federation.turn_until(lambda: federation.state() == "succeeded")

    for number in (1, 2):
        errors, bound = federation.errors(number, names)
        assert errors.max() <= bound
        assert np.count_nonzero(errors) > 0
    kinds = [(found["kind"], found["state"]) for found in federation.admin.rounds("runs/run")]
    assert kinds == [("evaluate", "succeeded"), ("train", "succeeded"), ("train", "succeeded")]
    assert federation.run()["accepted_adapter_digest"] == federation.round(2)["adapter_digest"]


def test_a_site_measures_the_time_of_every_part_of_its_rounds(federation: Federation) -> None:
    federation.add_sites(3)
    federation.create_run(rounds=1)
    federation.turn_until(lambda: federation.state() == "succeeded")

    (measured,) = federation.sites["site-0"].daemon._metrics.phase_seconds.collect()
    times = {sample.labels["phase"]: sample.value for sample in measured.samples if sample.name.endswith("_count")}
    assert times.keys() == {phase.value for phase in WorkPhase}
    assert times["prepare"] == 2  # the training round and the evaluation
    assert times["key_setup"] >= 3
