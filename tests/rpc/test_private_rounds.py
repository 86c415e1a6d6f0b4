"""Private runs through the real calls: what sites count, what they are allowed, and what the coordinator sees."""

from __future__ import annotations

import json

import pytest

from common.errors import TrainingFailed
from common.states import RoundState
from participant import app as participant_app
from participant.journal import RoundPhase, RunStanding
from participant.privacy.desk import PrivacyDesk
from participant.privacy.ledger import EntryKind, Ledger
from participant.trainer import Preparation
from participant.training.job import PrivateSettings
from tests.rpc.federation import POLICY, Federation, MadeUpTrainer, Site, delta_of
from tests.rpc.test_metric_groups import figures_of, unmasked_words

TERMS = {"training": {"epsilon": 4.0, "clip": 0.5}, "metrics": {"multiplier": 0.5}}
STEPS = 1 << 14  # words of a sum count 2**-20, noise and what it is added to 1/64


@pytest.fixture(autouse=True)
def records(monkeypatch):
    """The sites' data is made up; its number is what private terms are made from."""
    monkeypatch.setattr(participant_app, "private_records", lambda settings: 500)


def ledger_of(federation: Federation, name: str) -> Ledger:
    state = federation.sites[name].state
    return Ledger(state / "privacy" / "records.jsonl", counter=state / "privacy-records.counter")


def kinds_of(federation: Federation, name: str) -> list[EntryKind]:
    return [entry.kind for entry in ledger_of(federation, name).entries()]


def phase_of(site: Site) -> RoundPhase:
    """Of round 1 at a site."""
    journal = site.journal()
    try:
        entry = journal.round("run", 1)
    finally:
        journal.close()
    assert entry is not None
    return entry.phase


def create_run(federation: Federation, terms: object = TERMS, *, rounds: int = 1) -> None:
    federation.create_run(privacy_json=json.dumps(terms), batch_size=16, steps_per_round=10, rounds=rounds)


def test_every_round_is_counted_trained_privately_and_told_with_noise(federation):
    told: list[PrivateSettings | None] = []
    for index in range(3):
        trainer = MadeUpTrainer(delta_of(index), records=500, spoil=lambda work: told.append(work.private))
        federation.add_site(f"site-{index}", trainer)
    create_run(federation, rounds=2)
    differing = 0
    for number in (1, 2):
        found = federation.play(number)
        assert found["state"] == RoundState.SUCCEEDED.value
        words = unmasked_words(federation, number)
        assert words["heldout_loss"] % STEPS == words["heldout_tokens"] % STEPS == 0
        differing += (words["heldout_loss"] != 300 << 20) + (words["heldout_tokens"] != 150 << 20)
        # A sum of three shares where two are counted on: a deviation of at most four in 300 nats, and one in 150.
        assert figures_of(found)["heldout_loss"] == pytest.approx(2.0, rel=0.2)
    assert differing >= 2
    assert len(told) == 6
    assert {settings.sample_rate for settings in told if settings is not None} == {16 / 500}
    assert None not in told
    for name in federation.sites:
        assert kinds_of(federation, name) == [EntryKind.FIGURES, EntryKind.TRAINING] * 2
        assert sum(entry.steps for entry in ledger_of(federation, name).training()) == 20
    manifest = json.loads(federation.adapters()[0]["manifest_json"])
    assert manifest["privacy"]["training"]["epsilon"] == 4.0


def test_a_site_whose_budget_a_run_would_exceed_declines_it_with_what_is_left(federation):
    federation.add_sites(3)
    federation.add_site("thrifty", MadeUpTrainer(delta_of(9)), policy=POLICY + "[privacy]\nepsilon = 1.5\n")
    create_run(federation, rounds=3)
    federation.play(1)
    journal = federation.sites["thrifty"].journal()
    try:
        entry = journal.run("run")
    finally:
        journal.close()
    assert entry is not None
    assert entry.standing is RunStanding.DECLINED
    assert "epsilon 1.5" in entry.message
    assert "1.50 is left" in entry.message
    assert ledger_of(federation, "thrifty").entries() == ()
    assert federation.sites["thrifty"].trainer.prepared == []


