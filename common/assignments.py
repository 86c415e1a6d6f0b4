"""What a participant can be asked to do: one frozen type per task. Doing one twice is harmless.

`common.rpc.assignments` puts them on the wire; `coordinator.rounds.assignments` decides who gets which.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from common.states import RoundKind, RoundState, RunState


@dataclass(frozen=True, slots=True)
class ReviewRun:
    run: str
    plan_digest: str


@dataclass(frozen=True, slots=True)
class AdvertiseKeys:
    run: str
    epoch: int
    first_round: int


@dataclass(frozen=True, slots=True)
class DepositShares:
    run: str
    epoch: int


@dataclass(frozen=True, slots=True)
class ConfirmShares:
    run: str
    epoch: int


@dataclass(frozen=True, slots=True)
class PrepareUpdate:
    run: str
    round: int
    kind: RoundKind
    adapter: str
    instruction_set: str
    deadline: datetime


@dataclass(frozen=True, slots=True)
class UploadUpdate:
    run: str
    round: int
    epoch: int
    start: bytes = field(repr=False)
    deadline: datetime


@dataclass(frozen=True, slots=True)
class CloseRound:
    run: str
    round: int
    epoch: int
    start: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class FinishRound:
    run: str
    round: int
    state: RoundState
    adapter: str | None


@dataclass(frozen=True, slots=True)
class FinishRun:
    run: str
    state: RunState
    adapter: str


Assignment = (
    ReviewRun
    | AdvertiseKeys
    | DepositShares
    | ConfirmShares
    | PrepareUpdate
    | UploadUpdate
    | CloseRound
    | FinishRound
    | FinishRun
)
