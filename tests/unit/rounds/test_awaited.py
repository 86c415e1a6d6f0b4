"""Whom a run waits for in each of its states: by name, since when, why, and what to do about it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from common.states import RoundState, RunState
from coordinator.rounds.awaited import (
    CERTIFICATE_EXPIRED,
    NEVER_SEEN,
    REVOKED,
    SILENT,
    SILENT_AFTER,
    WORKING,
    Awaited,
    Scene,
    explain,
)
from coordinator.rounds.model import EpochState, Participant, ParticipantState, ParticipationState
from tests.unit.rounds.made import NOW, epoch, member, participation, plan, round_, run

NAMES = ("bank", "clinic", "depot", "office")


def known(name: str, **changes: Any) -> Participant:
    made = Participant(
        name=name,
        state=ParticipantState.ACTIVE,
        enrolled_at=NOW,
        identity_key_sha256="ab" * 32,
        certificate_serial="1",
        certificate_expires_at=NOW + timedelta(days=30),
        last_seen_at=NOW,
    )
    return replace(made, **changes)


def scene(**changes: Any) -> Scene:
    made = Scene(
        now=NOW + timedelta(seconds=30),
        run=run(),
        plan=plan(),
        members=NAMES,
        standings={name: member(name) for name in NAMES},
        known={name: known(name) for name in NAMES},
        round=round_(),
        participations=tuple(participation(name) for name in NAMES),
    )
    return replace(made, **changes)


def waits(found: Scene) -> list[tuple[str, str]]:
    return [(entry.participant, entry.step) for entry in explain(found).awaited]


def the_one(found: Scene) -> Awaited:
    (entry,) = explain(found).awaited
    return entry


def test_a_created_run_waits_for_those_who_have_not_decided_and_for_its_operator():
    found = scene(
        run=run(RunState.CREATED, latest_round=0),
        round=None,
        participations=(),
        standings={"bank": member("bank"), "clinic": member("clinic", joined=False, reason="POLICY_REFUSAL")},
    )
    assert waits(found) == [("depot", "join"), ("office", "join")]
    explained = explain(found)
    assert "waits for an operator to start it; 1 of 4 members have joined" in explained.summary
    assert [(entry.participant, entry.reason) for entry in explained.out] == [("clinic", "POLICY_REFUSAL")]


def test_forming_waits_for_those_who_have_joined_and_are_not_there():
    found = scene(round=round_(RoundState.FORMING), participations=(participation("bank"),))
    assert waits(found) == [(name, "ask for work") for name in ("clinic", "depot", "office")]
    assert (explain(found).done, explain(found).quorum) == (1, 3)


def test_a_run_that_was_started_too_early_waits_for_those_who_have_not_decided():
    found = scene(round=round_(RoundState.FORMING), participations=(), standings={"bank": member("bank")})
    assert waits(found) == [("bank", "ask for work"), *((name, "join") for name in ("clinic", "depot", "office"))]


def test_training_waits_for_updates_and_beside_it_for_keys():
    found = scene(
        participations=(
            participation("bank", ParticipationState.PREPARED),
            participation("clinic", activity="training", progress_done=3, progress_total=9),
            participation("depot", ParticipationState.FAILED, reason="DATA_INVALID", message="no record is left"),
        ),
        epoch=epoch(EpochState.SHARING, members=("bank", "clinic")),
        sent=("clinic",),
    )
    explained = explain(found)
    assert waits(found) == [("bank", "deposit shares"), ("clinic", "train")]
    assert explained.awaited[1].message == "training 3 of 9, as it said at 2026-03-01 12:00:00 UTC"
    (out,) = explained.out
    assert (out.participant, out.reason, out.message) == ("depot", "DATA_INVALID", "no record is left")
    assert "masking keys" in explained.summary


@pytest.mark.parametrize(
    ("state", "step"),
    [
        (EpochState.ADVERTISING, "advertise keys"),
        (EpochState.SHARING, "deposit shares"),
        (EpochState.CONFIRMING, "confirm shares"),
    ],
)
def test_each_step_of_key_set_up_has_its_name(state, step):
    found = scene(epoch=epoch(state, members=NAMES), sent=NAMES[:-1], round=round_(RoundState.FORMING))
    assert the_one(found).step == step
    assert the_one(found).participant == "office"


def test_collecting_waits_for_uploads_and_says_how_far_they_are():
    found = scene(
        round=round_(RoundState.COLLECTING, cohort=("bank", "clinic", "depot")),
        participations=(
            participation("bank", ParticipationState.UPLOADED),
            participation("clinic", ParticipationState.PREPARED, uploaded_bytes=10, upload_bytes=90),
            participation("depot", ParticipationState.UPLOADED),
            participation("office", ParticipationState.DROPPED, reason="NO_MASKING_KEYS"),
        ),
    )
    entry = the_one(found)
    assert (entry.participant, entry.step) == ("clinic", "upload")
    assert "has uploaded 10 of 90 bytes" in entry.message
    assert explain(found).done == 2


def test_unmasking_waits_for_the_cohort_members_that_have_not_revealed():
    found = scene(round=round_(RoundState.UNMASKING, cohort=NAMES), revealed=("bank", "clinic"), revealing=3)
    assert waits(found) == [("depot", "reveal shares"), ("office", "reveal shares")]
    assert (explain(found).done, explain(found).quorum) == (2, 3)


def test_nobody_is_waited_for_while_the_coordinator_works_or_nothing_goes_on():
    for found in (
        scene(round=round_(RoundState.AGGREGATING)),
        scene(round=None),
        scene(run=run(RunState.PAUSED), round=None),
        scene(run=run(RunState.FAILED, reason="TOO_MANY_FAILED_ROUNDS", message="three in a row"), round=None),
    ):
        assert explain(found).awaited == ()
    assert "resume it, or roll it back" in explain(scene(run=run(RunState.PAUSED), round=None)).summary
    over = explain(scene(run=run(RunState.FAILED, reason="TOO_MANY", message="three in a row"), round=None))
    assert over.summary == "the run is failed (TOO_MANY: three in a row)"


@pytest.mark.parametrize(
    ("row", "reason", "message", "advice"),
    [
        (known("office"), WORKING, "calls as it should", "wait"),
        (known("office", last_seen_at=NOW - SILENT_AFTER), SILENT, "for 3 minutes", "accord-participant check"),
        (known("office", last_seen_at=NOW - timedelta(days=3)), SILENT, "for 3 days", "without it"),
        (known("office", last_seen_at=None), NEVER_SEEN, "never called", "start the daemon"),
        (known("office", certificate_expires_at=NOW), CERTIFICATE_EXPIRED, "ended at", "token create office"),
        (known("office", state=ParticipantState.REVOKED, revoke_reason="left"), REVOKED, "left", "next charter"),
        (None, NEVER_SEEN, "has not enrolled", "token create office"),
    ],
)
def test_the_reason_says_what_is_wrong_and_the_advice_what_to_do(row, reason, message, advice):
    everybody = {name: known(name) for name in NAMES[:-1]} | ({"office": row} if row is not None else {})
    found = scene(round=round_(RoundState.UNMASKING, cohort=NAMES), revealed=NAMES[:-1], known=everybody)
    entry = the_one(found)
    assert entry.reason == reason
    assert message in entry.message
    assert advice in entry.advice
    assert entry.since == NOW


def test_every_open_state_of_a_round_is_explained():
    for state in RoundState:
        if not state.is_over:
            assert "run/rounds/2" in explain(scene(round=round_(state))).summary or state is RoundState.AGGREGATING
