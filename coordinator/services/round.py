"""RoundService: tells participants what to do and hears what they say of themselves."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import grpc

from accord.v1 import round_pb2, round_pb2_grpc
from common import identifiers
from common.assignments import Assignment
from common.clock import Clock
from common.errors import (
    BaseModelMismatch,
    DigestMismatch,
    InvalidArgument,
    MemberAtFault,
    NotFound,
    NotInCohort,
    OutOfTurn,
)
from common.rpc import assignments as wire
from common.rpc.identity import Caller, current_caller
from common.states import RoundState
from coordinator import audit_lines
from coordinator.introductions import introduce, is_enrolled_here
from coordinator.rounds.assignments import assignments, joins_by_asking
from coordinator.rounds.model import (
    Participant,
    Participation,
    ParticipationState,
    Round,
    Run,
    RunMember,
)
from coordinator.standing import parse_plan, require_charter_member, require_member, standings
from coordinator.store.interface import Reader, Store, Writer
from coordinator.wakeups import Wakeups

MAX_WAIT_SECONDS: Final = 50
MAX_TEXT: Final = 2000
_SEEN_EVERY: Final = timedelta(seconds=10)


class RoundServicer(round_pb2_grpc.RoundServiceServicer):
    """Every answer is computed from the store; nothing is kept in here."""

    def __init__(
        self,
        *,
        store: Store,
        wakeups: Wakeups,
        clock: Clock,
        on_dropped: Callable[[str, str], None] = lambda participant, reason: None,
        on_declined: Callable[[str, str], None] = lambda participant, reason: None,
        trust_bundle_sha256: Callable[[], str] = lambda: "",
    ) -> None:
        """on_dropped: hears the name of each participant that says it is out of a round, and its reason.

        on_declined: the same of a run.

        trust_bundle_sha256: names the CAs that a renewal brings at the moment, "" where nobody renews here.
        """
        self._trust_bundle_sha256 = trust_bundle_sha256
        self._store = store
        self._wakeups = wakeups
        self._clock = clock
        self._on_dropped = on_dropped
        self._on_declined = on_declined

    async def GetAssignment(
        self, request: round_pb2.GetAssignmentRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> round_pb2.GetAssignmentResponse:
        caller = current_caller()
        loop = asyncio.get_running_loop()
        give_up = loop.time() + min(request.wait_seconds, MAX_WAIT_SECONDS)
        while True:
            ticket = self._wakeups.polls.ticket()
            tasks = await asyncio.to_thread(self._assignments, caller, request.software_version[:64])
            response = round_pb2.GetAssignmentResponse(
                assignments=[wire.to_proto(task) for task in tasks], trust_bundle_sha256=self._trust_bundle_sha256()
            )
            response.tag = hashlib.sha256(response.SerializeToString(deterministic=True)).hexdigest()[:32]
            left = 0.0 if self._wakeups.is_over else give_up - loop.time()
            if response.tag != request.known_tag or left <= 0:
                return response
            await self._wakeups.polls.wait(ticket, seconds=left)

    async def GetCharter(
        self, request: round_pb2.GetCharterRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> round_pb2.GetCharterResponse:
        charter = await asyncio.to_thread(self._charter)
        return round_pb2.GetCharterResponse(charter=charter, digest=hashlib.sha256(charter).hexdigest())

    async def GetPlan(
        self, request: round_pb2.GetPlanRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> round_pb2.GetPlanResponse:
        run = await asyncio.to_thread(
            self._run_of_member, identifiers.parse_run_id(request.run, field="run"), current_caller().id
        )
        return round_pb2.GetPlanResponse(plan=run.plan, digest=run.plan_digest)

    async def JoinRun(
        self, request: round_pb2.JoinRunRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> round_pb2.JoinRunResponse:
        await asyncio.to_thread(self._join, request, current_caller().id)
        self._wakeups.driver.ring()
        return round_pb2.JoinRunResponse()

    async def DeclineRun(
        self, request: round_pb2.DeclineRunRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> round_pb2.DeclineRunResponse:
        await asyncio.to_thread(self._decline, request, current_caller().id)
        self._wakeups.driver.ring()
        return round_pb2.DeclineRunResponse()

    async def ReportProgress(
        self, request: round_pb2.ReportProgressRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> round_pb2.ReportProgressResponse:
        await asyncio.to_thread(self._progress, request, current_caller().id)
        return round_pb2.ReportProgressResponse()

    async def ReportPrepared(
        self, request: round_pb2.ReportPreparedRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> round_pb2.ReportPreparedResponse:
        await asyncio.to_thread(self._prepared, request, current_caller().id)
        self._wakeups.driver.ring()
        return round_pb2.ReportPreparedResponse()

    async def ReportFailure(
        self, request: round_pb2.ReportFailureRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> round_pb2.ReportFailureResponse:
        await asyncio.to_thread(self._failure, request, current_caller().id)
        self._wakeups.driver.ring()
        return round_pb2.ReportFailureResponse()

    def _assignments(self, caller: Caller, software_version: str) -> tuple[Assignment, ...]:
        now, participant = self._clock.now(), caller.id
        with self._store.read() as reader:
            found = standings(reader, participant, now=now)
            known = _known(reader, participant)
            is_other = (
                known is not None and known.certificate_serial != caller.serial and not is_enrolled_here(reader, known)
            )
        if known is None or is_other:
            with self._store.write() as writer:
                known = introduce(writer, caller, known, clock=self._clock)
        arriving = [round_ for standing in found if (round_ := joins_by_asking(standing)) is not None]
        is_stale = known.last_seen_at is None or now - known.last_seen_at > _SEEN_EVERY
        if is_stale or software_version != known.software_version or arriving:
            with self._store.write() as writer:
                writer.touch_participant(participant, seen_at=now, software_version=software_version)
                for round_ in arriving:
                    self._arrive(writer, round_, participant)
        if not arriving:
            return tuple(task for standing in found for task in assignments(standing))
        self._wakeups.driver.ring()
        with self._store.read() as reader:
            return tuple(t for standing in standings(reader, participant, now=now) for t in assignments(standing))

    def _arrive(self, writer: Writer, seen: Round, participant: str) -> None:
        """Being there is said by asking. The round may have moved on since it was read."""
        round_ = writer.round(seen.run, seen.number)
        is_new = all(p.participant != participant for p in writer.participations(seen.run, seen.number))
        if is_new and round_.state in (RoundState.FORMING, RoundState.TRAINING):
            writer.put_participation(
                Participation(round_.run, round_.number, participant, ParticipationState.PRESENT, self._clock.now())
            )

    def _charter(self) -> bytes:
        with self._store.read() as reader:
            return reader.charter()

    def _run_of_member(self, name: str, participant: str) -> Run:
        with self._store.read() as reader:
            run = reader.run(name)
            require_charter_member(reader, run, participant)
            return run

    def _join(self, request: round_pb2.JoinRunRequest, participant: str) -> None:
        with self._store.write() as writer:
            run = self._open_run(writer, request.run, participant)
            if request.plan_digest != run.plan_digest:
                raise DigestMismatch(
                    f"runs/{run.name} has plan {run.plan_digest}, not {request.plan_digest[:64]}; fetch the plan again"
                )
            base_model = parse_plan(run.plan).base_model
            if request.base_model_digest != base_model.digest:
                raise BaseModelMismatch(
                    f"runs/{run.name} tunes {base_model.name} with digest {base_model.digest}; the base model here has "
                    f"digest {request.base_model_digest[:64]}: configure the same model, byte for byte"
                )
            known = writer.run_member(run.name, participant)
            if known is not None and known.joined:
                return  # it has said so before, and a line in the audit log is enough
            writer.put_run_member(RunMember(run.name, participant, True, self._clock.now()))
            audit_lines.append(
                writer,
                self._clock,
                actor=f"participants/{participant}",
                action="run_joined",
                subject=f"runs/{run.name}",
            )

    def _decline(self, request: round_pb2.DeclineRunRequest, participant: str) -> None:
        reason, message = _said(request.reason, request.message)
        with self._store.write() as writer:
            run = self._open_run(writer, request.run, participant)
            known = writer.run_member(run.name, participant)
            if known is not None and (known.joined, known.reason, known.message) == (False, reason, message):
                return
            writer.put_run_member(RunMember(run.name, participant, False, self._clock.now(), reason, message))
            audit_lines.append(
                writer,
                self._clock,
                actor=f"participants/{participant}",
                action="run_declined",
                subject=f"runs/{run.name}",
                reason=reason,
                message=message,
            )
        self._on_declined(participant, reason)

    def _open_run(self, reader: Reader, name: str, participant: str) -> Run:
        run = reader.run(identifiers.parse_run_id(name, field="run"))
        require_charter_member(reader, run, participant)
        if run.state.is_over:
            raise OutOfTurn(f"runs/{run.name} is {run.state.value}; nobody can join or leave it")
        # Declining would let it forget why it is out, and join again.
        for member in reader.run_members(run.name):
            if member.participant == participant and member.reason == MemberAtFault.reason:
                raise NotInCohort(f"{participant} was put out of runs/{run.name} for breaking the masking protocol")
        return run

    def _own_participation(
        self, reader: Reader, run: str, number: int, participant: str
    ) -> tuple[Round, Participation]:
        found = reader.run(identifiers.parse_run_id(run, field="run"))
        require_member(reader, found, participant)
        round_ = reader.round(found.name, number)
        if round_.state.is_over:
            raise OutOfTurn(f"{round_.name} is {round_.state.value}")
        for participation in reader.participations(found.name, number):
            if participation.participant == participant:
                return round_, participation
        raise NotFound(f"{participant} is not in {round_.name}; ask for an assignment first")

    def _progress(self, request: round_pb2.ReportProgressRequest, participant: str) -> None:
        if len(request.activity) > 40:
            raise InvalidArgument("activity is longer than 40 characters")
        with self._store.write() as writer:
            _, participation = self._own_participation(writer, request.run, request.round, participant)
            if participation.state.is_out:
                return
            writer.put_participation(
                _changed(
                    participation,
                    self._clock,
                    activity=request.activity,
                    progress_done=min(request.done, 2**53),
                    progress_total=min(request.total, 2**53),
                )
            )

    def _prepared(self, request: round_pb2.ReportPreparedRequest, participant: str) -> None:
        with self._store.write() as writer:
            round_, participation = self._own_participation(writer, request.run, request.round, participant)
            if request.adapter_digest != round_.base_adapter:
                raise DigestMismatch(f"{round_.name} starts from adapter {round_.base_adapter}")
            if participation.state is not ParticipationState.PRESENT or round_.state is not RoundState.TRAINING:
                return
            writer.put_participation(_changed(participation, self._clock, state=ParticipationState.PREPARED))

    def _failure(self, request: round_pb2.ReportFailureRequest, participant: str) -> None:
        reason, message = _said(request.reason, request.message)
        with self._store.write() as writer:
            round_, participation = self._own_participation(writer, request.run, request.round, participant)
            if (participation.state, participation.reason) == (ParticipationState.FAILED, reason):
                return
            if participation.state not in (ParticipationState.PRESENT, ParticipationState.PREPARED):
                raise OutOfTurn(f"{participant} is {participation.state.value} in {round_.name} already, and stays so")
            writer.put_participation(
                _changed(participation, self._clock, state=ParticipationState.FAILED, reason=reason, message=message)
            )
            audit_lines.append(
                writer,
                self._clock,
                actor=f"participants/{participant}",
                action="participant_failed",
                subject=round_.name,
                reason=reason,
                message=message,
            )
        self._on_dropped(participant, reason)


def _known(reader: Reader, participant: str) -> Participant | None:
    try:
        return reader.participant(participant)
    except NotFound:
        return None


def _changed(participation: Participation, clock: Clock, **changes: Any) -> Participation:
    return replace(participation, updated_at=clock.now(), **changes)


def _said(reason: str, message: str) -> tuple[str, str]:
    """What a participant says of a failure, bounded: operators read it, and it is nobody's to fill the disk with."""
    if not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", reason):
        raise InvalidArgument("reason must be a constant such as TRAINING_FAILED")
    return reason, message[:MAX_TEXT]