def test_a_site_that_trains_privately_only_declines_a_plan_that_does_not(federation):
    federation.add_sites(3)
    policy = POLICY + '[privacy]\nepsilon = 8.0\nrequire = ["training"]\n'
    federation.add_site("strict", MadeUpTrainer(delta_of(9)), policy=policy)
    federation.create_run()
    assert federation.play(1)["state"] == RoundState.SUCCEEDED.value
    assert federation.sites["strict"].trainer.prepared == []


def test_a_round_that_goes_on_without_a_prepared_site_costs_it_nothing(federation):
    federation.add_sites(4)
    create_run(federation, {"training": {"epsilon": 4.0}}, rounds=2)
    left_out = federation.sites["site-3"]
    left_out.line.cut(after="report_prepared")
    assert federation.play(1)["state"] == RoundState.SUCCEEDED.value
    assert kinds_of(federation, "site-3") == [EntryKind.TRAINING]
    left_out.line.mend()
    federation.play(2)
    assert kinds_of(federation, "site-3") == [EntryKind.TRAINING, EntryKind.RETURNED, EntryKind.TRAINING]
    assert [entry.round for entry in ledger_of(federation, "site-3").training()] == [2]
    assert [entry.round for entry in ledger_of(federation, "site-0").training()] == [1, 2]


def test_a_kill_once_a_round_was_given_back_leaves_nothing_of_it_to_send(federation, monkeypatch):
    federation.add_sites(4)
    create_run(federation, {"training": {"epsilon": 4.0}}, rounds=2)
    left_out = federation.sites["site-3"]
    left_out.line.cut(after="report_prepared")
    assert federation.play(1)["state"] == RoundState.SUCCEEDED.value
    assert phase_of(left_out) is RoundPhase.PREPARED
    give_back = PrivacyDesk.give_back

    def killed(*arguments, **named):
        give_back(*arguments, **named)
        raise KeyboardInterrupt

    left_out.line.mend()
    with monkeypatch.context() as patched:
        patched.setattr(PrivacyDesk, "give_back", killed)
        with pytest.raises(KeyboardInterrupt):
            left_out.turn()
    assert kinds_of(federation, "site-3") == [EntryKind.TRAINING, EntryKind.RETURNED]
    assert phase_of(left_out) is RoundPhase.FAILED
    federation.reopen_site("site-3")
    assert federation.play(2)["state"] == RoundState.SUCCEEDED.value
    assert [entry.round for entry in ledger_of(federation, "site-3").training()] == [2]


def test_a_site_that_is_killed_while_it_prepares_counts_its_round_once(federation):
    federation.add_sites(3)
    create_run(federation, {"training": {"epsilon": 4.0}})
    first = federation.sites["site-0"]
    first.line.cut(before="report_prepared")
    federation.turn_until(lambda: first.trainer.prepared == [1])
    federation.reopen_site("site-0")
    assert federation.play(1)["state"] == RoundState.SUCCEEDED.value
    assert kinds_of(federation, "site-0") == [EntryKind.TRAINING]


def test_a_round_whose_training_failed_costs_nothing(federation):
    def fail(work: Preparation) -> None:
        raise TrainingFailed("out of memory")

    federation.add_sites(3)
    federation.add_site("small", MadeUpTrainer(delta_of(9), records=500, spoil=fail))
    create_run(federation, {"training": {"epsilon": 4.0}})
    assert federation.play(1)["state"] == RoundState.SUCCEEDED.value
    assert kinds_of(federation, "small") == [EntryKind.TRAINING, EntryKind.RETURNED]


def test_with_a_ledger_from_a_backup_a_site_goes_on_and_trains_nothing_private(federation):
    federation.add_sites(4)
    create_run(federation, {"training": {"epsilon": 4.0}}, rounds=2)
    federation.play(1)
    federation.sites["site-3"].close()
    (federation.sites["site-3"].state / "privacy" / "records.jsonl").write_text("")
    federation.reopen_site("site-3")
    found = federation.play(2)
    assert "participants/site-3" not in found["survivors"]
    (row,) = (one for one in found["participations"] if one["participant"] == "participants/site-3")
    assert "it is a backup, or was cut" in row["message"]
