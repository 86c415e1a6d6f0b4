"""SecureAggregationService: carries the masking protocol's messages, checks each on arrival, keeps what is durable.

What a message means is known to common/secagg; when a phase is over is the driver's to decide.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import grpc

from accord.v1 import secure_aggregation_pb2 as pb
from accord.v1 import secure_aggregation_pb2_grpc
from common import identifiers
from common.clock import Clock
from common.errors import (
    AlreadyExists,
    InvalidArgument,
    NotInCohort,
    OutOfTurn,
    ProtocolViolation,
    UploadIncomplete,
    UploadMismatch,
)
from common.masking import pinned_members
from common.rpc.identity import current_caller
from common.secagg import (
    Deposit,
    RoundContext,
    VectorLayout,
    check_advertisement,
    check_deposit,
    check_ready,
    envelopes_for,
    upload_hash,
    verify_commit,
    verify_reveal,
)
from common.states import RoundState
from coordinator import audit_lines
from coordinator.masked import commitments_of, context_of, epoch_of, roster_message, roster_of
from coordinator.proofs import keep_proof, kept_as_proof
from coordinator.rounds.model import (
    EpochState,
    KeyEpoch,
    MessageKind,
    Participation,
    ParticipationState,
    ProtocolMessage,
    Round,
    Run,
    Upload,
)
from coordinator.services.audits import ChunkAudits
from coordinator.standing import charter_of, require_member
from coordinator.store.blobs import BlobStore
from coordinator.store.interface import Reader, Store, Writer
from coordinator.uploads import check_chunk, check_header, segment_chunks, split_digests, upload_prefix, write_segment
from coordinator.wakeups import Wakeups

MAX_WAIT_SECONDS: Final = 50
STREAM_CHUNK_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What GetEvidence answers; `suffices` says whether a member may reveal on it."""

    survivors: tuple[str, ...]
    is_fast: bool
    receipts: tuple[bytes, ...]
    commits: tuple[bytes, ...]
    suffices: bool


