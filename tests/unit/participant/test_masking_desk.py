"""What a site's masking desk refuses whatever the order in which a coordinator asks."""

from __future__ import annotations

import pytest

from benchmarks.lying_coordinator import World
from common.errors import ProtocolViolation
from participant.masking import MOST_SUMS_ON_A_MODEL

NAMES = ("alpha", "bravo", "charlie", "delta", "echo")


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path, NAMES, seed=0)
    yield made
    made.close()


def test_rounds_on_one_model_that_were_all_masked_before_the_first_was_closed_open_no_more_sums_than_others(world):
    """The count of opened sums is asked where a sum opens; asked when a round starts, it would still be zero."""
    roster = world.set_up()
    started = []
    for number in range(1, MOST_SUMS_ON_A_MODEL + 2):
        world.prepare(number)
        context = world.context(roster, number)
        world.upload(context.start)
        started.append((context.start, world.evidence(NAMES, is_fast=True)))
    for start, evidence in started[:-1]:
        assert world.ask_to_close("bravo", evidence, start)
    world.heard.reveals.clear()
    start, evidence = started[-1]
    with pytest.raises(ProtocolViolation, match="single a member out"):
        world.ask_to_close("bravo", evidence, start)
    assert world.heard.reveals == {}


def test_a_reveal_that_was_journalled_is_sent_again_though_its_model_is_spent(world):
    roster = world.set_up()
    started = []
    for number in range(1, MOST_SUMS_ON_A_MODEL + 1):
        world.prepare(number)
        context = world.context(roster, number)
        world.upload(context.start)
        started.append((context.start, world.evidence(NAMES, is_fast=True)))
    for start, evidence in started:
        assert world.ask_to_close("bravo", evidence, start)
    before = world.heard.reveals.pop("bravo")
    assert world.ask_to_close("bravo", started[-1][1], started[-1][0])
    assert world.heard.reveals["bravo"] == before
