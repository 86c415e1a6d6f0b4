"""What the driver's steps work with, and how a run looks at the moment of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common import tracing
from common.clock import Clock
from common.errors import LeaseLost, StorageFailed, Unavailable, VersionConflict
from common.plan import Plan
from coordinator import audit_lines
from coordinator.rounds.model import KeyEpoch, ParticipantState, Participation, Round, Run
from coordinator.standing import parse_plan
from coordinator.store.blobs import BlobStore
from coordinator.store.interface import Reader, Store, Writer

# These say nothing of the round: the step is taken again.
TRY_AGAIN: Final = (LeaseLost, VersionConflict, StorageFailed, Unavailable)


class Observer(Protocol):
    """Hears what the driver does, for metrics."""

    def phase_ended(self, phase: str, seconds: float) -> None: ...

    def round_ended(self, round_: Round) -> None: ...

    def candidate_judged(self, *, is_accepted: bool) -> None: ...

    def lease_lost(self) -> None: ...

    def participant_dropped(self, participant: str, reason: str) -> None: ...

    def step_taken(self, step: str, seconds: float) -> None: ...

    def step_failed(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Work:
    """The driver's tools. `still_ours` raises LeaseLost once another process has taken a run over.

    kept_rounds: uploads of so many newest rounds are kept, the open one among them.
    """

    store: Store
    blobs: BlobStore
    clock: Clock
    signing_key: Ed25519PrivateKey
    scratch: Path
    observer: Observer
    still_ours: Callable[[str], None]
    kept_rounds: int


@dataclass(frozen=True, slots=True)
class View:
    """A run with all that decides its next step. `round` is the open one, `epoch` the newest.

    joined: participants that have joined and are not revoked.
    """

    now: datetime
    run: Run
    plan: Plan
    round: Round | None
    epoch: KeyEpoch | None
    participations: tuple[Participation, ...]
    joined: tuple[str, ...]


def look(reader: Reader, run_name: str, *, now: datetime) -> View:
    """Read what a step needs."""
    run = reader.run(run_name)
    newest = reader.round(run_name, run.latest_round) if run.latest_round else None
    open_round = newest if newest is not None and not newest.state.is_over else None
    epoch = reader.epoch(run_name, run.latest_epoch) if run.latest_epoch else None
    participations = reader.participations(run_name, open_round.number) if open_round is not None else ()
    active = {known.name for known in reader.participants().rows if known.state is ParticipantState.ACTIVE}
    joined = tuple(m.participant for m in reader.run_members(run_name) if m.joined and m.participant in active)
    return View(now, run, parse_plan(run.plan), open_round, epoch, participations, joined)


def audit(work: Work, writer: Writer, action: str, subject: str, **details: object) -> None:
    """One audit line of the coordinator itself."""
    audit_lines.append(writer, work.clock, actor=audit_lines.COORDINATOR, action=action, subject=subject, **details)


def phase_ended(work: Work, before: Round, after: Round) -> None:
    """Tell metrics and traces how long a phase took."""
    began, ended = before.phase_started_at, after.phase_started_at if not after.state.is_over else after.ended_at
    ended = ended or after.phase_started_at
    work.observer.phase_ended(before.state.value, (ended - began).total_seconds())
    tracing.over(f"phase {before.state.value}", run=before.run, round_=before.number, started=began, ended=ended)


def round_ended(work: Work, after: Round) -> None:
    """Tell metrics and traces of a round that has ended."""
    work.observer.round_ended(after)
    tracing.round_over(
        run=after.run,
        round_=after.number,
        started=after.created_at,
        ended=after.ended_at or after.phase_started_at,
        state=after.state.value,
        kind=after.kind.value,
        reason=after.reason,
    )
