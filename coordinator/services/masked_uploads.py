"""Masked uploads as they arrive: chunks are checked, made durable in segments and recorded, until the receipt.

An upload that breaks off is kept as far as it was checked, and goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from accord.v1 import secure_aggregation_pb2 as pb
from common.clock import Clock
from common.errors import (
    AlreadyExists,
    InvalidArgument,
    OutOfTurn,
    ProtocolViolation,
    UploadIncomplete,
    UploadMismatch,
)
from common.secagg import VectorLayout, upload_hash
from common.states import RoundState
from coordinator import audit_lines
from coordinator.proofs import keep_proof, kept_as_proof
from coordinator.rounds.model import MessageKind, ParticipationState, ProtocolMessage, Round, Upload
from coordinator.services.membership import masked_round, participation_in
from coordinator.store.blobs import BlobStore
from coordinator.store.interface import Store, Writer
from coordinator.uploads import check_chunk, check_header, segment_chunks, split_digests, upload_prefix, write_segment

Parts = AsyncIterator[pb.UploadMaskedUpdateRequest]


class MaskedUploads:
    """Keeps nothing but a count of open uploads: every answer is computed from the store."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: BlobStore,
        clock: Clock,
        on_durable_bytes: Callable[[int], None],
        on_resumed: Callable[[], None],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._on_durable_bytes = on_durable_bytes
        self._on_resumed = on_resumed
        self._open_uploads = 0

    def upload_of(self, request: pb.GetUploadRequest, participant: str) -> Upload | None:
        """How much of the participant's upload is there. Blocks."""
        with self._store.read() as reader:
            round_, _ = masked_round(reader, request.run, request.round, participant)
            return reader.upload(round_.run, round_.number, participant)

    async def receive(self, requests: Parts, participant: str) -> int:
        """Take an upload to its end; returns its bytes. Raises UploadIncomplete if it breaks off before its receipt."""
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
            return upload.total_bytes
        if upload.durable_chunks:
            self._on_resumed()
        held: list[bytes] = []
        self._open_uploads += 1
        try:
            async for message in requests:
                part = message.WhichOneof("part")
                if part == "receipt":
                    upload = await asyncio.to_thread(self._keep_segment, upload, held)
                    held = []
                    await asyncio.to_thread(self._complete_upload, upload, message.receipt)
                    return upload.total_bytes
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

    async def _receipt_at_the_end(self, requests: Parts, *, most_chunks: int) -> bytes:
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
            round_, context = masked_round(writer, header.run, header.round, participant)
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
            round_, context = masked_round(writer, upload.run, upload.round, upload.participant)
            stored = writer.upload(upload.run, upload.round, upload.participant)
            if stored is None or stored.durable_chunks != stored.chunk_count:
                durable = stored.durable_chunks if stored is not None else 0
                raise UploadMismatch(f"the receipt came after {durable} of {upload.chunk_count} chunks")
            if stored.is_complete:
                return
            if round_.state is not RoundState.COLLECTING:
                raise OutOfTurn(f"{round_.name} is {round_.state.value}: the upload came too late")
            participation = participation_in(writer, round_, upload.participant)
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
        participation = participation_in(writer, round_, upload.participant)
        writer.put_participation(
            replace(
                participation,
                activity="uploading",
                uploaded_bytes=participation.uploaded_bytes + more_bytes,
                upload_bytes=upload.total_bytes,
                updated_at=self._clock.now(),
            )
        )
