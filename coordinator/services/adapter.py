"""AdapterService: global adapters by their digest, from any offset on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import grpc

from accord.v1 import adapter_pb2, adapter_pb2_grpc
from common import identifiers
from common.adapters import FLOAT32_BYTES
from common.errors import InvalidArgument
from common.plan import Plan
from common.sent import sent_vector
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

_Window = tuple[int, tuple[tuple[int, int], ...]]
"""Where in the file a read begins, and (offset, count) of the bytes of it that are sent."""


def chunk_bytes(open_downloads: int) -> int:
    """How much of an adapter goes into one message: less where many are sent at once."""
    return max(LEAST_CHUNK_BYTES, min(MOST_CHUNK_BYTES, HELD_BYTES // open_downloads))


class AdapterServicer(adapter_pb2_grpc.AdapterServiceServicer):
    """What is published is everybody's in the federation; a digest's bytes never change. Counts open downloads."""

    def __init__(self, *, store: Store, blobs: BlobStore, on_sent: Callable[[int], None] = lambda count: None) -> None:
        """on_sent: told of the bytes of every chunk that is sent."""
        self._store = store
        self._blobs = blobs
        self._on_sent = on_sent
        self._open_downloads = 0

    async def GetAdapter(
        self, request: adapter_pb2.GetAdapterRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> adapter_pb2.GetAdapterResponse:
        adapter, plan = await asyncio.to_thread(self._adapter, request.digest)
        config = plan.adapter_method().lora_spec.peft_config_json(plan.base_model.name)
        return adapter_pb2.GetAdapterResponse(adapter=convert.adapter(adapter), peft_config_json=config)

    async def DownloadAdapter(
        self, request: adapter_pb2.DownloadAdapterRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[adapter_pb2.DownloadAdapterResponse]:
        adapter, plan = await asyncio.to_thread(self._adapter, request.digest)
        key, offset = adapter_key(adapter.digest), request.offset
        self._open_downloads += 1
        try:
            if request.moved_only:
                windows = self._moved(adapter, plan, offset)
            elif offset > adapter.size_bytes:
                raise InvalidArgument(f"offset {offset} is behind the adapter's {adapter.size_bytes} bytes")
            else:
                windows = self._whole(adapter, offset)
            for start, pieces in windows:
                size = sum(pieces[-1])
                read = await asyncio.to_thread(self._blobs.read, key, start, size)
                chunk = b"".join(read[at : at + count] for at, count in pieces)
                yield adapter_pb2.DownloadAdapterResponse(chunk=chunk)
                self._on_sent(len(chunk))
        finally:
            self._open_downloads -= 1

    def _whole(self, adapter: Adapter, offset: int) -> Iterator[_Window]:
        while offset < adapter.size_bytes:
            size = min(chunk_bytes(self._open_downloads), adapter.size_bytes - offset)
            yield offset, ((0, size),)
            offset += size

    def _moved(self, adapter: Adapter, plan: Plan, offset: int) -> Iterator[_Window]:
        if adapter.parent is None:
            raise InvalidArgument("a run's first adapter has moved from nothing; ask for all of it")
        sent = sent_vector(plan, adapter.round).stretches
        if offset % FLOAT32_BYTES or offset > sent.size * FLOAT32_BYTES:
            raise InvalidArgument(
                f"offset {offset} is not a multiple of {FLOAT32_BYTES} within the {sent.size * FLOAT32_BYTES} bytes of "
                "what has moved"
            )
        data_start = len(plan.layout().header())
        for start, pieces in sent.windows(offset // FLOAT32_BYTES, chunk_bytes(self._open_downloads) // FLOAT32_BYTES):
            yield (
                data_start + start * FLOAT32_BYTES,
                tuple((at * FLOAT32_BYTES, count * FLOAT32_BYTES) for at, count in pieces),
            )

    def _adapter(self, digest: str) -> tuple[Adapter, Plan]:
        with self._store.read() as reader:
            adapter = reader.adapter(identifiers.parse_digest(digest))
            return adapter, parse_plan(reader.run(adapter.run).plan)
