"""Preparations: one at a time, stopped when another round begins, and every way of ending is told once."""

from __future__ import annotations

import threading

import pytest

from common.errors import AccordError, TrainingFailed, TrainingStopped, Unavailable
from participant.preparation import Preparations

WAIT = 10


def until_stopped(began: threading.Event, ended: list[str], name: str):
    def work(stop: threading.Event) -> None:
        began.set()
        assert stop.wait(WAIT)
        ended.append(name)
        raise TrainingStopped("as told")

    return work


def test_a_preparation_runs_until_its_work_is_done():
    preparations, release = Preparations(), threading.Event()
    done: list[bool] = []
    failures: list[AccordError] = []
    preparations.start(("run", 1), lambda stop: done.append(release.wait(WAIT)), failures.append)

    assert preparations.is_running(("run", 1))
    assert not preparations.is_running(("run", 2))
    assert not preparations.wait(0.0)
    release.set()
    assert preparations.wait(WAIT)
    assert (done, failures) == ([True], [])
    assert not preparations.is_running(("run", 1))


def test_the_next_round_ends_the_one_before_first():
    preparations, began = Preparations(), threading.Event()
    ended: list[str] = []
    failures: list[AccordError] = []
    preparations.start(("run", 1), until_stopped(began, ended, "first"), failures.append)
    assert began.wait(WAIT)
    preparations.start(("run", 2), lambda stop: ended.append("second"), failures.append)
    preparations.wait()

    assert ended == ["first", "second"]
    assert failures == []


def test_stopping_another_round_leaves_the_running_one_alone():
    preparations, began = Preparations(), threading.Event()
    ended: list[str] = []
    preparations.start(("run", 1), until_stopped(began, ended, "first"), lambda error: None)
    assert began.wait(WAIT)

    preparations.stop(("run", 2))
    assert preparations.is_running(("run", 1))
    preparations.stop()
    assert ended == ["first"]
    assert not preparations.is_running(("run", 1))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TrainingFailed("exit code 1"), "exit code 1"),
        (OSError(28, "No space left on device"), "is the disk full?"),
        (ZeroDivisionError("x"), "ZeroDivisionError in the participant"),
    ],
)
def test_whatever_goes_wrong_is_told_as_an_error_that_a_person_can_read(error, told):
    preparations = Preparations()
    failures: list[AccordError] = []

    def work(stop: threading.Event) -> None:
        raise error

    preparations.start(("run", 1), work, failures.append)
    preparations.wait()

    (failure,) = failures
    assert isinstance(failure, AccordError)
    assert told in failure.message


def test_what_a_stop_brings_about_is_no_failure():
    """A step may end in a call over a line that is being closed, or in a file that is no longer wanted."""
    preparations, began = Preparations(), threading.Event()
    failures: list[AccordError] = []

    def work(stop: threading.Event) -> None:
        began.set()
        assert stop.wait(WAIT)
        raise Unavailable("the connection was closed here")

    preparations.start(("run", 1), work, failures.append)
    assert began.wait(WAIT)
    preparations.ask_to_stop()
    assert preparations.wait(WAIT)
    assert failures == []


def test_another_runs_round_waits_until_this_one_is_done():
    """Each would else end the other at every question, and neither would ever be trained."""
    preparations, release = Preparations(), threading.Event()
    done: list[str] = []

    def first(stop: threading.Event) -> None:
        assert release.wait(WAIT)
        done.append("stopped" if stop.is_set() else "first")

    preparations.start(("one", 1), first, lambda error: None)
    preparations.start(("other", 1), lambda stop: done.append("other"), lambda error: None)
    assert preparations.is_running(("one", 1))
    release.set()
    assert preparations.wait(WAIT)
    preparations.start(("other", 1), lambda stop: done.append("other"), lambda error: None)
    assert preparations.wait(WAIT)
    assert done == ["first", "other"]
