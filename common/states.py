"""Words that coordinator and participants say to each other about runs and rounds; who moves them lives elsewhere."""

from __future__ import annotations

from enum import Enum


class RunState(Enum):
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        return self in (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED)


class RoundKind(Enum):
    TRAIN = "train"
    EVALUATE = "evaluate"


class RoundState(Enum):
    FORMING = "forming"
    TRAINING = "training"
    COLLECTING = "collecting"
    UNMASKING = "unmasking"
    AGGREGATING = "aggregating"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        return self in (RoundState.SUCCEEDED, RoundState.FAILED, RoundState.CANCELLED)
