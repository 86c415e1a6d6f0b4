"""Assignments on the wire: both directions in one place, so that a new task cannot be sent and not understood."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from accord.v1 import resources_pb2, round_pb2
from common.assignments import (
    AdvertiseKeys,
    Assignment,
    CloseRound,
    ConfirmShares,
    DepositShares,
    FinishRound,
    FinishRun,
    PrepareUpdate,
    ReviewRun,
    UploadUpdate,
)
from common.errors import InvalidArgument
from common.identifiers import parse_digest, parse_run_id
from common.states import RoundKind, RoundState, RunState

ROUND_KINDS: Final = {
    RoundKind.TRAIN: resources_pb2.ROUND_KIND_TRAIN,
    RoundKind.EVALUATE: resources_pb2.ROUND_KIND_EVALUATE,
}
ROUND_STATES: Final = {
    RoundState.FORMING: resources_pb2.ROUND_STATE_FORMING,
    RoundState.TRAINING: resources_pb2.ROUND_STATE_TRAINING,
    RoundState.COLLECTING: resources_pb2.ROUND_STATE_COLLECTING,
    RoundState.UNMASKING: resources_pb2.ROUND_STATE_UNMASKING,
    RoundState.AGGREGATING: resources_pb2.ROUND_STATE_AGGREGATING,
    RoundState.SUCCEEDED: resources_pb2.ROUND_STATE_SUCCEEDED,
    RoundState.FAILED: resources_pb2.ROUND_STATE_FAILED,
    RoundState.CANCELLED: resources_pb2.ROUND_STATE_CANCELLED,
}
RUN_STATES: Final = {
    RunState.CREATED: resources_pb2.RUN_STATE_CREATED,
    RunState.RUNNING: resources_pb2.RUN_STATE_RUNNING,
    RunState.PAUSED: resources_pb2.RUN_STATE_PAUSED,
    RunState.SUCCEEDED: resources_pb2.RUN_STATE_SUCCEEDED,
    RunState.FAILED: resources_pb2.RUN_STATE_FAILED,
    RunState.CANCELLED: resources_pb2.RUN_STATE_CANCELLED,
}
_KIND_OF: Final = {number: kind for kind, number in ROUND_KINDS.items()}
_ROUND_STATE_OF: Final = {number: state for state, number in ROUND_STATES.items()}
_RUN_STATE_OF: Final = {number: state for state, number in RUN_STATES.items()}


def timestamp(time: datetime) -> Timestamp:
    """An aware datetime as a protobuf Timestamp."""
    message = Timestamp()
    message.FromDatetime(time.astimezone(UTC))
    return message


def time_of(message: Timestamp) -> datetime:
    """A protobuf Timestamp as an aware UTC datetime."""
    return message.ToDatetime(tzinfo=UTC)


def to_proto(task: Assignment) -> round_pb2.Assignment:
    """The message of one assignment."""
    wire = round_pb2.Assignment()
    match task:
        case ReviewRun(run, plan_digest):
            wire.review_run.run, wire.review_run.plan_digest = run, plan_digest
        case AdvertiseKeys(run, epoch, first_round):
            wire.advertise_keys.CopyFrom(round_pb2.AdvertiseKeys(run=run, epoch=epoch, first_round=first_round))
        case DepositShares(run, epoch):
            wire.deposit_shares.CopyFrom(round_pb2.DepositShares(run=run, epoch=epoch))
        case ConfirmShares(run, epoch):
            wire.confirm_shares.CopyFrom(round_pb2.ConfirmShares(run=run, epoch=epoch))
        case PrepareUpdate():
            wire.prepare_update.CopyFrom(
                round_pb2.PrepareUpdate(
                    run=task.run,
                    round=task.round,
                    kind=ROUND_KINDS[task.kind],
                    adapter_digest=task.adapter,
                    instruction_set_json=task.instruction_set,
                    deadline_time=timestamp(task.deadline),
                )
            )
        case UploadUpdate(run, round_, epoch, start, deadline):
            wire.upload_update.CopyFrom(
                round_pb2.UploadUpdate(
                    run=run, round=round_, epoch=epoch, start=start, deadline_time=timestamp(deadline)
                )
            )
        case CloseRound(run, round_, epoch, start):
            wire.close_round.CopyFrom(round_pb2.CloseRound(run=run, round=round_, epoch=epoch, start=start))
        case FinishRound(run, round_, state, adapter):
            wire.finish_round.CopyFrom(
                round_pb2.FinishRound(run=run, round=round_, state=ROUND_STATES[state], adapter_digest=adapter or "")
            )
        case FinishRun(run, run_state, final_adapter):
            wire.finish_run.CopyFrom(
                round_pb2.FinishRun(run=run, state=RUN_STATES[run_state], adapter_digest=final_adapter)
            )
    return wire


def from_proto(wire: round_pb2.Assignment) -> Assignment:
    """The assignment in a message.

    Raises InvalidArgument for a task or a state that this version does not know, for a run's name that is none and for
    a digest that is none: folders are named by them, so a path must not pass for one.
    """
    try:
        task = _from_proto(wire)
    except KeyError as error:
        raise InvalidArgument(f"assignment has a state {error} that this version does not know; upgrade") from error
    parse_run_id(task.run, field="run")
    for digest in _digests_of(task):
        parse_digest(digest)
    return task


def is_understood(wire: round_pb2.Assignment) -> bool:
    """Whether this version knows the task and the state in it. A newer coordinator may ask for more than that."""
    match wire.WhichOneof("task"):
        case None:
            return False
        case "prepare_update":
            return wire.prepare_update.kind in _KIND_OF
        case "finish_round":
            return wire.finish_round.state in _ROUND_STATE_OF
        case "finish_run":
            return wire.finish_run.state in _RUN_STATE_OF
        case _:
            return True


def _digests_of(task: Assignment) -> tuple[str, ...]:
    match task:
        case ReviewRun(_, digest):
            return (digest,)
        case PrepareUpdate() | FinishRun():
            return (task.adapter,)
        case FinishRound():
            return () if task.adapter is None else (task.adapter,)
        case _:
            return ()


def _from_proto(wire: round_pb2.Assignment) -> Assignment:
    match wire.WhichOneof("task"):
        case "review_run":
            return ReviewRun(wire.review_run.run, wire.review_run.plan_digest)
        case "advertise_keys":
            keys = wire.advertise_keys
            return AdvertiseKeys(keys.run, keys.epoch, keys.first_round)
        case "deposit_shares":
            return DepositShares(wire.deposit_shares.run, wire.deposit_shares.epoch)
        case "confirm_shares":
            return ConfirmShares(wire.confirm_shares.run, wire.confirm_shares.epoch)
        case "prepare_update":
            task = wire.prepare_update
            return PrepareUpdate(
                task.run,
                task.round,
                _KIND_OF[task.kind],
                task.adapter_digest,
                task.instruction_set_json,
                time_of(task.deadline_time),
            )
        case "upload_update":
            upload = wire.upload_update
            return UploadUpdate(upload.run, upload.round, upload.epoch, upload.start, time_of(upload.deadline_time))
        case "close_round":
            close = wire.close_round
            return CloseRound(close.run, close.round, close.epoch, close.start)
        case "finish_round":
            over = wire.finish_round
            return FinishRound(over.run, over.round, _ROUND_STATE_OF[over.state], over.adapter_digest or None)
        case "finish_run":
            end = wire.finish_run
            return FinishRun(end.run, _RUN_STATE_OF[end.state], end.adapter_digest)
        case _:
            raise InvalidArgument("the coordinator asks for something that this version does not know; upgrade")
