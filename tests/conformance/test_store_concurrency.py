"""What every `Store` must do when others use it at the same time, or when its process is killed."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from common.errors import VersionConflict
from coordinator.store import audit
from tests.conformance import samples
from tests.conformance.samples import LATER, NOW
from tests.conformance.store_process import log_step
from tests.fakes import FakeClock

ROOT = Path(__file__).parents[2]


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.conformance.store_process", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


# --- leases ----------------------------------------------------------------------------------------------------------


def test_a_lease_has_one_holder_until_it_runs_out_or_is_released(store):
    clock = FakeClock()

    def take(holder, minutes=10):
        now = clock.now()
        return store.acquire_lease("round", holder=holder, now=now, until=now + timedelta(minutes=minutes))

    assert take("a")
    assert not take("b")
    clock.advance(minutes=9)
    assert take("a")  # Renewed: ten minutes from now.
    clock.advance(minutes=9)
    assert not take("b")
    clock.advance(minutes=1)
    assert take("b")
    assert not take("a")
    store.release_lease("round", holder="a")  # Not the holder any more: no effect.
    assert not take("a")
    store.release_lease("round", holder="b")
    assert take("a")
    assert store.acquire_lease("another", holder="b", now=clock.now(), until=clock.now())


def test_leases_agree_with_a_model_whatever_the_order_of_events(stores):
    holders = st.sampled_from(["a", "b", "c"])
    names = st.sampled_from(["x", "y"])
    shared = [stores.open(), stores.open()]
    machines = iter(range(10_000))

    class Leases(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.clock = FakeClock()
            self.prefix = str(next(machines))
            self.model = {}

        @rule(name=names, holder=holders, seconds=st.integers(0, 5), via=st.sampled_from([0, 1]))
        def acquire(self, name, holder, seconds, via):
            now = self.clock.now()
            until = now + timedelta(seconds=seconds)
            held_by, held_until = self.model.get(name, (holder, now))
            allowed = held_by == holder or held_until <= now
            assert shared[via].acquire_lease(self.prefix + name, holder=holder, now=now, until=until) is allowed
            if allowed:
                self.model[name] = (holder, until)

        @rule(name=names, holder=holders, via=st.sampled_from([0, 1]))
        def release(self, name, holder, via):
            shared[via].release_lease(self.prefix + name, holder=holder)
            if name in self.model and self.model[name][0] == holder:
                del self.model[name]

        @rule(seconds=st.integers(1, 3))
        def advance(self, seconds):
            self.clock.advance(seconds=seconds)

    run_state_machine_as_test(
        Leases,
        settings=settings(
            max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_of_many_who_ask_at_once_one_gets_the_lease(stores):
    shared = [stores.open(), stores.open()]
    together = threading.Barrier(8)

    def ask(index):
        together.wait()
        return shared[index % 2].acquire_lease("round", holder=str(index), now=NOW, until=LATER)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(8))) == 1


# --- others at the same time -----------------------------------------------------------------------------------------


@pytest.fixture
def counting(stores):
    with stores.open().write() as writer:
        writer.add_run(samples.run())
    return stores


def counted(stores):
    with stores.open().read() as reader:
        run = reader.run("run-1")
    return run.latest_round, run.version


def test_no_update_is_lost_between_threads(counting):
    store = counting.open()

    def add(_):
        with store.write() as writer:
            run = writer.run("run-1")
            writer.update_run(replace(run, latest_round=run.latest_round + 1, version=run.version + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(160)))
    assert counted(counting) == (160, 161)


@pytest.mark.parametrize("way", ["count", "race"])
def test_no_update_is_lost_between_processes(counting, way):
    processes = [start(counting.url, way, "100") for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert counted(counting) == (200, 201)


def test_of_two_who_read_the_same_version_the_second_to_write_is_told(counting):
    first, second = counting.open(), counting.open()
    with first.read() as reader, second.read() as other:
        mine, theirs = reader.run("run-1"), other.run("run-1")
    with first.write() as writer:
        writer.update_run(replace(mine, latest_round=1, version=mine.version + 1))
    with second.write() as writer, pytest.raises(VersionConflict):
        writer.update_run(replace(theirs, latest_round=2, version=theirs.version + 1))
    assert counted(counting) == (1, 2)


def test_a_reader_sees_one_state_while_writers_go_on(counting):
    store = counting.open()
    with store.read() as reader:
        before = reader.run("run-1")
        for number in (1, 2):
            with counting.open().write() as writer:
                log_step(writer, number)
        assert reader.run("run-1") == before
        assert reader.answer("logger", "1") is None
        assert list(reader.audit_chain()) == []
        assert reader.audit_head() == audit.AuditHead()
    with store.read() as reader:
        assert reader.run("run-1").latest_round == 2


def test_readers_never_see_half_of_a_transaction(counting):
    store = counting.open()
    done = threading.Event()

    def read():
        seen = set()
        while not done.is_set():
            with store.read() as reader:
                number = reader.run("run-1").latest_round
                assert reader.audit_head().sequence == number
                assert (reader.answer("logger", str(number)) is not None) is (number > 0)
                assert reader.answer("logger", str(number + 1)) is None
                seen.add(number)
        return seen

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        try:
            for number in range(1, 61):
                with store.write() as writer:
                    log_step(writer, number)
        finally:
            done.set()
        seen = set().union(*(reader.result() for reader in readers))
    assert seen <= set(range(61))


# --- kill -9 ---------------------------------------------------------------------------------------------------------


def state(stores):
    """What the three tables say; they must say the same."""
    with stores.open().read() as reader:
        number = reader.run("run-1").latest_round
        events = list(reader.audit_chain())
        assert audit.verify(events, head=reader.audit_head()).intact
        assert [int(event.subject) for event in events] == list(range(1, number + 1))
        for step in range(1, number + 1):
            assert reader.answer("logger", str(step)) is not None
        assert reader.answer("logger", str(number + 1)) is None
    return number


@pytest.mark.parametrize(("point", "outcome"), [("begun", 0), ("half", 0), ("before_commit", 0), ("after_commit", 1)])
def test_a_process_killed_in_a_transaction_leaves_all_of_it_or_nothing(counting, point, outcome):
    assert start(counting.url, "die", point).wait() == -9
    assert state(counting) == outcome
    with counting.open().write() as writer:  # And holds up nobody.
        log_step(writer, outcome + 1)


@pytest.mark.parametrize("steps", [1, 8, 25])
def test_what_a_killed_process_has_acknowledged_is_there(counting, steps):
    with start(counting.url, "log") as process:
        assert process.stdout is not None
        acknowledged = 0
        while acknowledged < steps:
            acknowledged = int(process.stdout.readline())
        process.kill()
        acknowledged = max([acknowledged, *(int(line) for line in process.stdout.read().split())])
    # One more may be committed than said.
    assert state(counting) in (acknowledged, acknowledged + 1)
