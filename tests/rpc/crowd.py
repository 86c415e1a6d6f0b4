"""A coordinator with a thousand participants in one open round, and many rounds before it: rows, as calls leave them.

No driver takes the run on: somebody else holds its lease for good.
"""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from accord.v1 import admin_pb2 as pb
from accord.v1 import resources_pb2
from common.states import RoundKind, RoundState, RunState
from coordinator.rounds.model import (
    Participant,
    ParticipantState,
    Participation,
    ParticipationState,
    Round,
    RunMember,
)
from tests.rpc.coordinator import MODEL, SITES, RunningCoordinator

RUN = "crowd"
DOMAINS = ("clinic", "finance", "news", "law", "school", "travel", "kitchen", "garden", "music", "sport")


def fill(coordinator: RunningCoordinator, *, participants: int = 1000, rounds: int = 60) -> None:
    """Enrol everybody, run `rounds` rounds, and open one more in which each fiftieth is silent or out."""
    names = [f"hospital-{number:04}" for number in range(participants)]
    now = datetime.now(UTC)
    _create_run(coordinator)
    assert coordinator.store.acquire_lease(f"runs/{RUN}", holder="a test", now=now, until=now + timedelta(days=9))
    with coordinator.store.write() as writer:
        for number, name in enumerate(names):
            writer.put_participant(_participant(name, number, now))
            writer.put_run_member(
                RunMember(
                    RUN,
                    name,
                    number % 50 != 7,
                    now,
                    *(("POLICY_REFUSAL", "too many rounds a day") if number % 50 == 7 else ()),
                )
            )
        run = writer.run(RUN)
        for number in range(1, rounds + 1):
            writer.add_round(_ended_round(number, names, run.accepted_adapter, now - timedelta(hours=rounds - number)))
        opened = replace(
            _ended_round(rounds + 1, names, run.accepted_adapter, now),
            state=RoundState.TRAINING,
            survivors=(),
            cohort=(),
            metrics=(),
            ended_at=None,
        )
        writer.add_round(opened)
        for number, name in enumerate(names):
            if number % 50 != 7:
                writer.put_participation(_participation(name, number, rounds + 1, now))
        for number in range(120):
            subject = f"runs/{RUN}/rounds/{number % rounds + 1}"
            writer.append_audit(time=now, actor="coordinator", action="round_opened", subject=subject, details="{}")
        writer.update_run(
            replace(
                run, state=RunState.RUNNING, latest_round=rounds + 1, rounds_succeeded=rounds, version=run.version + 1
            )
        )


def _create_run(coordinator: RunningCoordinator) -> None:
    for site in SITES:
        coordinator.enroll(site)
    charter = coordinator.admin().DraftCharter(pb.DraftCharterRequest())
    coordinator.admin().PublishCharter(pb.PublishCharterRequest(charter_json=charter.charter_json))
    settings = resources_pb2.PlanSettings(base_model_json=MODEL.to_json(), rounds=100)
    coordinator.admin().CreateRun(pb.CreateRunRequest(run_id=RUN, settings=settings))


def _participant(name: str, number: int, now: datetime) -> Participant:
    return Participant(
        name=name,
        state=ParticipantState.REVOKED if number % 100 == 99 else ParticipantState.ACTIVE,
        enrolled_at=now - timedelta(days=30),
        identity_key_sha256=f"{number:064x}",
        certificate_serial=f"{number:x}",
        certificate_expires_at=now + timedelta(days=3 if number % 100 == 50 else 20),
        last_seen_at=now - timedelta(hours=5 if number % 50 == 3 else 0),
        software_version="0.1.0" if number % 20 else "0.0.9",
        revoke_reason="left the federation" if number % 100 == 99 else "",
    )


def _ended_round(number: int, names: list[str], adapter: str, at: datetime) -> Round:
    losses = [(f"heldout_loss/{name}", 1 + place / 9 + math.exp(-number / 20)) for place, name in enumerate(DOMAINS)]
    return Round(
        run=RUN,
        number=number,
        kind=RoundKind.TRAIN,
        state=RoundState.SUCCEEDED,
        base_adapter=adapter,
        instruction_set="{}",
        created_at=at - timedelta(minutes=40),
        phase_started_at=at - timedelta(minutes=30),
        deadline=at + timedelta(hours=1),
        cohort=tuple(names),
        survivors=tuple(names[::2]),
        metrics=(("heldout_loss", 1.5 + math.exp(-number / 20)), *losses),
        ended_at=at,
    )


def _participation(name: str, number: int, round_: int, now: datetime) -> Participation:
    at = now - timedelta(minutes=number % 30)
    if number % 50 == 9:
        return Participation(RUN, round_, name, ParticipationState.FAILED, at, "DATA_INVALID", "no record is left")
    if number % 3:
        return Participation(RUN, round_, name, ParticipationState.PREPARED, at)
    return Participation(
        RUN,
        round_,
        name,
        ParticipationState.PRESENT,
        at,
        activity="training",
        progress_done=number % 90,
        progress_total=90,
    )
