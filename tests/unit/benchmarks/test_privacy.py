"""The attack finds what training without privacy remembers, and little of it where training was private."""

from __future__ import annotations

import pytest

from benchmarks.privacy.arms import Attack, Setting
from benchmarks.privacy.canaries import canaries, chance_exposure_bits, exposure_bits, membership_auc
from common.basemodel import describe
from common.methods import Method
from participant.training.data import Exchange
from tests.tiny_model import TINY_SPEC, make_tiny_model


def test_an_attack_that_knows_nothing_is_right_half_of_the_time():
    assert membership_auc([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 0.5
    assert membership_auc([2.0, 3.0], [0.0, 1.0]) == 1.0
    assert membership_auc([0.0], [1.0]) == 0.0
    assert membership_auc([1.0, 1.0], [1.0]) == 0.5


def test_exposure_is_what_the_loss_saves_of_guessing():
    assert exposure_bits(0.1, [1.0] * 7) == 3.0
    assert exposure_bits(2.0, [1.0] * 7) == 0.0
    assert exposure_bits(0.5, [0.1, *[1.0] * 6]) == 2.0
    assert chance_exposure_bits(1) == 0.5
    assert chance_exposure_bits(7) == pytest.approx(1.09, abs=0.01)


def test_canaries_are_the_same_for_a_seed_and_all_different():
    made = canaries(30, others=3, seed=1)
    assert made == canaries(30, others=3, seed=1)
    assert made != canaries(30, others=3, seed=2)
    assert len({canary.question for canary in made}) == len({canary.secret for canary in made}) == 30


@pytest.mark.slow
def test_canaries_are_found_without_privacy_and_not_with_it(tmp_path):
    folder = make_tiny_model(tmp_path / "tiny")
    made = canaries(48, others=3, seed=3)
    ordinary = [Exchange("Name the colour.", f"thing {n}", colour) for n, colour in enumerate(["red", "blue"] * 16)]
    attack = Attack(
        Setting(
            model=describe(folder),
            folder=folder,
            spec=TINY_SPEC,
            method=Method(),
            members=ordinary[:16],
            others=ordinary[16:],
            inserted=made[:24],
            reference=made[24:],
            batch_size=8,
            steps=150,
            learning_rate=2e-2,
            clip=0.5,
            max_length=128,
        )
    )
    plain, private = attack.arm(None), attack.arm(0.5)
    # Without privacy everything is seeded. With it, 24 of each sort at random have a standard error of 0.084: 0.85 is
    # more than four of them above chance.
    assert plain.canary_auc > 0.95
    assert private.canary_auc < 0.85
    assert plain.canary_exposure_bits > 1.5 > chance_exposure_bits(3)
    assert (plain.epsilon, plain.noise_multiplier, private.epsilon) == (None, None, 0.5)
    assert private.noise_multiplier is not None
