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

CHUNK_BYTES: Final = 1024 * 1024


class AdapterServicer(adapter_pb2_grpc.AdapterServiceServicer):
    """What is published is everybody's in the federation; a digest's bytes never change."""

    def __init__(self, *, store: Store, blobs: BlobStore) -> None:
        self._store = store
        self._blobs = blobs

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
        for offset in range(request.offset, adapter.size_bytes, CHUNK_BYTES):
            chunk = await asyncio.to_thread(self._blobs.read, adapter_key(adapter.digest), offset, CHUNK_BYTES)
            yield adapter_pb2.DownloadAdapterResponse(chunk=chunk)

    def _adapter(self, digest: str) -> tuple[Adapter, str]:
        with self._store.read() as reader:
            adapter = reader.adapter(identifiers.parse_digest(digest))
            plan = parse_plan(reader.run(adapter.run).plan)
        return adapter, plan.adapter.peft_config_json(plan.base_model.name)
