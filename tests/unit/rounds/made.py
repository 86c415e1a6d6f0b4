"""Runs, rounds, key epochs and plans for tests of the pure core: one of each, changed by name."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from common.adapters import AdapterSpec, LinearLayer
from common.basemodel import BaseModel
from common.instructions import chat_instruction_set
from common.plan import Gate, Masking, Method, PhaseLimits, Phases, Plan, Training
from common.states import RoundKind, RoundState, RunState
from coordinator.rounds.model import (
    EpochState,
    KeyEpoch,
    Participation,
    ParticipationState,
    Round,
    Run,
    RunMember,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
WINDOW = 100


def plan(**changes: Any) -> Plan:
    limits = PhaseLimits(quorum=3, window_seconds=WINDOW)
    made = Plan(
        run="run",
        run_id="ab" * 32,
        federation="lab",
        charter_digest="cd" * 32,
        coordinator_public_key="ef" * 32,
        base_model=BaseModel("m", "01" * 32, "M", (LinearLayer("model.layers.0.self_attn.q_proj", 8, 8),), 64, "F32"),
        adapter=AdapterSpec(rank=2, alpha=4.0, target_modules=("q_proj",)),
        rounds=2,
        method=Method(),
        training=Training(learning_rate=1e-3, steps_per_round=5, batch_size=4, max_length=128, seed=0),
        phases=Phases(limits, limits, limits, limits, limits),
        masking=Masking(
            least_cohort=3,
            most_participants=10,
            rounds_per_epoch=4,
            element_clip=0.1,
            max_update_norm=1.0,
            weight_cap=1000,
            lanes=4,
            colluders=3,
        ),
        gate=Gate(loss_rise=0.1, most_failed_rounds=3),
        instruction_set=chat_instruction_set().to_json(),
    )
    return replace(made, **changes)


def with_quorum(quorum: int) -> Plan:
    limits = PhaseLimits(quorum=quorum, window_seconds=WINDOW)
    return plan(phases=Phases(limits, limits, limits, limits, limits))


def run(state: RunState = RunState.RUNNING, **changes: Any) -> Run:
    made = Run(
        name="run",
        state=state,
        plan=b"{}",
        plan_digest="aa" * 32,
        charter_digest="cd" * 32,
        accepted_adapter="bb" * 32,
        candidate_adapter=None,
        created_at=NOW,
        latest_round=2,
    )
    return replace(made, **changes)


def round_(state: RoundState = RoundState.TRAINING, **changes: Any) -> Round:
    made = Round(
        run="run",
        number=2,
        kind=RoundKind.TRAIN,
        state=state,
        base_adapter="bb" * 32,
        instruction_set="{}",
        created_at=NOW,
        phase_started_at=NOW,
        deadline=NOW + timedelta(seconds=WINDOW),
    )
    return replace(made, **changes)


def epoch(state: EpochState = EpochState.READY, **changes: Any) -> KeyEpoch:
    made = KeyEpoch(
        run="run",
        number=1,
        state=state,
        first_round=1,
        rounds=4,
        phase_started_at=NOW,
        deadline=NOW + timedelta(seconds=WINDOW),
    )
    return replace(made, **changes)


def participation(name: str, state: ParticipationState = ParticipationState.PRESENT, **changes: Any) -> Participation:
    return replace(Participation("run", 2, name, state, NOW), **changes)


def member(name: str, *, joined: bool = True, reason: str = "") -> RunMember:
    return RunMember("run", name, joined, NOW, reason)
