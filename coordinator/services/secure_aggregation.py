"""SecureAggregationService: carries the masking protocol's messages between members and whoever keeps them.

What a message means is known to common/secagg; when a phase is over is the driver's to decide.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc

from accord.v1 import secure_aggregation_pb2 as pb
from accord.v1 import secure_aggregation_pb2_grpc
from common.clock import Clock
from common.rpc.identity import current_caller
from coordinator.services.audits import ChunkAudits
from coordinator.services.closing import Closing
from coordinator.services.key_epochs import KeyEpochs
from coordinator.services.masked_uploads import MaskedUploads
from coordinator.store.blobs import BlobStore
from coordinator.store.interface import Store
from coordinator.wakeups import Wakeups

MAX_WAIT_SECONDS: Final = 50
STREAM_CHUNK_BYTES: Final = 1024 * 1024

Context = grpc.aio.ServicerContext[Any, Any]


class SecureAggregationServicer(secure_aggregation_pb2_grpc.SecureAggregationServiceServicer):
    """Hands every call on, and wakes those whom its outcome concerns."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: BlobStore,
        wakeups: Wakeups,
        clock: Clock,
        on_durable_bytes: Callable[[int], None] = lambda _: None,
        on_resumed: Callable[[], None] = lambda: None,
    ) -> None:
        self._wakeups = wakeups
        self._epochs = KeyEpochs(store=store, clock=clock)
        self._uploads = MaskedUploads(
            store=store, blobs=blobs, clock=clock, on_durable_bytes=on_durable_bytes, on_resumed=on_resumed
        )
        self._closing = Closing(store=store, clock=clock)
        self._audits = ChunkAudits(store=store, blobs=blobs, clock=clock)

    # --- key epochs -----------------------------------------------------------------------------------------------

    async def AdvertiseKeys(self, request: pb.AdvertiseKeysRequest, context: Context) -> pb.AdvertiseKeysResponse:
        await asyncio.to_thread(self._epochs.advertise, request, current_caller().id)
        self._wakeups.driver.ring()
        return pb.AdvertiseKeysResponse()

    async def GetRoster(self, request: pb.GetRosterRequest, context: Context) -> AsyncIterator[pb.GetRosterResponse]:
        roster = await asyncio.to_thread(self._epochs.roster, request, current_caller().id)
        for offset in range(0, len(roster), STREAM_CHUNK_BYTES):
            yield pb.GetRosterResponse(chunk=roster[offset : offset + STREAM_CHUNK_BYTES])

    async def DepositShares(self, request: pb.DepositSharesRequest, context: Context) -> pb.DepositSharesResponse:
        await asyncio.to_thread(self._epochs.deposit, request, current_caller().id)
        self._wakeups.driver.ring()
        return pb.DepositSharesResponse()

    async def GetShares(self, request: pb.GetSharesRequest, context: Context) -> AsyncIterator[pb.GetSharesResponse]:
        participant, last = current_caller().id, ""
        while shares := await asyncio.to_thread(self._epochs.shares, request, participant, after=last):
            last = shares[-1].owner
            for share in shares:
                yield pb.GetSharesResponse(sealed_share=share.envelope)

    async def ConfirmShares(self, request: pb.ConfirmSharesRequest, context: Context) -> pb.ConfirmSharesResponse:
        await asyncio.to_thread(self._epochs.confirm, request, current_caller().id)
        self._wakeups.driver.ring()
        return pb.ConfirmSharesResponse()

    # --- masked updates -------------------------------------------------------------------------------------------

    async def GetUpload(self, request: pb.GetUploadRequest, context: Context) -> pb.GetUploadResponse:
        upload = await asyncio.to_thread(self._uploads.upload_of, request, current_caller().id)
        if upload is None:
            return pb.GetUploadResponse()
        return pb.GetUploadResponse(durable_chunks=upload.durable_chunks, complete=upload.is_complete)

    async def UploadMaskedUpdate(
        self, requests: AsyncIterator[pb.UploadMaskedUpdateRequest], context: Context
    ) -> pb.UploadMaskedUpdateResponse:
        total_bytes = await self._uploads.receive(requests, current_caller().id)
        self._wakeups.driver.ring()
        return pb.UploadMaskedUpdateResponse(total_bytes=total_bytes)

    async def AuditChunks(
        self, request: pb.AuditChunksRequest, context: Context
    ) -> AsyncIterator[pb.AuditChunksResponse]:
        async for part in self._audits.answer(request, current_caller().id):
            yield part

    # --- closing a round ------------------------------------------------------------------------------------------

    async def GetEvidence(self, request: pb.GetEvidenceRequest, context: Context) -> pb.GetEvidenceResponse:
        participant = current_caller().id
        if request.for_reveal:
            await self._wait_for_commits(request, participant)
        evidence = await asyncio.to_thread(self._closing.evidence, request, participant)
        return pb.GetEvidenceResponse(
            survivors=evidence.survivors, fast=evidence.is_fast, receipts=evidence.receipts, commits=evidence.commits
        )

    async def CommitSurvivors(self, request: pb.CommitSurvivorsRequest, context: Context) -> pb.CommitSurvivorsResponse:
        # Those who wait are woken by the commit that suffices, not by each before it.
        if await asyncio.to_thread(self._closing.commit, request, current_caller().id):
            self._wakeups.polls.ring()
        return pb.CommitSurvivorsResponse()

    async def RevealShares(self, request: pb.RevealSharesRequest, context: Context) -> pb.RevealSharesResponse:
        await asyncio.to_thread(self._closing.reveal, request, current_caller().id)
        self._wakeups.driver.ring()
        return pb.RevealSharesResponse()

    async def _wait_for_commits(self, request: pb.GetEvidenceRequest, participant: str) -> None:
        """Return when a member may reveal, or when it would wait no longer."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + min(request.wait_seconds, MAX_WAIT_SECONDS)
        while True:
            ticket = self._wakeups.polls.ticket()
            if await asyncio.to_thread(self._closing.suffices, request, participant):
                return
            left = 0.0 if self._wakeups.is_over else give_up - loop.time()
            if left <= 0:
                return
            await self._wakeups.polls.wait(ticket, seconds=left)
