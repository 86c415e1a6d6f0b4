"""What the arms of an experiment have in common."""

from __future__ import annotations

from threading import Event

import pytest

from experiments.arms import side_by_side


def test_work_side_by_side_comes_back_in_the_items_order():
    assert side_by_side(lambda item: item * item, range(20)) == [item * item for item in range(20)]


def test_a_failure_waits_for_nobody_and_begins_nothing_more():
    released, begun = Event(), list[int]()

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            raise InterruptedError
        assert released.wait(60)

    with pytest.raises(InterruptedError):
        side_by_side(work, range(50))
    at_work = len(begun)
    released.set()
    assert at_work < 50
