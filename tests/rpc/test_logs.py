"""Logs of a round, as an operator reads them: each fact once, with its run and round, and only once it is durable."""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from common.errors import StorageFailed
from common.log import LogForm, configure
from coordinator.rounds.model import AuditEvent
from coordinator.store.opening import open_store
from coordinator.store.schema import migrate
from coordinator.store.told import ToldStore, fields_of
from tests.rpc.federation import federation_in

AT = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    configure(form=LogForm.JSON, stream=stream)
    yield stream
    configure(form=LogForm.CONSOLE, stream=sys.__stderr__)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_round_is_told_fact_by_fact_with_run_and_round_on_both_sides(tmp_path, stream):
    with federation_in(tmp_path) as lab:
        lab.add_sites(3)
        lab.create_run(rounds=1)
        assert lab.play(1)["state"] == "succeeded"
        audited = Counter(event["action"] for event in lab.admin.audit_events())
    told = lines(stream)
    # How often somebody has read is counted until the coordinator stops.
    coordinators = [
        line for line in told if line["logger"] == "coordinator.store.told" and line["event"] != "call_answered"
    ]
    del audited["call_answered"]
    assert Counter(line["event"] for line in coordinators) == audited
    of_round = [line for line in coordinators if line.get("round") == 1]
    assert {"round_opened", "training_opened", "cohort_chosen", "survivors_bound", "shares_revealed"} <= {
        line["event"] for line in of_round
    }
    assert {line["run"] for line in of_round} == {"run"}
    uploaded = [line for line in told if line["event"] == "update_uploaded"]
    assert [(line["run"], line["round"], line["task"]) for line in uploaded] == [("run", 1, "UploadUpdate")] * 3
    assert all(line["level"] and line["time"] for line in told)


def test_what_was_rolled_back_is_not_told_and_a_lost_line_is_counted(tmp_path, stream):
    url = f"sqlite:///{tmp_path / 'db.sqlite'}"
    migrate(url)
    lost: list[bool] = []
    store = ToldStore(open_store(url), on_lost=lambda: lost.append(True))
    with store.write() as writer:
        writer.append_audit(time=AT, actor="operators/alice", action="kept", subject="runs/a", details="{}")

    def fail(*, writes: bool) -> None:
        with store.write() as writer:
            if writes:
                writer.append_audit(time=AT, actor="operators/alice", action="never", subject="runs/a", details="{}")
            raise StorageFailed("the disk is full")

    for writes in (True, False):
        with pytest.raises(StorageFailed):
            fail(writes=writes)
    store.close()
    assert [line["event"] for line in lines(stream) if line["logger"] == "coordinator.store.told"] == ["kept"]
    assert lost == [True]


def test_a_line_has_the_short_details_and_none_that_would_hide_the_logs_own_fields():
    details = {"reason": "X", "level": 3, "event": "e", "receipt": "ab" * 400, "cohort": ["a", "b"], "deep": {"a": 1}}
    event = AuditEvent(7, AT, "coordinator", "cohort_chosen", "runs/a/rounds/12", json.dumps(details), "00")
    assert fields_of(event) == {
        "actor": "coordinator",
        "subject": "runs/a/rounds/12",
        "audit": 7,
        "run": "a",
        "round": 12,
        "reason": "X",
        "its_level": 3,
        "its_event": "e",
        "cohort": ["a", "b"],
    }
