"""The site's budget holds whatever a plan says: before a run, before each round, over kills and over all runs."""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest

from common.errors import DataInvalid, PolicyRefusal
from common.privacy import LargestPart, MetricNoise, Privacy, PrivateTraining, largest_part, noisy_words
from common.states import RoundKind
from participant.policy import PrivacyBounds
from participant.privacy.accounting import epsilon_of
from participant.privacy.desk import PrivacyDesk
from participant.privacy.ledger import EntryKind, Ledger
from participant.training.job import NOISE_KEY_FILE
from tests.fakes import FakeClock
from tests.unit.rounds import made

RECORDS = 400
PLAIN = made.plan()
NOISE = MetricNoise(
    20.0, tuple(LargestPart(word, largest_part(word) or 0.0) for word in noisy_words(PLAIN.masking.metric_groups))
)


def plan_of(epsilon=4.0, *, run="tune", run_id="ef" * 32, noise=None, **terms):
    training = replace(PLAIN.training, batch_size=20, steps_per_round=10)
    privacy = Privacy(PrivateTraining(epsilon, **terms), noise)
    return replace(PLAIN, run=run, run_id=run_id, rounds=3, training=training, privacy=privacy)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "privacy" / "records.jsonl", counter=tmp_path / "counter")


def desk_of(ledger, *, bounds=None, records=RECORDS):
    return PrivacyDesk(
        bounds=bounds,
        ledger=ledger,
        count_records=lambda: records,
        clock=FakeClock(),
        random_bytes=secrets.token_bytes,
    )


def begin_all(desk, plan, rounds, folder):
    for round_ in rounds:
        begin(desk, plan, round_, folder)


def begin(desk, plan, round_, folder, *, kind=RoundKind.TRAIN):
    return desk.begin(plan, round_=round_, kind=kind, job=folder / plan.run / str(round_))


def spent(ledger, delta=1 / (10 * RECORDS)):
    return epsilon_of([entry.private_steps for entry in ledger.training()], delta=delta)


def test_a_plan_without_private_training_gets_none_and_costs_nothing(ledger, tmp_path):
    assert begin(desk_of(ledger), PLAIN, 1, tmp_path) is None
    assert begin(desk_of(ledger), plan_of(), 4, tmp_path, kind=RoundKind.EVALUATE) is None
    assert ledger.entries() == ()


def test_a_whole_run_stays_within_its_epsilon_and_uses_it(ledger, tmp_path):
    desk, plan = desk_of(ledger), plan_of(4.0, spare_rounds=0)
    settings = [begin(desk, plan, round_, tmp_path) for round_ in (1, 2, 3)]
    assert len(set(settings)) == 1
    assert settings[0].sample_rate == 20 / RECORDS
    assert 0.98 * 4.0 < spent(ledger) <= 4.0
    with pytest.raises(PolicyRefusal, match="all 3 private rounds"):
        begin(desk, plan, 4, tmp_path)


def test_spare_rounds_cost_noise_and_are_there_when_rounds_fail(ledger, tmp_path):
    desk, plan = desk_of(ledger), plan_of(4.0, spare_rounds=2)
    for round_ in range(1, 6):
        begin(desk, plan, round_, tmp_path)
    assert spent(ledger) <= 4.0
    with pytest.raises(PolicyRefusal, match="spare_rounds"):
        begin(desk, plan, 6, tmp_path)