class SecureAggregationServicer(secure_aggregation_pb2_grpc.SecureAggregationServiceServicer):
    """Keeps nothing but a count of open uploads: every answer is computed from the store."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: BlobStore,
        wakeups: Wakeups,
        clock: Clock,
        on_durable_bytes: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._wakeups = wakeups
        self._clock = clock
        self._on_durable_bytes = on_durable_bytes
        self._audits = ChunkAudits(store=store, blobs=blobs, clock=clock)
        self._open_uploads = 0

    # --- key epochs -----------------------------------------------------------------------------------------------

    async def AdvertiseKeys(
        self, request: pb.AdvertiseKeysRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.AdvertiseKeysResponse:
        await asyncio.to_thread(self._advertise, request, current_caller().id)
        self._wakeups.driver.ring()
        return pb.AdvertiseKeysResponse()

    async def GetRoster(
        self, request: pb.GetRosterRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.GetRosterResponse]:
        roster = await asyncio.to_thread(self._roster, request, current_caller().id)
        for offset in range(0, len(roster), STREAM_CHUNK_BYTES):
            yield pb.GetRosterResponse(chunk=roster[offset : offset + STREAM_CHUNK_BYTES])

    async def DepositShares(
        self, request: pb.DepositSharesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.DepositSharesResponse:
        await asyncio.to_thread(self._deposit, request, current_caller().id)
        self._wakeups.driver.ring()
        return pb.DepositSharesResponse()

    async def GetShares(
        self, request: pb.GetSharesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.GetSharesResponse]:
        for envelope in await asyncio.to_thread(self._shares, request, current_caller().id):
            yield pb.GetSharesResponse(sealed_share=envelope)

    async def ConfirmShares(
        self, request: pb.ConfirmSharesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ConfirmSharesResponse:
        await asyncio.to_thread(self._confirm, request, current_caller().id)
        self._wakeups.driver.ring()
        return pb.ConfirmSharesResponse()

    def _advertise(self, request: pb.AdvertiseKeysRequest, participant: str) -> None:
        with self._store.read() as reader:
            run, epoch = self._epoch(reader, request.run, request.epoch, participant)
            verifier = pinned_members(charter_of(reader, run), now=self._clock.now())
        advertisement = check_advertisement(epoch_of(run, epoch), request.advertisement, verifier)
        if advertisement.org_id != participant:
            raise ProtocolViolation(f"{participant} advertises keys in the name of {advertisement.org_id}")
        message = ProtocolMessage(run.name, MessageKind.ADVERTISEMENT, epoch.number, participant, request.advertisement)
        self._keep_epoch_message(message, EpochState.ADVERTISING)

    def _roster(self, request: pb.GetRosterRequest, participant: str) -> bytes:
        with self._store.read() as reader:
            _, epoch = self._epoch(reader, request.run, request.epoch, participant)
            _require_epoch_member(epoch, participant)
            return roster_message(reader, epoch)

    def _deposit(self, request: pb.DepositSharesRequest, participant: str) -> None:
        with self._store.read() as reader:
            run, epoch = self._epoch(reader, request.run, request.epoch, participant)
            _require_epoch_member(epoch, participant)
            members = roster_of(reader, run, epoch).members
        check_deposit(epoch_of(run, epoch), members, request.deposit, sender=members.index_of(participant))
        message = ProtocolMessage(run.name, MessageKind.DEPOSIT, epoch.number, participant, request.deposit)
        self._keep_epoch_message(message, EpochState.SHARING)

    def _shares(self, request: pb.GetSharesRequest, participant: str) -> tuple[bytes, ...]:
        with self._store.read() as reader:
            run, epoch = self._epoch(reader, request.run, request.epoch, participant)
            _require_epoch_member(epoch, participant)
            if epoch.state in (EpochState.ADVERTISING, EpochState.SHARING):
                raise OutOfTurn(f"{_epoch_name(epoch)} is {epoch.state.value}: shares are not all dealt yet")
            members = roster_of(reader, run, epoch).members
            deposits = reader.messages(run.name, MessageKind.DEPOSIT, epoch.number)
        decoded = (Deposit.decode(message.body) for message in deposits)
        return envelopes_for(members, decoded, members.index_of(participant))

    def _confirm(self, request: pb.ConfirmSharesRequest, participant: str) -> None:
        with self._store.read() as reader:
            run, epoch = self._epoch(reader, request.run, request.epoch, participant)
            _require_epoch_member(epoch, participant)
            members = roster_of(reader, run, epoch).members
        check_ready(epoch_of(run, epoch), members, request.confirmation, sender=members.index_of(participant))
        message = ProtocolMessage(run.name, MessageKind.CONFIRMATION, epoch.number, participant, request.confirmation)
        self._keep_epoch_message(message, EpochState.CONFIRMING)

    def _epoch(self, reader: Reader, run_id: str, number: int, participant: str) -> tuple[Run, KeyEpoch]:
        run = reader.run(identifiers.parse_run_id(run_id, field="run"))
        require_member(reader, run, participant)
        return run, reader.epoch(run.name, number)

    def _keep_epoch_message(self, message: ProtocolMessage, expected: EpochState) -> None:
        """Store a checked message once. The first one stays, whatever comes later."""
        with self._store.write() as writer:
            epoch = writer.epoch(message.run, message.number)
            if epoch.state is expected:
                writer.add_message(message)
            elif not _is_stored(writer, message):
                raise OutOfTurn(f"{_epoch_name(epoch)} is {epoch.state.value}, not {expected.value}")

    # --- masked updates -------------------------------------------------------------------------------------------

    async def GetUpload(
        self, request: pb.GetUploadRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetUploadResponse:
        upload = await asyncio.to_thread(self._upload_of, request.run, request.round, current_caller().id)
        if upload is None:
            return pb.GetUploadResponse()
        return pb.GetUploadResponse(durable_chunks=upload.durable_chunks, complete=upload.is_complete)

    async def UploadMaskedUpdate(
        self, requests: AsyncIterator[pb.UploadMaskedUpdateRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.UploadMaskedUpdateResponse:
        participant = current_caller().id
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidArgument("an upload begins with its header")
        try:
            upload, layout = await asyncio.to_thread(self._begin_upload, first.header, participant)
        except AlreadyExists as refusal:
            # Of a second upload nothing is kept but what its sender has signed, which is proof against it.
            receipt = await self._receipt_at_the_end(requests, most_chunks=first.header.chunk_count)
            run, number = first.header.run, first.header.round
            proof = ProtocolMessage(run, MessageKind.SECOND_RECEIPT, number, participant, receipt)
            await asyncio.to_thread(keep_proof, self._store, self._clock, proof, refusal.message)
            raise
        if upload.is_complete:
            return pb.UploadMaskedUpdateResponse(total_bytes=upload.total_bytes)
        held: list[bytes] = []
        self._open_uploads += 1
        try:
            async for message in requests:
                part = message.WhichOneof("part")
                if part == "receipt":
                    upload = await asyncio.to_thread(self._keep_segment, upload, held)
                    held = []
                    await asyncio.to_thread(self._complete_upload, upload, message.receipt)
                    self._wakeups.driver.ring()
                    return pb.UploadMaskedUpdateResponse(total_bytes=upload.total_bytes)
                if part != "chunk":
                    raise InvalidArgument("after its header an upload consists of chunks and one receipt")
                chunk = message.chunk  # every look at the field makes a copy
                check_chunk(layout, upload.chunk_digests, upload.durable_chunks + len(held), chunk)
                held.append(chunk)
                if len(held) >= segment_chunks(self._open_uploads):
                    upload = await asyncio.to_thread(self._keep_segment, upload, held)
                    held = []
        finally:
            self._open_uploads -= 1
            # The stream broke, or a later chunk was bad: what was checked is kept, so that nobody sends it again.
            if held:
                with contextlib.suppress(OutOfTurn):
                    await asyncio.shield(asyncio.to_thread(self._keep_segment, upload, held))
        raise UploadIncomplete("the upload ended without its receipt; ask GetUpload and go on from there")

    async def _receipt_at_the_end(
        self, requests: AsyncIterator[pb.UploadMaskedUpdateRequest], *, most_chunks: int
    ) -> bytes:
        """The receipt of an upload that is refused, or nothing; its chunks are let go one by one."""
        self._open_uploads += 1
        try:
            async for message in requests:
                part = message.WhichOneof("part")
                if part == "chunk" and most_chunks > 0:
                    most_chunks -= 1
                    continue
                return message.receipt if part == "receipt" else b""
            return b""
        finally:
            self._open_uploads -= 1

    def _begin_upload(self, header: pb.UploadHeader, participant: str) -> tuple[Upload, VectorLayout]:
        with self._store.write() as writer:
            _, round_, context = self._round(writer, header.run, header.round, participant)
            layout = context.layout
            declared = Upload(
                round_.run,
                round_.number,
                participant,
                header.chunk_count,
                header.total_bytes,
                header.chunk_digests,
            )
            check_header(declared, layout)
            upload = writer.upload(round_.run, round_.number, participant)
            if upload is not None and upload.chunk_digests != declared.chunk_digests:
                raise AlreadyExists(
                    f"another masked update of {participant} for {round_.name} has begun to arrive; a round takes one"
                )
            if upload is not None and upload.is_complete:
                return upload, layout
            if round_.state is not RoundState.COLLECTING:
                raise OutOfTurn(f"{round_.name} is {round_.state.value}: it takes no uploads")
            durable = upload.durable_chunks if upload is not None else 0
            if header.first_chunk != durable:
                raise UploadMismatch(f"the next chunk to send is {durable}, not {header.first_chunk}; ask GetUpload")
            if upload is None:
                upload = declared
                writer.put_upload(upload)
                self._note_upload(writer, round_, upload, 0)
            return upload, layout

    def _keep_segment(self, upload: Upload, chunks: list[bytes]) -> Upload:
        """Make checked chunks durable, then record them."""
        if not chunks:
            return upload
        write_segment(
            self._blobs,
            upload_prefix(upload.run, upload.round, upload.participant),
            upload.durable_chunks,
            chunks,
        )
        self._on_durable_bytes(sum(len(chunk) for chunk in chunks))
        with self._store.write() as writer:
            round_ = writer.round(upload.run, upload.round)
            if round_.state is not RoundState.COLLECTING:
                raise OutOfTurn(f"{round_.name} is {round_.state.value}: it takes no uploads")
            stored = writer.upload(upload.run, upload.round, upload.participant) or upload
            durable = max(stored.durable_chunks, upload.durable_chunks + len(chunks))
            if durable > stored.durable_chunks:
                writer.put_upload(replace(stored, durable_chunks=durable))
                self._note_upload(writer, round_, stored, sum(len(chunk) for chunk in chunks))
        return replace(upload, durable_chunks=upload.durable_chunks + len(chunks))

    def _complete_upload(self, upload: Upload, receipt: bytes) -> None:
        proof = ProtocolMessage(upload.run, MessageKind.SECOND_RECEIPT, upload.round, upload.participant, receipt)
        with kept_as_proof(self._store, self._clock, proof), self._store.write() as writer:
            _, round_, context = self._round(writer, upload.run, upload.round, upload.participant)
            stored = writer.upload(upload.run, upload.round, upload.participant)
            if stored is None or stored.durable_chunks != stored.chunk_count:
                durable = stored.durable_chunks if stored is not None else 0
                raise UploadMismatch(f"the receipt came after {durable} of {upload.chunk_count} chunks")
            if stored.is_complete:
                return
            if round_.state is not RoundState.COLLECTING:
                raise OutOfTurn(f"{round_.name} is {round_.state.value}: the upload came too late")
            participation = _participation_in(writer, round_, upload.participant)
            checked = context.check_receipt(receipt)
            if checked.index != context.members.index_of(upload.participant):
                raise ProtocolViolation("the receipt is in another member's name")
            if checked.upload_hash != upload_hash(split_digests(stored.chunk_digests)):
                raise UploadMismatch("the receipt is for another upload than the one that arrived")
            writer.put_upload(replace(stored, is_complete=True, receipt=receipt))
            writer.put_participation(
                replace(
                    participation,
                    state=ParticipationState.UPLOADED,
                    uploaded_bytes=stored.total_bytes,
                    upload_bytes=stored.total_bytes,
                    updated_at=self._clock.now(),
                )
            )
            audit_lines.append(
                writer,
                self._clock,
                actor=f"participants/{upload.participant}",
                action="update_received",
                subject=round_.name,
                bytes=stored.total_bytes,
                upload_hash=checked.upload_hash.hex(),
                receipt=receipt.hex(),
            )

    def _note_upload(self, writer: Writer, round_: Round, upload: Upload, more_bytes: int) -> None:
        participation = _participation_in(writer, round_, upload.participant)
        writer.put_participation(
            replace(
                participation,
                activity="uploading",
                uploaded_bytes=participation.uploaded_bytes + more_bytes,
                upload_bytes=upload.total_bytes,
                updated_at=self._clock.now(),
            )
        )

    def _upload_of(self, run_id: str, number: int, participant: str) -> Upload | None:
        with self._store.read() as reader:
            _, round_, _ = self._round(reader, run_id, number, participant)
            return reader.upload(round_.run, round_.number, participant)

    async def AuditChunks(
        self, request: pb.AuditChunksRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.AuditChunksResponse]:
        async for part in self._audits.answer(request, current_caller().id):
            yield part

    # --- closing a round ------------------------------------------------------------------------------------------

    async def GetEvidence(
        self, request: pb.GetEvidenceRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetEvidenceResponse:
        participant = current_caller().id
        loop = asyncio.get_running_loop()
        give_up = loop.time() + min(request.wait_seconds, MAX_WAIT_SECONDS)
        while True:
            ticket = self._wakeups.polls.ticket()
            evidence = await asyncio.to_thread(self._evidence, request, participant)
            left = 0.0 if self._wakeups.is_over else give_up - loop.time()
            if evidence.suffices or not request.for_reveal or left <= 0:
                return pb.GetEvidenceResponse(
                    survivors=evidence.survivors,
                    fast=evidence.is_fast,
                    receipts=evidence.receipts,
                    commits=evidence.commits,
                )
            await self._wakeups.polls.wait(ticket, seconds=left)

    async def CommitSurvivors(
        self, request: pb.CommitSurvivorsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.CommitSurvivorsResponse:
        await asyncio.to_thread(self._commit, request, current_caller().id)
        self._wakeups.polls.ring()
        return pb.CommitSurvivorsResponse()

    async def RevealShares(
        self, request: pb.RevealSharesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.RevealSharesResponse:
        await asyncio.to_thread(self._reveal, request, current_caller().id)
        self._wakeups.driver.ring()
        return pb.RevealSharesResponse()

    def _evidence(self, request: pb.GetEvidenceRequest, participant: str) -> _Evidence:
        with self._store.read() as reader:
            _, round_, context = self._round(reader, request.run, request.round, participant)
            if round_.state is not RoundState.UNMASKING:
                raise OutOfTurn(f"{round_.name} is {round_.state.value}: there is nothing to reveal")
            receipts = tuple(
                upload.receipt
                for upload in reader.uploads(round_.run, round_.number)
                if upload.participant in round_.survivors
            )
            is_fast = set(round_.survivors) == set(round_.cohort)
            commits: tuple[bytes, ...] = ()
            if not is_fast:
                stored = reader.messages(round_.run, MessageKind.COMMIT, round_.number)
                if len(stored) >= context.thresholds.commits:
                    commits = tuple(message.body for message in stored)
        return _Evidence(round_.survivors, is_fast, receipts, commits, is_fast or bool(commits))

    def _commit(self, request: pb.CommitSurvivorsRequest, participant: str) -> None:
        with self._store.read() as reader:
            _, round_, context = self._round(reader, request.run, request.round, participant)
        sender = context.members.index_of(participant)
        proof = ProtocolMessage(round_.run, MessageKind.SECOND_COMMIT, round_.number, participant, request.commit)
        with kept_as_proof(self._store, self._clock, proof):
            verify_commit(context, context.members.indices_of(round_.survivors), request.commit, sender=sender)
        message = ProtocolMessage(round_.run, MessageKind.COMMIT, round_.number, participant, request.commit)
        self._keep_round_message(message, ParticipationState.COMMITTED)

    def _reveal(self, request: pb.RevealSharesRequest, participant: str) -> None:
        with self._store.read() as reader:
            _, round_, context = self._round(reader, request.run, request.round, participant)
            commitments = commitments_of(reader, context, round_)
        members = context.members
        survivors, sender = members.indices_of(round_.survivors), members.index_of(participant)
        proof = ProtocolMessage(round_.run, MessageKind.FALSE_REVEAL, round_.number, participant, request.reveal)
        with kept_as_proof(self._store, self._clock, proof):
            verify_reveal(context, survivors, request.reveal, sender=sender, commitments=commitments)
        message = ProtocolMessage(round_.run, MessageKind.REVEAL, round_.number, participant, request.reveal)
        self._keep_round_message(message, ParticipationState.REVEALED)

    def _keep_round_message(self, message: ProtocolMessage, state: ParticipationState) -> None:
        with self._store.write() as writer:
            round_ = writer.round(message.run, message.number)
            if round_.state is not RoundState.UNMASKING:
                if _is_stored(writer, message):
                    return
                raise OutOfTurn(f"{round_.name} is {round_.state.value}: it takes no {message.kind.value}")
            if writer.add_message(message):
                participation = _participation(writer, round_, message.sender)
                if not participation.state.is_out:
                    writer.put_participation(replace(participation, state=state, updated_at=self._clock.now()))

    def _round(self, reader: Reader, run_id: str, number: int, participant: str) -> tuple[Run, Round, RoundContext]:
        run = reader.run(identifiers.parse_run_id(run_id, field="run"))
        require_member(reader, run, participant)
        round_ = reader.round(run.name, number)
        if round_.state is RoundState.TRAINING or not round_.cohort:
            raise OutOfTurn(f"{round_.name} is {round_.state.value}: its cohort is not chosen")
        if participant not in round_.cohort:
            raise NotInCohort(f"{participant} is not in the cohort of {round_.name}")
        return run, round_, context_of(reader, run, round_)


def _epoch_name(epoch: KeyEpoch) -> str:
    return f"runs/{epoch.run} key epoch {epoch.number}"


def _require_epoch_member(epoch: KeyEpoch, participant: str) -> None:
    if epoch.state is EpochState.ADVERTISING:
        raise OutOfTurn(f"{_epoch_name(epoch)} is still {epoch.state.value}")
    if participant not in epoch.members:
        raise NotInCohort(f"{participant} has no keys in {_epoch_name(epoch)}")


def _is_stored(reader: Reader, message: ProtocolMessage) -> bool:
    """Whether this very message is there. Raises AlreadyExists if another of the sender's is."""
    for stored in reader.messages(message.run, message.kind, message.number):
        if stored.sender == message.sender:
            if stored.body != message.body:
                raise AlreadyExists(f"{message.sender} has sent another {message.kind.value} before")
            return True
    return False


def _participation(reader: Reader, round_: Round, participant: str) -> Participation:
    for participation in reader.participations(round_.run, round_.number):
        if participation.participant == participant:
            return participation
    raise NotInCohort(f"{participant} is not in {round_.name}")


def _participation_in(reader: Reader, round_: Round, participant: str) -> Participation:
    """As `_participation`. Raises OutOfTurn for one that has said that it is out: what the round goes on from stays."""
    participation = _participation(reader, round_, participant)
    if participation.state.is_out:
        raise OutOfTurn(f"{participant} has declared itself out of {round_.name}")
    return participation
