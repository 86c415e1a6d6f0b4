"""What the overview calls wrong, and what it does not."""

from __future__ import annotations

from datetime import timedelta

import pytest

from coordinator.web.views.attention import findings, standing_of
from tests.fakes import START_OF_TIME as NOW

FEDERATION = {"charter_digest": "c" * 64, "ca_expire_time": None, "software_version": "1.0"}
WORKING = {"participant": "participants/a", "reason": "WORKING", "message": "trains", "advice": "wait"}
SILENT = {"participant": "participants/b", "reason": "SILENT", "message": "has not called", "advice": "ask `b`"}


def at(**parts: float) -> str:
    return (NOW + timedelta(**parts)).isoformat()


def participant(name: str = "bank", *, seen: str | None = at(), ends: str = at(days=20), **others: object) -> dict:
    return {
        "name": f"participants/{name}",
        "state": "active",
        "last_seen_time": seen,
        "certificate_expire_time": ends,
        "software_version": "1.0",
        **others,
    }


def run(state: str = "running", **others: object) -> dict:
    return {"name": "runs/support", "state": state, "reason": "", "message": "", "end_time": None, **others}


def explained(*, awaited=(), out=()) -> dict:
    return {"runs/support": {"round": "runs/support/rounds/3", "awaited": list(awaited), "out": list(out)}}


def found(**parts):
    given = {
        "health": {},
        "federation": FEDERATION,
        "participants": (participant(),),
        "runs": (),
        "explained": {},
        "declined": {},
        "now": NOW,
    }
    return findings(**{**given, **parts})


def test_nothing_is_wrong_where_everybody_works():
    assert found(runs=(run(),), explained=explained(awaited=[WORKING])) == ()


@pytest.mark.parametrize(
    ("row", "standing"),
    [
        (participant(), "active"),
        (participant(seen=None), "never seen"),
        (participant(seen=at(minutes=-61)), "silent"),
        (participant(ends=at(days=6)), "expiring"),
        (participant(ends=at()), "expired"),
        (participant(ends=at(), state="revoked"), "revoked"),
    ],
)
def test_how_a_participant_stands(row, standing):
    assert standing_of(row, NOW) == standing


def test_the_worst_comes_first_and_each_says_what_to_do():
    federation = {**FEDERATION, "charter_digest": "", "ca_expire_time": at(days=30)}
    people = (
        participant("a", seen=at(hours=-2)),
        participant("b", ends=at(days=-1)),
        participant("c", software_version="0.9"),
    )
    rows = found(health={"driver": "stands still"}, federation=federation, participants=people)
    assert [row.tone for row in rows] == ["bad", "bad", "warn", "warn", "warn", "idle"]
    assert all(row.advice or row.link for row in rows)
    assert rows[0].details == ("stands still",)


def test_those_who_are_silent_are_named_and_those_at_work_are_not():
    (row,) = found(runs=(run(),), explained=explained(awaited=[WORKING, SILENT]))
    assert (row.tone, row.title, row.link) == ("warn", "Run support waits for 1 not at work", "/runs/support/rounds/3")
    assert row.details == ("b: has not called (SILENT)",)
    assert row.advice == "ask `b`"


def test_many_who_are_out_for_one_reason_are_one_line():
    out = [
        {**SILENT, "participant": f"participants/s{n}", "reason": "DATA_INVALID", "message": "none"} for n in range(30)
    ]
    other = {**SILENT, "reason": "OTHER", "message": "else"}
    (row,) = found(runs=(run(),), explained=explained(out=[*out, other]))
    assert row.title == "Run support goes on without 31"
    assert row.details == ("s0, s1, s2 and 27 more: none (DATA_INVALID)", "b: else (OTHER)")


def test_a_site_that_will_not_join_is_worth_knowing_and_not_a_warning():
    (row,) = found(
        runs=(run(),), explained=explained(out=[SILENT]), declined={"runs/support": frozenset({"participants/b"})}
    )
    assert (row.tone, row.title) == ("idle", "1 declined run support")


def test_a_run_that_failed_is_news_for_some_days():
    failed = run("failed", reason="TOO_MANY_FAILED_ROUNDS", message="3 in a row", end_time=at(hours=-1))
    (row,) = found(runs=(failed,))
    assert (row.tone, row.details) == ("bad", ("3 in a row (TOO_MANY_FAILED_ROUNDS)",))
    assert found(runs=({**failed, "end_time": at(days=-4)},)) == ()