def test_the_ledger_has_the_round_before_its_job_begins_and_once_over_restarts(ledger, tmp_path):
    plan = plan_of()
    first = begin(desk_of(ledger), plan, 1, tmp_path)
    key = (tmp_path / "tune" / "1" / NOISE_KEY_FILE).read_bytes()
    assert len(ledger.training()) == 1
    assert begin(desk_of(ledger), plan, 1, tmp_path) == first
    assert len(ledger.training()) == 1
    assert (tmp_path / "tune" / "1" / NOISE_KEY_FILE).read_bytes() == key
    assert (tmp_path / "tune" / "1" / NOISE_KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert key.hex() not in (tmp_path / "privacy" / "records.jsonl").read_text()


def test_a_job_that_lost_its_key_would_draw_other_noise_and_is_counted_again(ledger, tmp_path):
    plan = plan_of()
    begin(desk_of(ledger), plan, 1, tmp_path)
    (tmp_path / "tune" / "1" / NOISE_KEY_FILE).unlink()
    begin(desk_of(ledger), plan, 1, tmp_path)
    assert len(ledger.training()) == 2


def test_a_kill_between_key_and_ledger_loses_neither(ledger, tmp_path):
    folder = tmp_path / "tune" / "1"
    folder.mkdir(parents=True)
    (folder / NOISE_KEY_FILE).write_bytes(bytes(32))
    assert begin(desk_of(ledger), plan_of(), 1, tmp_path) is not None
    assert len(ledger.training()) == 1


def test_a_round_over_the_sites_budget_is_refused_with_what_is_left(ledger, tmp_path):
    desk = desk_of(ledger, bounds=PrivacyBounds(epsilon=4.5))
    for round_ in (1, 2, 3):
        begin(desk, plan_of(4.0, spare_rounds=0), round_, tmp_path)
    other = plan_of(4.0, run="second", run_id="ab" * 32)
    with pytest.raises(PolicyRefusal, match=r"4\.00 is spent, 0\.50 is left, and the whole run .* to 5\.\d"):
        desk.review(other)
    with pytest.raises(PolicyRefusal, match=r"is left, and round \d would bring it to 4\.[5-9]"):
        begin_all(desk, other, range(1, 9), tmp_path)
    assert len(ledger.training()) > 3
    assert spent(ledger) <= 4.5


def test_a_run_within_the_budget_is_joined(ledger):
    desk_of(ledger, bounds=PrivacyBounds(epsilon=5.0)).review(plan_of(4.0))
    desk_of(ledger).review(plan_of(50.0))
    desk_of(ledger, bounds=PrivacyBounds(epsilon=0.1)).review(PLAIN)


def test_a_site_that_is_stricter_than_the_plan_adds_more_noise(ledger, tmp_path):
    stricter = desk_of(ledger, bounds=PrivacyBounds(epsilon=8.0, most_epsilon_in_a_run=1.0))
    strict = begin(stricter, plan_of(8.0), 1, tmp_path)
    usual = begin(desk_of(Ledger(tmp_path / "other", counter=tmp_path / "c")), plan_of(8.0), 1, tmp_path / "b")
    assert strict.noise_multiplier > 1.5 * usual.noise_multiplier


def test_a_budget_has_its_own_delta(ledger, tmp_path):
    desk = desk_of(ledger, bounds=PrivacyBounds(epsilon=4.0, delta=1e-8))
    with pytest.raises(PolicyRefusal, match="at delta 1e-08"):
        desk.review(plan_of(4.0))


def test_a_file_that_has_shrunk_means_more_noise_and_the_same_epsilon(ledger, tmp_path):
    plan = plan_of(4.0, delta=1e-5, spare_rounds=0)
    first = begin(desk_of(ledger), plan, 1, tmp_path)
    second = begin(desk_of(ledger, records=100), plan, 2, tmp_path)
    assert second.noise_multiplier > first.noise_multiplier
    begin(desk_of(ledger, records=100), plan, 3, tmp_path)
    assert spent(ledger, delta=1e-5) <= 4.0


def test_a_round_of_which_nothing_left_the_site_costs_nothing(ledger, tmp_path):
    desk, plan = desk_of(ledger), plan_of()
    begin(desk, plan, 1, tmp_path)
    desk.give_back(plan.run, 1, job=tmp_path / "tune" / "1")
    assert ledger.training() == ()
    assert not (tmp_path / "tune" / "1" / NOISE_KEY_FILE).exists()
    assert [entry.kind for entry in ledger.entries()] == [EntryKind.TRAINING, EntryKind.RETURNED]
    # Once only: a second end of the same round is told of nothing.
    desk.give_back(plan.run, 1, job=tmp_path / "tune" / "1")
    assert len(ledger.entries()) == 2


def test_rounds_of_ordinary_runs_give_nothing_back(ledger, tmp_path):
    desk_of(ledger).give_back("tune", 1, job=tmp_path / "tune" / "1")
    assert ledger.entries() == ()


def test_figures_are_counted_once_a_round_and_within_their_budget(ledger, tmp_path):
    plan = replace(plan_of(noise=NOISE), privacy=Privacy(metrics=NOISE))
    desk = desk_of(ledger, bounds=PrivacyBounds(epsilon=8.0, figures_epsilon=2.0))
    desk.review(plan)
    begin(desk, plan, 1, tmp_path)
    begin(desk, plan, 1, tmp_path, kind=RoundKind.EVALUATE)
    assert [entry.kind for entry in ledger.entries()] == [EntryKind.FIGURES]
    with pytest.raises(PolicyRefusal, match=r"figures of records is epsilon 2 .* would bring it to 2\.\d"):
        begin_all(desk, plan, range(2, 40), tmp_path)
    assert len(ledger.figures()) > 3


def test_records_that_a_limit_chooses_are_not_trained_on_privately(ledger, tmp_path):
    def refused():
        raise DataInvalid("records are left out")

    desk = PrivacyDesk(
        bounds=None, ledger=ledger, count_records=refused, clock=FakeClock(), random_bytes=secrets.token_bytes
    )
    with pytest.raises(DataInvalid):
        desk.review(plan_of())
    with pytest.raises(DataInvalid):
        begin(desk, plan_of(), 1, tmp_path)
    assert ledger.entries() == ()
