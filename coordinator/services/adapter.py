"""AdapterService: global adapters by their digest, from any offset on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from accord.v1 import adapter_pb2, adapter_pb2_grpc
from common import identifiers
from common.errors import InvalidArgument
from coordinator.rounds.model import Adapter
from coordinator.runs import adapter_key
from coordinator.services import convert
from coordinator.standing import parse_plan
from coordinator.store.blobs import BlobStore
from coordinator.store.interface import Store

MOST_CHUNK_BYTES: Final = 1024 * 1024
LEAST_CHUNK_BYTES: Final = 128 * 1024
# In memory over all downloads at once, unless so many are open that even the least chunks are more; each chunk is
# there a few times over, as it is read, encoded, encrypted and sent.
HELD_BYTES: Final = 4 * 1024 * 1024


def chunk_bytes(open_downloads: int) -> int:
    """How much of an adapter goes into one message: less where many are sent at once."""
    return max(LEAST_CHUNK_BYTES, min(MOST_CHUNK_BYTES, HELD_BYTES // open_downloads))


class AdapterServicer(adapter_pb2_grpc.AdapterServiceServicer):
    """What is published is everybody's in the federation; a digest's bytes never change. Counts open downloads."""

    def __init__(self, *, store: Store, blobs: BlobStore) -> None:
        self._store = store
        self._blobs = blobs
        self._open_downloads = 0

    async def GetAdapter(
        self, request: adapter_pb2.GetAdapterRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> adapter_pb2.GetAdapterResponse:
        adapter, config = await asyncio.to_thread(self._adapter, request.digest)
        return adapter_pb2.GetAdapterResponse(adapter=convert.adapter(adapter), peft_config_json=config)

    async def DownloadAdapter(
        self, request: adapter_pb2.DownloadAdapterRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[adapter_pb2.DownloadAdapterResponse]:
        adapter, _ = await asyncio.to_thread(self._adapter, request.digest)
        if request.offset > adapter.size_bytes:
            raise InvalidArgument(f"offset {request.offset} is behind the adapter's {adapter.size_bytes} bytes")
        offset = request.offset
        self._open_downloads += 1
        try:
            while offset < adapter.size_bytes:
                size = chunk_bytes(self._open_downloads)
                chunk = await asyncio.to_thread(self._blobs.read, adapter_key(adapter.digest), offset, size)
                offset += size
                yield adapter_pb2.DownloadAdapterResponse(chunk=chunk)
        finally:
            self._open_downloads -= 1

    def _adapter(self, digest: str) -> tuple[Adapter, str]:
        with self._store.read() as reader:
            adapter = reader.adapter(identifiers.parse_digest(digest))
            plan = parse_plan(reader.run(adapter.run).plan)
        return adapter, plan.adapter_method().lora_spec.peft_config_json(plan.base_model.name)
