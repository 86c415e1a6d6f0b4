"""AdminService: what operators see and do.

Every answer comes from the store. A call that changes something runs in one transaction with its audit line and the
answer that a repeat of its request_id gets, so that all of it happened or none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Final, TypeVar

from accord.v1 import admin_pb2 as pb
from accord.v1 import admin_pb2_grpc, resources_pb2
from common import identifiers
from common.charter import LEAST_COHORT_FLOOR, Charter
from common.clock import Clock
from common.errors import InvalidArgument, NotFound
from common.rpc.assignments import ROUND_STATES, RUN_STATES, timestamp
from common.rpc.handlers import Context
from common.rpc.identity import current_caller
from common.states import RunState
from common.version import software_version
from coordinator import audit_lines, runs
from coordinator.charters import CharterTerms, check_publishable, draft_charter
from coordinator.rounds.events import RunEvent, RunPaused, RunResumed, RunStarted
from coordinator.rounds.model import KeyEpoch, Participant, ParticipantState, Run
from coordinator.services import convert
from coordinator.services.adapter_files import AdapterFiles
from coordinator.services.admin_parts import FederationFacts, Inviter, Notices
from coordinator.services.answers import Answers
from coordinator.services.explaining import explain_run
from coordinator.services.fields import page_size, reason
from coordinator.services.join_tokens import JoinTokens
from coordinator.services.web_tokens import WebTokens
from coordinator.standing import parse_charter, parse_plan
from coordinator.store import audit
from coordinator.store.blobs import BlobStore
from coordinator.store.interface import Reader, Store, Writer

Answer = TypeVar("Answer")
StateAnswer = TypeVar("StateAnswer", pb.StartRunResponse, pb.PauseRunResponse, pb.ResumeRunResponse)

OPEN_RUNS: Final = tuple(state for state in RunState if not state.is_over)


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Keeps nothing: every answer is computed from the store."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: BlobStore,
        clock: Clock,
        facts: FederationFacts,
        factory: runs.RunFactory,
        inviter: Inviter | None,
        notices: Notices,
    ) -> None:
        self._store = store
        self._files = AdapterFiles(store=store, blobs=blobs, scratch=factory.scratch)
        self._clock = clock
        self._facts = facts
        self._factory = factory
        self._notices = notices
        self._answers = Answers(store, clock)
        self._join_tokens = JoinTokens(store, clock, self._answers, inviter)
        self._web_tokens = WebTokens(store, clock, self._answers)

    # --- the federation -------------------------------------------------------------------------------------------

    async def GetFederation(self, request: pb.GetFederationRequest, context: Context) -> pb.GetFederationResponse:
        return await asyncio.to_thread(self._federation)

    def _federation(self) -> pb.GetFederationResponse:
        with self._store.read() as reader:
            participants = reader.participants().rows
            open_runs = len(reader.runs(states=OPEN_RUNS).rows)
            try:
                charter_digest = parse_charter(reader.charter()).digest
            except NotFound:
                charter_digest = ""
        trust = self._facts.trust()
        ends = trust.expires_at if trust is not None else None
        return pb.GetFederationResponse(
            federation=self._facts.federation,
            software_version=software_version(),
            charter_digest=charter_digest,
            active_participants=sum(row.state is ParticipantState.ACTIVE for row in participants),
            open_runs=open_runs,
            time=timestamp(self._clock.now()),
            ca_expire_time=timestamp(ends) if ends is not None else None,
            trust_bundle=trust.bundle if trust is not None else "",
        )

    # --- join tokens ----------------------------------------------------------------------------------------------

    async def CreateJoinToken(self, request: pb.CreateJoinTokenRequest, context: Context) -> pb.CreateJoinTokenResponse:
        return await asyncio.to_thread(self._join_tokens.create, request, current_caller().actor)

    async def ListJoinTokens(self, request: pb.ListJoinTokensRequest, context: Context) -> pb.ListJoinTokensResponse:
        return await asyncio.to_thread(self._join_tokens.list, request)

    async def RevokeJoinToken(self, request: pb.RevokeJoinTokenRequest, context: Context) -> pb.RevokeJoinTokenResponse:
        return await asyncio.to_thread(self._join_tokens.revoke, request, current_caller().actor)

    # --- participants ---------------------------------------------------------------------------------------------

    async def ListParticipants(
        self, request: pb.ListParticipantsRequest, context: Context
    ) -> pb.ListParticipantsResponse:
        states = convert.states_of(request.states, convert.PARTICIPANT_STATES)
        page = await self._read(
            lambda reader: reader.participants(
                states=states, page_size=page_size(request.page_size), page_token=request.page_token
            )
        )
        return pb.ListParticipantsResponse(
            participants=[convert.participant(row) for row in page.rows], next_page_token=page.next_token
        )

    async def GetParticipant(self, request: pb.GetParticipantRequest, context: Context) -> pb.GetParticipantResponse:
        name = identifiers.parse_participant_name(request.name)
        row = await self._read(lambda reader: reader.participant(name))
        return pb.GetParticipantResponse(participant=convert.participant(row))

    async def RevokeParticipant(
        self, request: pb.RevokeParticipantRequest, context: Context
    ) -> pb.RevokeParticipantResponse:
        answer = await asyncio.to_thread(self._revoke_participant, request, current_caller().actor)
        await self._notices.revoked()
        self._notices.changed()
        return answer

    def _revoke_participant(self, request: pb.RevokeParticipantRequest, actor: str) -> pb.RevokeParticipantResponse:
        name = identifiers.parse_participant_name(request.name)
        why = reason(request.reason)

        def act(writer: Writer) -> pb.RevokeParticipantResponse:
            now = self._clock.now()
            if writer.participant(name).state is not ParticipantState.REVOKED:
                writer.revoke_participant(name, at=now, reason=why)
                for token in writer.join_tokens().rows:
                    if token.participant == name and token.used_at is None and token.revoked_at is None:
                        writer.update_join_token(replace(token, revoked_at=now))
                self._audit(writer, actor, "participant_revoked", request.name, reason=why)
            return pb.RevokeParticipantResponse(participant=convert.participant(writer.participant(name)))

        return self._answers.once(actor, request, pb.RevokeParticipantResponse, act)

    # --- the charter ----------------------------------------------------------------------------------------------

    async def DraftCharter(self, request: pb.DraftCharterRequest, context: Context) -> pb.DraftCharterResponse:
        charter = await self._read(lambda reader: self._draft(reader, request))
        return pb.DraftCharterResponse(charter_json=charter.to_bytes().decode(), digest=charter.digest)

    def _draft(self, reader: Reader, request: pb.DraftCharterRequest) -> Charter:
        trust = self._facts.trust()
        terms = CharterTerms(
            least_cohort=request.least_cohort or LEAST_COHORT_FLOOR,
            colluders=request.colluders if request.HasField("colluders") else None,
            base_model_digests=tuple(sorted(set(request.base_model_digests))),
        )
        outside = {
            identifiers.parse_participant_id(name, field="ca_certificates"): pem
            for name, pem in request.ca_certificates.items()
        }
        if request.participant_ids:
            wanted = {
                identifiers.parse_participant_id(text, field="participant_ids") for text in request.participant_ids
            }
            members = [reader.participant(name) for name in sorted(wanted - outside.keys())]
        else:
            known = [row for row in reader.participants().rows if row.state is ParticipantState.ACTIVE]
            members = [row for row in known if row.name not in outside]
        return draft_charter(
            members,
            terms,
            outside=outside,
            federation=self._facts.federation,
            ca_certificates=trust.certificates if trust is not None else (),
            coordinator_public_key=self._facts.coordinator_public_key,
        )

    async def PublishCharter(self, request: pb.PublishCharterRequest, context: Context) -> pb.PublishCharterResponse:
        answer = await asyncio.to_thread(self._publish_charter, request, current_caller().actor)
        self._notices.changed()
        return answer

    def _publish_charter(self, request: pb.PublishCharterRequest, actor: str) -> pb.PublishCharterResponse:
        charter = Charter.from_bytes(request.charter_json.encode())

        def act(writer: Writer) -> pb.PublishCharterResponse:
            check_publishable(
                charter,
                writer.participants().rows,
                federation=self._facts.federation,
                coordinator_public_key=self._facts.coordinator_public_key,
            )
            writer.publish_charter(charter.to_bytes(), charter.digest, at=self._clock.now())
            self._audit(
                writer, actor, "charter_published", f"charters/{charter.digest}", members=list(charter.member_ids)
            )
            return pb.PublishCharterResponse(digest=charter.digest)

        return self._answers.once(actor, request, pb.PublishCharterResponse, act)

    async def GetPublishedCharter(
        self, request: pb.GetPublishedCharterRequest, context: Context
    ) -> pb.GetPublishedCharterResponse:
        content = await self._read(lambda reader: reader.charter())
        return pb.GetPublishedCharterResponse(charter_json=content.decode(), digest=parse_charter(content).digest)

    # --- runs -----------------------------------------------------------------------------------------------------

    async def CreateRun(self, request: pb.CreateRunRequest, context: Context) -> pb.CreateRunResponse:
        answer = await asyncio.to_thread(self._create_run, request, current_caller().actor)
        await asyncio.to_thread(self._files.forget_import, request.settings.initial_adapter)
        self._notices.changed()
        return answer

    def _create_run(self, request: pb.CreateRunRequest, actor: str) -> pb.CreateRunResponse:
        known = self._answers.recall(actor, request, pb.CreateRunResponse)
        if known is not None:
            return known
        name = identifiers.parse_run_id(request.run_id)
        settings = convert.plan_settings(request.settings)
        with self._store.read() as reader:
            runs.require_new(reader, name)
            charter = parse_charter(reader.charter())
            beneath = runs.beneath(reader, settings.beneath_adapter) if settings.beneath_adapter else None
            if settings.initial_adapter:
                runs.require_own(reader, settings.initial_adapter)
        new = self._factory.make(name, settings, charter, at=self._clock.now(), beneath=beneath)

        def act(writer: Writer) -> pb.CreateRunResponse:
            runs.require_new(writer, name)
            runs.record(writer, new)
            self._audit(
                writer,
                actor,
                "run_created",
                identifiers.run_name(name),
                plan_digest=new.run.plan_digest,
                charter_digest=new.run.charter_digest,
                adapter=new.adapter.digest,
            )
            return pb.CreateRunResponse(run=_run_message(writer, new.run))

        return self._answers.once(actor, request, pb.CreateRunResponse, act)

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        name = identifiers.parse_run_name(request.name)
        return pb.GetRunResponse(run=await self._read(lambda reader: _run_message(reader, reader.run(name))))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        states = convert.states_of(request.states, RUN_STATES)
        page = await self._read(
            lambda reader: reader.runs(
                states=states, page_size=page_size(request.page_size), page_token=request.page_token
            )
        )
        return pb.ListRunsResponse(
            runs=[convert.run(row, parse_plan(row.plan)) for row in page.rows], next_page_token=page.next_token
        )

    async def StartRun(self, request: pb.StartRunRequest, context: Context) -> pb.StartRunResponse:
        return await self._change_run(request, pb.StartRunResponse, "run_started", RunStarted(self._clock.now()))

    async def PauseRun(self, request: pb.PauseRunRequest, context: Context) -> pb.PauseRunResponse:
        return await self._change_run(request, pb.PauseRunResponse, "run_paused", RunPaused(self._clock.now()))

    async def ResumeRun(self, request: pb.ResumeRunRequest, context: Context) -> pb.ResumeRunResponse:
        return await self._change_run(request, pb.ResumeRunResponse, "run_resumed", RunResumed(self._clock.now()))

    async def _change_run(
        self,
        request: pb.StartRunRequest | pb.PauseRunRequest | pb.ResumeRunRequest,
        answer: type[StateAnswer],
        action: str,
        event: RunEvent,
    ) -> StateAnswer:
        name = identifiers.parse_run_name(request.name)
        actor = current_caller().actor

        def act(writer: Writer) -> StateAnswer:
            run = runs.change(writer, name, event)
            self._audit(writer, actor, action, request.name)
            return answer(run=_run_message(writer, run))

        result = await asyncio.to_thread(self._answers.once, actor, request, answer, act)
        self._notices.changed()
        return result

    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> pb.CancelRunResponse:
        name = identifiers.parse_run_name(request.name)
        why = reason(request.reason)
        actor = current_caller().actor

        def act(writer: Writer) -> pb.CancelRunResponse:
            run = runs.cancel(writer, name, at=self._clock.now(), message=why)
            self._audit(writer, actor, "run_cancelled", request.name, reason=why)
            return pb.CancelRunResponse(run=_run_message(writer, run))

        result = await asyncio.to_thread(self._answers.once, actor, request, pb.CancelRunResponse, act)
        self._notices.changed()
        return result

    async def RollBackRun(self, request: pb.RollBackRunRequest, context: Context) -> pb.RollBackRunResponse:
        name = identifiers.parse_run_name(request.name)
        by_round = request.adapter_round if request.HasField("adapter_round") else None
        if (by_round is None) == (not request.adapter_digest):
            raise InvalidArgument("name the adapter by adapter_digest or by adapter_round: one of them")
        wanted = identifiers.parse_digest(request.adapter_digest, field="adapter_digest") if by_round is None else ""
        actor = current_caller().actor

        def act(writer: Writer) -> pb.RollBackRunResponse:
            before = writer.run(name)
            digest = wanted or runs.adapter_of_round(writer, name, by_round or 0)
            run = runs.roll_back(writer, name, digest, at=self._clock.now())
            self._audit(
                writer, actor, "run_rolled_back", request.name, adapter=digest, adapter_before=before.newest_adapter
            )
            return pb.RollBackRunResponse(run=_run_message(writer, run))

        result = await asyncio.to_thread(self._answers.once, actor, request, pb.RollBackRunResponse, act)
        self._notices.changed()
        return result

    # --- rounds and adapters --------------------------------------------------------------------------------------

    async def GetRound(self, request: pb.GetRoundRequest, context: Context) -> pb.GetRoundResponse:
        run, number = identifiers.parse_round_name(request.name)

        def read(reader: Reader) -> pb.GetRoundResponse:
            round_ = reader.round(run, number)
            participations = reader.participations(run, number)
            return pb.GetRoundResponse(round=convert.round_(round_, participations, _epoch_of(reader, run, number)))

        return await self._read(read)

    async def ExplainRun(self, request: pb.ExplainRunRequest, context: Context) -> pb.ExplainRunResponse:
        name = identifiers.parse_run_name(request.name)
        return await self._read(lambda reader: explain_run(reader, name, now=self._clock.now()))

    async def ListRounds(self, request: pb.ListRoundsRequest, context: Context) -> pb.ListRoundsResponse:
        states = convert.states_of(request.states, ROUND_STATES)
        run = identifiers.parse_run_name(request.run, field="run")

        def read(reader: Reader) -> pb.ListRoundsResponse:
            reader.run(run)
            page = reader.rounds(
                run, states=states, page_size=page_size(request.page_size), page_token=request.page_token
            )
            if request.view == resources_pb2.ROUND_VIEW_BASIC:
                rounds = [convert.basic_round(row) for row in page.rows]
            else:
                rounds = [convert.round_(row, reader.participations(run, row.number)) for row in page.rows]
            return pb.ListRoundsResponse(rounds=rounds, next_page_token=page.next_token)

        return await self._read(read)

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: Context) -> pb.ListAdaptersResponse:
        states = convert.states_of(request.states, convert.ADAPTER_STATES)
        run = identifiers.parse_run_name(request.run, field="run")

        def read(reader: Reader) -> pb.ListAdaptersResponse:
            reader.run(run)
            page = reader.adapters(
                run, states=states, page_size=page_size(request.page_size), page_token=request.page_token
            )
            return pb.ListAdaptersResponse(
                adapters=[convert.adapter(row) for row in page.rows], next_page_token=page.next_token
            )

        return await self._read(read)

    async def ExportAdapter(
        self, request: pb.ExportAdapterRequest, context: Context
    ) -> AsyncIterator[pb.ExportAdapterResponse]:
        # Reading changes nothing, but here a model leaves the house: who took which is worth a line.
        await asyncio.to_thread(self._audit_export, current_caller().actor, request)
        async for message in self._files.export(request):
            yield message

    async def ImportAdapter(
        self, requests: AsyncIterator[pb.ImportAdapterRequest], context: Context
    ) -> pb.ImportAdapterResponse:
        answer = await self._files.take(requests)
        await asyncio.to_thread(self._audit_import, current_caller().actor, answer)
        return answer

    def _audit_export(self, actor: str, request: pb.ExportAdapterRequest) -> None:
        digest = identifiers.parse_digest(request.digest, field="digest")
        with self._store.write() as writer:
            writer.adapter(digest)
            self._audit(writer, actor, "adapter_exported", f"adapters/{digest}", offset=request.offset)

    def _audit_import(self, actor: str, answer: pb.ImportAdapterResponse) -> None:
        with self._store.write() as writer:
            self._audit(writer, actor, "adapter_imported", f"adapters/{answer.digest}", size_bytes=answer.size_bytes)

    # --- the audit log --------------------------------------------------------------------------------------------

    async def ListAuditEvents(self, request: pb.ListAuditEventsRequest, context: Context) -> pb.ListAuditEventsResponse:
        page = await self._read(
            lambda reader: reader.audit_events(
                subject=request.subject,
                actor=request.actor,
                action=request.action,
                newest_first=request.newest_first,
                page_size=page_size(request.page_size),
                page_token=request.page_token,
            )
        )
        return pb.ListAuditEventsResponse(
            events=[convert.audit_event(row) for row in page.rows], next_page_token=page.next_token
        )

    async def VerifyAuditLog(self, request: pb.VerifyAuditLogRequest, context: Context) -> pb.VerifyAuditLogResponse:
        expected = audit.expected_head(request.expected_sequence, request.expected_chain_digest)
        verdict = await self._read(
            lambda reader: audit.verify(reader.audit_chain(), head=reader.audit_head(), expected=expected)
        )
        return pb.VerifyAuditLogResponse(
            events=verdict.events,
            intact=verdict.intact,
            first_broken_sequence=verdict.first_broken_sequence,
            chain_digest=verdict.chain_digest,
            sequence=verdict.sequence,
        )

    # --- web tokens -----------------------------------------------------------------------------------------------

    async def CreateWebToken(self, request: pb.CreateWebTokenRequest, context: Context) -> pb.CreateWebTokenResponse:
        return await asyncio.to_thread(self._web_tokens.create, request, current_caller().actor)

    async def ListWebTokens(self, request: pb.ListWebTokensRequest, context: Context) -> pb.ListWebTokensResponse:
        return await asyncio.to_thread(self._web_tokens.list, request)

    async def RevokeWebToken(self, request: pb.RevokeWebTokenRequest, context: Context) -> pb.RevokeWebTokenResponse:
        return await asyncio.to_thread(self._web_tokens.revoke, request, current_caller().actor)

    async def _read(self, ask: Callable[[Reader], Answer]) -> Answer:
        def read() -> Answer:
            with self._store.read() as reader:
                return ask(reader)

        return await asyncio.to_thread(read)

    def _audit(self, writer: Writer, actor: str, action: str, subject: str, **details: object) -> None:
        audit_lines.append(writer, self._clock, actor=actor, action=action, subject=subject, **details)


def _run_message(reader: Reader, run: Run) -> resources_pb2.Run:
    members = reader.run_members(run.name)
    seen: dict[str, Participant] = {}
    if members:  # one query, whatever the number of members
        seen = {row.name: row for row in reader.participants().rows}
    message = convert.run(run, parse_plan(run.plan), members)
    for member in message.members:
        row = seen.get(member.participant.removeprefix("participants/"))
        if row is not None and row.last_seen_at is not None:
            member.last_seen_time.CopyFrom(timestamp(row.last_seen_at))
    return message


def _epoch_of(reader: Reader, run: str, round_number: int) -> KeyEpoch | None:
    """The key epoch that a round uses, or that an open round waits for."""
    round_ = reader.round(run, round_number)
    number = round_.epoch if round_.epoch or round_.state.is_over else reader.run(run).latest_epoch
    return reader.epoch(run, number) if number else None
