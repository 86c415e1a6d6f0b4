"""A repeated request does nothing again for a week; what is older is forgotten, at one sweep a day."""

from __future__ import annotations

import pytest

from accord.v1 import admin_pb2 as pb
from accord.v1 import resources_pb2
from coordinator.services.answers import Answers
from coordinator.store.schema import migrate
from coordinator.store.sql import SqlStore
from tests.fakes import FakeClock


@pytest.fixture
def store(tmp_path):
    url = f"sqlite:///{tmp_path}/coordinator.db"
    migrate(url)
    store = SqlStore(url)
    yield store
    store.close()


class Operator:
    """Asks for runs to be started, and counts how often one was."""

    def __init__(self, store: SqlStore, clock: FakeClock) -> None:
        self.starts = 0
        self.restart(store, clock)

    def restart(self, store: SqlStore, clock: FakeClock) -> None:
        """A new coordinator process over the same database."""
        self._answers = Answers(store, clock)

    def start(self, request_id: str) -> int:
        """Which start the answer was given for."""

        def act(writer: object) -> pb.StartRunResponse:
            self.starts += 1
            return pb.StartRunResponse(run=resources_pb2.Run(round=self.starts))

        request = pb.StartRunRequest(request_id=request_id, name="runs/demo")
        return self._answers.once("alice", request, pb.StartRunResponse, act).run.round


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def operator(store, clock) -> Operator:
    return Operator(store, clock)


def test_a_repeat_within_a_week_gets_the_first_answer_and_does_nothing(operator, clock):
    assert operator.start("one") == 1
    clock.advance(days=7)
    assert operator.start("one") == 1
    assert operator.starts == 1


def test_an_answer_older_than_a_week_is_forgotten_and_younger_ones_are_not(store, operator, clock):
    operator.start("old")
    clock.advance(days=5)
    operator.start("young")
    clock.advance(days=2, seconds=1)

    operator.start("new")

    with store.read() as reader:
        assert reader.answer("alice", "old") is None
        assert reader.answer("alice", "young") is not None
        assert reader.answer("alice", "new") is not None


def test_answers_are_swept_once_a_day_and_by_a_new_process(store, operator, clock):
    operator.start("old")
    clock.advance(days=6, hours=23)
    operator.start("sweeps")
    clock.advance(hours=2)
    operator.start("between")
    with store.read() as reader:
        assert reader.answer("alice", "old") is not None

    operator.restart(store, clock)
    operator.start("sweeps-again")

    with store.read() as reader:
        assert reader.answer("alice", "old") is None
