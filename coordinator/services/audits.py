"""Shows a member what some chunks of a finished round's sum were made of, for it to check (common/secagg/audit.py).

That is stored uploads, receipts and messages, and the keys that the round's reveals have opened: what the coordinator
itself has seen of a round that is over. Why that may be shown is argued in common/secagg/README.md ("Chunk audit").
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from accord.v1 import resources_pb2
from accord.v1 import secure_aggregation_pb2 as pb
from common import identifiers
from common.clock import Clock
from common.errors import InvalidArgument, NotInCohort, OutOfTurn, StorageFailed
from common.secagg import OpenedKeys, RoundContext, VectorLayout
from common.states import RoundState
from coordinator import audit_lines
from coordinator.masked import context_of
from coordinator.rounds.model import MessageKind, Round, Run, Upload
from coordinator.standing import require_member
from coordinator.store.blobs import BlobStore
from coordinator.store.interface import Reader, Store
from coordinator.unmasking import opened_keys
from coordinator.uploads import UploadReader, upload_prefix


@dataclass(frozen=True, slots=True)
class _Shown:
    """A round that may be audited. Its answer: `first`, what `confirming` have confirmed, `pairs`, then the chunks.

    confirming, pairs: none where nobody dropped out: no pair key was opened then.
    """

    round: Round
    layout: VectorLayout
    first: tuple[pb.AuditChunksResponse, ...] = field(repr=False)
    confirming: tuple[str, ...]
    pairs: tuple[pb.AuditChunksResponse, ...] = field(repr=False)


class ChunkAudits:
    """Holds nothing between two calls, and one chunk or one member's confirmation in a call."""

    def __init__(self, *, store: Store, blobs: BlobStore, clock: Clock) -> None:
        self._store = store
        self._blobs = blobs
        self._clock = clock

    async def answer(self, request: pb.AuditChunksRequest, participant: str) -> AsyncIterator[pb.AuditChunksResponse]:
        """Raises NotInCohort, OutOfTurn, ShapeMismatch or InvalidArgument before the first part."""
        chunks = tuple(request.chunks)
        shown = await asyncio.to_thread(self._show, request, chunks, participant)
        for part in shown.first:
            yield part
        for name in shown.confirming:
            yield await asyncio.to_thread(self._confirmation, shown.round, name)
        for part in shown.pairs:
            yield part
        readers = await asyncio.to_thread(self._readers, shown)
        for chunk in chunks:
            for name, reader in readers.items():
                words = await asyncio.to_thread(self._words, shown.round, reader, chunk)
                yield pb.AuditChunksResponse(chunk=pb.AuditedChunk(participant=name, chunk=chunk, words=words))

    def _show(self, request: pb.AuditChunksRequest, chunks: tuple[int, ...], participant: str) -> _Shown:
        with self._store.read() as reader:
            run = reader.run(identifiers.parse_run_id(request.run, field="run"))
            require_member(reader, run, participant)
            round_ = reader.round(run.name, request.round)
            _check_may_be_audited(reader, run, round_, participant)
            context = context_of(reader, run, round_)
            _check_chunks(context.layout, chunks)
            shown = _shown(reader, run, round_, context)
        with self._store.write() as writer:
            audit_lines.append(
                writer,
                self._clock,
                actor=f"participants/{participant}",
                action="round_audited",
                subject=round_.name,
                chunks=chunks,
            )
        return shown

    def _confirmation(self, round_: Round, name: str) -> pb.AuditChunksResponse:
        with self._store.read() as reader:
            stored = reader.message(round_.run, MessageKind.CONFIRMATION, round_.epoch, name)
            if stored is None:  # a round that has been opened meanwhile has taken this one's place
                _check_kept(reader, reader.run(round_.run), round_)
                raise StorageFailed(f"what {name} confirmed for {round_.name} is missing from the database; restore it")
        return pb.AuditChunksResponse(confirmation=pb.AuditedConfirmation(participant=name, confirmation=stored.body))

    def _readers(self, shown: _Shown) -> dict[str, UploadReader]:
        round_ = shown.round
        return {
            name: UploadReader(self._blobs, upload_prefix(round_.run, round_.number, name), shown.layout)
            for name in sorted(round_.survivors)
        }

    def _words(self, round_: Round, upload: UploadReader, chunk: int) -> bytes:
        try:
            return upload.words(chunk).tobytes()
        except StorageFailed:
            # A round that has been opened meanwhile has taken this one's place.
            with self._store.read() as reader:
                _check_kept(reader, reader.run(round_.run), round_)
            raise


def _check_may_be_audited(reader: Reader, run: Run, round_: Round, participant: str) -> None:
    if round_.state is not RoundState.SUCCEEDED:
        raise OutOfTurn(f"{round_.name} is {round_.state.value}: only a round that has succeeded can be audited")
    if participant not in round_.cohort:
        raise NotInCohort(f"{participant} is not in the cohort of {round_.name}: its members alone can audit it")
    _check_kept(reader, run, round_)


def _check_kept(reader: Reader, run: Run, round_: Round) -> None:
    # The messages go in the transaction that opens the round after next, the uploads right after it.
    if not reader.message_senders(round_.run, MessageKind.REVEAL, round_.number):
        raise OutOfTurn(
            f"the masked updates of {round_.name} are deleted: those of its newest rounds are kept, and the newest "
            f"is {run.latest_round}. Audit a round soon, or ask the operator to raise blobs.kept_rounds"
        )


def _check_chunks(layout: VectorLayout, chunks: Sequence[int]) -> None:
    if not chunks or len(set(chunks)) != len(chunks):
        raise InvalidArgument("an audit names at least one chunk, and none twice")
    for chunk in chunks:
        layout.check_chunk(chunk)


def _shown(reader: Reader, run: Run, round_: Round, context: RoundContext) -> _Shown:
    keys = opened_keys(reader, run, round_, context)
    uploads = [upload for upload in reader.uploads(run.name, round_.number) if upload.participant in round_.survivors]
    commits = reader.messages(run.name, MessageKind.COMMIT, round_.number)
    first = pb.AuditChunksResponse(
        round=pb.AuditedRound(
            adapter_digest=round_.result_adapter or "",
            metrics=[resources_pb2.Metric(name=name, value=value) for name, value in round_.metrics],
            commits=[message.body for message in commits],
        )
    )
    names = context.members.org_ids
    return _Shown(
        round=round_,
        layout=context.layout,
        first=(first, *(_upload(upload, keys, context) for upload in uploads)),
        confirming=tuple(sorted({names[index] for pair in keys.pair_keys for index in pair})),
        pairs=tuple(
            pb.AuditChunksResponse(pair=pb.AuditedPair(dropped=names[one], survivor=names[other], pair_key=key))
            for (one, other), key in sorted(keys.pair_keys.items())
        ),
    )


def _upload(upload: Upload, keys: OpenedKeys, context: RoundContext) -> pb.AuditChunksResponse:
    return pb.AuditChunksResponse(
        upload=pb.AuditedUpload(
            participant=upload.participant,
            receipt=upload.receipt,
            chunk_digests=upload.chunk_digests,
            self_key=keys.self_keys[context.members.index_of(upload.participant)],
        )
    )
