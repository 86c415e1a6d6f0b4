"""How often one caller may call."""

from __future__ import annotations

import pytest

from common.errors import ResourceExhausted
from coordinator.rates import MOST_BUCKETS, RateLimit


class Stopwatch:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def stopwatch():
    return Stopwatch()


@pytest.fixture
def limit(stopwatch):
    return RateLimit(calls_per_second=2.0, burst=3, stopwatch=stopwatch)


def calls_until_refused(limit: RateLimit, caller: str) -> int:
    for count in range(1000):
        try:
            limit.take(caller)
        except ResourceExhausted:
            return count
    raise AssertionError("never refused")


def test_a_burst_is_served_and_no_more(limit):
    assert calls_until_refused(limit, "participants/bank") == 3


def test_calls_come_back_with_time_up_to_the_burst(limit, stopwatch):
    calls_until_refused(limit, "participants/bank")
    stopwatch.seconds += 1
    assert calls_until_refused(limit, "participants/bank") == 2
    stopwatch.seconds += 1000
    assert calls_until_refused(limit, "participants/bank") == 3


def test_one_caller_does_not_use_up_anothers_calls(limit):
    calls_until_refused(limit, "participants/bank")
    assert calls_until_refused(limit, "participants/clinic") == 3


def test_a_refusal_says_when_to_try_again(limit):
    calls_until_refused(limit, "participants/bank")
    with pytest.raises(ResourceExhausted, match=r"try again in 0\.5 s") as refused:
        limit.take("participants/bank")
    assert refused.value.metadata["retry_seconds"] == "0.5"


def test_refused_calls_do_not_make_the_wait_longer(limit, stopwatch):
    calls_until_refused(limit, "participants/bank")
    for _ in range(50):
        with pytest.raises(ResourceExhausted):
            limit.take("participants/bank")
    stopwatch.seconds += 0.5
    limit.take("participants/bank")


def test_a_flood_of_names_does_not_fill_memory(limit):
    for number in range(MOST_BUCKETS + 500):
        limit.take(f"ipv4:10.0.0.{number}")
    assert len(limit._buckets) == MOST_BUCKETS
