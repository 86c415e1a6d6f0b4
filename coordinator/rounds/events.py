"""What can happen to a run, a round and a key epoch: one frozen type per event, with what it brings."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from common.secagg import ClosedGroup


@dataclass(frozen=True, slots=True)
class Opened:
    """FORMING is over: training may begin, until `deadline`."""

    at: datetime
    deadline: datetime


@dataclass(frozen=True, slots=True)
class CohortChosen:
    """TRAINING is over: exactly these have an update ready and keys in `epoch`.

    closed_groups: metric groups for which this cohort has too few contributors.
    """

    at: datetime
    deadline: datetime
    epoch: int
    cohort: tuple[str, ...]
    closed_groups: tuple[ClosedGroup, ...]
    start: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SurvivorsBound:
    """COLLECTING is over: the sum will be opened over this set or not at all.

    lost_groups: metric groups that were open, and of which this set leaves nothing to read.
    """

    at: datetime
    deadline: datetime
    survivors: tuple[str, ...]
    lost_groups: tuple[ClosedGroup, ...] = ()


@dataclass(frozen=True, slots=True)
class SharesRevealed:
    """UNMASKING is over: enough holders have answered."""

    at: datetime
    deadline: datetime


@dataclass(frozen=True, slots=True)
class DeadlineExtended:
    """Bytes were moving when the window of COLLECTING ran out."""

    at: datetime
    deadline: datetime


@dataclass(frozen=True, slots=True)
class Aggregated:
    """AGGREGATING is over: the sum passed its checks. `adapter` is None in an evaluation round."""

    at: datetime
    adapter: str | None
    metrics: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class RoundFailed:
    """The round cannot go on; the last accepted adapter stays."""

    at: datetime
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class RoundCancelled:
    """The run was cancelled around the round."""

    at: datetime
    message: str


RoundEvent = (
    Opened
    | CohortChosen
    | SurvivorsBound
    | SharesRevealed
    | DeadlineExtended
    | Aggregated
    | RoundFailed
    | RoundCancelled
)


@dataclass(frozen=True, slots=True)
class KeysAdvertised:
    """ADVERTISING is over: these make up the roster."""

    at: datetime
    deadline: datetime
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SharesDeposited:
    """SHARING is over: enough members have dealt their shares."""

    at: datetime
    deadline: datetime


@dataclass(frozen=True, slots=True)
class SharesConfirmed:
    """CONFIRMING is over: these members may mask."""

    at: datetime
    usable: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EpochClosed:
    """The epoch's rounds are used up, or a new member waits, or the run has ended."""

    at: datetime
    message: str


@dataclass(frozen=True, slots=True)
class EpochFailed:
    """The set-up missed a quorum or was broken; another epoch is tried."""

    at: datetime
    reason: str
    message: str


EpochEvent = KeysAdvertised | SharesDeposited | SharesConfirmed | EpochClosed | EpochFailed


@dataclass(frozen=True, slots=True)
class RunStarted:
    at: datetime


@dataclass(frozen=True, slots=True)
class RunPaused:
    at: datetime


@dataclass(frozen=True, slots=True)
class RunResumed:
    at: datetime


@dataclass(frozen=True, slots=True)
class RunCancelled:
    at: datetime
    message: str


@dataclass(frozen=True, slots=True)
class RunFinished:
    at: datetime


@dataclass(frozen=True, slots=True)
class RunFailed:
    at: datetime
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class RunRolledBack:
    """An earlier accepted adapter, with its held-out loss where it was measured, is what the next round trains."""

    at: datetime
    adapter: str
    heldout_loss: float | None


RunEvent = RunStarted | RunPaused | RunResumed | RunCancelled | RunFinished | RunFailed | RunRolledBack
