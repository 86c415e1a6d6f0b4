"""Rows for store tests: one of each type with every field set, and small ones to build on."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from common.secagg import ClosedGroup
from common.states import RoundKind, RoundState, RunState
from coordinator.rounds.model import (
    Adapter,
    AdapterState,
    Certificate,
    EpochState,
    JoinToken,
    KeyEpoch,
    MessageKind,
    Participant,
    ParticipantState,
    Participation,
    ParticipationState,
    ProtocolMessage,
    Round,
    Run,
    RunMember,
    ShareEnvelope,
    Upload,
    WebToken,
)

NOW = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
# What a careless column would change: quotes, newlines, an emoji, both kinds of normal form, trailing spaces.
AWKWARD = "a 'quote' \"and\"\n\ttab – Ünïcode é e\u0301 🙂 \\ ;-- % _ "
BYTES = bytes(range(256)) + b"\0\xff{}"

RUN = Run(
    name="run-1",
    state=RunState.PAUSED,
    plan=BYTES,
    plan_digest="1" * 64,
    charter_digest="2" * 64,
    accepted_adapter="3" * 64,
    candidate_adapter="4" * 64,
    created_at=NOW,
    ended_at=LATER,
    latest_round=7,
    latest_epoch=2,
    rounds_succeeded=5,
    failed_in_a_row=1,
    accepted_loss=0.1 + 0.2,
    reason="QUORUM_MISSED",
    message=AWKWARD,
    version=3,
)
ROUND = Round(
    run="run-1",
    number=7,
    kind=RoundKind.EVALUATE,
    state=RoundState.COLLECTING,
    base_adapter="3" * 64,
    instruction_set="set-b",
    created_at=NOW,
    phase_started_at=NOW + timedelta(microseconds=1),
    deadline=LATER,
    epoch=2,
    cohort=("bank", "clinic", "news, room"),
    survivors=("bank",),
    start=BYTES,
    result_adapter="5" * 64,
    metrics=(("z_loss", 1e-300), ("accuracy", 1 / 3)),
    closed_groups=(ClosedGroup("ner", 1, 3), ClosedGroup("held out, all", 0, 3)),
    reason="FAILED",
    message=AWKWARD,
    ended_at=LATER,
    version=9,
)
EPOCH = KeyEpoch(
    run="run-1",
    number=2,
    state=EpochState.CONFIRMING,
    first_round=5,
    rounds=10,
    phase_started_at=NOW,
    deadline=LATER,
    members=("bank", "clinic"),
    usable=("clinic",),
    reason="LATE",
    message=AWKWARD,
    version=4,
)
MEMBER = RunMember("run-1", "bank", joined=False, updated_at=NOW, reason="POLICY_REFUSAL", message=AWKWARD)
PARTICIPATION = Participation(
    run="run-1",
    round=7,
    participant="bank",
    state=ParticipationState.COMMITTED,
    updated_at=NOW,
    reason="R",
    message=AWKWARD,
    activity="training",
    progress_done=3,
    progress_total=2**40,
    uploaded_bytes=2**33,
    upload_bytes=2**62,
)
UPLOAD = Upload("run-1", 7, "bank", 8, 2**35, BYTES, durable_chunks=3, is_complete=True, receipt=BYTES)
MESSAGE = ProtocolMessage("run-1", MessageKind.DEPOSIT, 2, "bank", BYTES)
ENVELOPE = ShareEnvelope("run-1", 2, "clinic", "bank", BYTES)
ADAPTER = Adapter(
    digest="5" * 64,
    run="run-1",
    round=7,
    state=AdapterState.SET_ASIDE,
    size_bytes=2**31,
    parent="3" * 64,
    manifest=BYTES,
    manifest_signature=BYTES[:64],
    created_at=NOW,
    heldout_loss=2.5,
)
PARTICIPANT = Participant(
    name="bank",
    state=ParticipantState.ACTIVE,
    enrolled_at=NOW,
    identity_key_sha256="6" * 64,
    certificate_serial="77",
    certificate_expires_at=LATER,
    last_seen_at=LATER,
    software_version="0.1.0",
    revoke_reason=AWKWARD,
)
CERTIFICATE = Certificate("77", "bank", "6" * 64, "-----BEGIN\n", NOW, LATER, revoked_at=LATER)
TOKEN = JoinToken(
    name="token-1",
    participant="bank",
    secret_sha256="8" * 64,
    created_at=NOW,
    expires_at=LATER,
    used_at=LATER,
    used_certificate="77",
    revoked_at=LATER,
)
WEB_TOKEN = WebToken("web-1", AWKWARD, "operators/alice", "9" * 64, NOW, LATER, revoked_at=LATER)


def run(name: str = "run-1", *, age_hours: int = 0, state: RunState = RunState.RUNNING) -> Run:
    return Run(name, state, b"{}", "p", "c", "a", None, NOW - timedelta(hours=age_hours))


def round_(number: int = 1, *, run: str = "run-1") -> Round:
    return Round(run, number, RoundKind.TRAIN, RoundState.FORMING, "a", "set", NOW, NOW, LATER)


def adapter(digest: str, number: int, *, run: str = "run-1") -> Adapter:
    return Adapter(digest, run, number, AdapterState.CANDIDATE, 10, None, b"{}", b"s", NOW)


def participant(name: str) -> Participant:
    return replace(PARTICIPANT, name=name, last_seen_at=None, revoke_reason="")


def certificate(serial: str, participant: str) -> Certificate:
    return replace(CERTIFICATE, serial=serial, participant=participant, revoked_at=None)


def token(name: str, *, age_hours: int = 0) -> JoinToken:
    return JoinToken(name, "bank", f"secret of {name}", NOW - timedelta(hours=age_hours), LATER)


def web_token(name: str, *, age_hours: int = 0) -> WebToken:
    return WebToken(name, "wallboard", "operators/alice", f"secret of {name}", NOW - timedelta(hours=age_hours), LATER)
