"""AdminService.ExplainRun: whom a run waits for, read from the store and put into the API's words."""

from __future__ import annotations

from datetime import datetime

from accord.v1 import admin_pb2 as pb
from accord.v1 import resources_pb2
from common import identifiers
from common.errors import AccordError
from common.rpc.assignments import ROUND_STATES, RUN_STATES, timestamp
from common.states import RoundState
from coordinator.masked import context_of
from coordinator.rounds.awaited import Awaited, Scene, explain
from coordinator.rounds.model import MessageKind, Round
from coordinator.services.convert import EPOCH_STATES
from coordinator.standing import EPOCH_KINDS, charter_of, parse_plan
from coordinator.store.interface import Reader


def explain_run(reader: Reader, name: str, *, now: datetime) -> pb.ExplainRunResponse:
    """What the run of that id waits for at `now`. Raises NotFound."""
    scene = _look(reader, name, now=now)
    found = explain(scene)
    answer = pb.ExplainRunResponse(
        run=identifiers.run_name(name),
        run_state=RUN_STATES[scene.run.state],
        summary=found.summary,
        done=found.done,
        quorum=found.quorum,
        awaited=[_message(entry) for entry in found.awaited],
        out=[_message(entry) for entry in found.out],
    )
    if scene.round is not None:
        answer.round, answer.round_state = scene.round.name, ROUND_STATES[scene.round.state]
        answer.phase_start_time.CopyFrom(timestamp(scene.round.phase_started_at))
        answer.deadline_time.CopyFrom(timestamp(scene.round.deadline))
        if scene.epoch is not None:
            answer.epoch_state = EPOCH_STATES[scene.epoch.state]
    return answer


def _look(reader: Reader, name: str, *, now: datetime) -> Scene:
    run = reader.run(name)
    newest = reader.round(name, run.latest_round) if run.latest_round else None
    round_ = newest if newest is not None and not newest.state.is_over else None
    epoch = reader.epoch(name, run.latest_epoch) if run.latest_epoch else None
    revealed: tuple[str, ...] = ()
    revealing = 0
    if round_ is not None and round_.state is RoundState.UNMASKING:
        revealed = reader.message_senders(name, MessageKind.REVEAL, round_.number)
        revealing = _revealing(reader, name, round_)
    kind = EPOCH_KINDS.get(epoch.state) if epoch is not None else None
    return Scene(
        now=now,
        run=run,
        plan=parse_plan(run.plan),
        members=charter_of(reader, run).member_ids,
        standings={member.participant: member for member in reader.run_members(name)},
        known={row.name: row for row in reader.participants().rows},
        round=round_,
        epoch=epoch,
        participations=reader.participations(name, round_.number) if round_ is not None else (),
        sent=reader.message_senders(name, kind, epoch.number) if epoch is not None and kind is not None else (),
        revealed=revealed,
        revealing=revealing,
    )


def _revealing(reader: Reader, name: str, round_: Round) -> int:
    """Least number that must reveal; 0 where the round's context cannot be made, which the driver then says."""
    try:
        return context_of(reader, reader.run(name), round_).thresholds.shares
    except AccordError:
        return 0


def _message(entry: Awaited) -> resources_pb2.Awaited:
    return resources_pb2.Awaited(
        participant=identifiers.participant_name(entry.participant),
        step=entry.step,
        since_time=timestamp(entry.since),
        last_seen_time=timestamp(entry.last_seen) if entry.last_seen is not None else None,
        reason=entry.reason,
        message=entry.message,
        advice=entry.advice,
    )
