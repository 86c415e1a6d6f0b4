"""Adapter files to and from operators: exported from any offset on, and imported for a run to begin from."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from accord.v1 import admin_pb2 as pb
from common import identifiers
from common.errors import InvalidArgument, StorageFailed, TooLarge
from common.methods.export import read_layout
from coordinator import runs
from coordinator.rounds.model import Adapter
from coordinator.standing import parse_plan
from coordinator.store.blobs import BlobStore
from coordinator.store.interface import Store

CHUNK_BYTES: Final = 1024 * 1024
# More than any adapter; who may import is trusted with the run, and a mistake must not fill the disk.
MOST_IMPORT_BYTES: Final = 16 << 30


class AdapterFiles:
    """What AdminServicer knows of adapters' bytes. scratch: a folder on local disk."""

    def __init__(self, *, store: Store, blobs: BlobStore, scratch: Path) -> None:
        self._store = store
        self._blobs = blobs
        self._scratch = scratch

    async def export(self, request: pb.ExportAdapterRequest) -> AsyncIterator[pb.ExportAdapterResponse]:
        """The head, and then the file's bytes."""
        digest = identifiers.parse_digest(request.digest)
        adapter, config = await asyncio.to_thread(self._adapter_with_config, digest)
        if request.offset > adapter.size_bytes:
            raise InvalidArgument(
                f"offset: {request.offset} is behind the end, the file has {adapter.size_bytes} bytes"
            )
        yield pb.ExportAdapterResponse(
            peft_config_json=config,
            manifest_json=adapter.manifest.decode(),
            manifest_signature=adapter.manifest_signature.hex(),
        )
        for offset in range(request.offset, adapter.size_bytes, CHUNK_BYTES):
            chunk = await asyncio.to_thread(self._blobs.read, runs.adapter_key(digest), offset, CHUNK_BYTES)
            yield pb.ExportAdapterResponse(chunk=chunk)

    async def take(self, requests: AsyncIterator[pb.ImportAdapterRequest]) -> pb.ImportAdapterResponse:
        """Keep a file until a run is created from it. Raises ShapeMismatch if it is no adapter file, or TooLarge."""
        digest, size = hashlib.sha256(), 0
        path = await asyncio.to_thread(self._new_file)
        try:
            with path.open("wb") as file:
                async for request in requests:
                    size += len(request.chunk)
                    if size > MOST_IMPORT_BYTES:
                        raise TooLarge(f"an adapter to import has at most {MOST_IMPORT_BYTES} bytes")
                    digest.update(request.chunk)
                    await asyncio.to_thread(file.write, request.chunk)
                await asyncio.to_thread(_flush, file.fileno())
            await asyncio.to_thread(read_layout, path)
            await asyncio.to_thread(self._blobs.put_file, runs.import_key(digest.hexdigest()), path)
        except OSError as error:
            raise StorageFailed(f"cannot keep the adapter in {self._scratch}: {error.strerror}") from error
        finally:
            path.unlink(missing_ok=True)
        return pb.ImportAdapterResponse(digest=digest.hexdigest(), size_bytes=size)

    def forget_import(self, digest: str) -> None:
        """Of a run that has been created from it; harmless for "" and where it is gone."""
        if digest:
            self._blobs.delete(runs.import_key(digest))

    def _adapter_with_config(self, digest: str) -> tuple[Adapter, str]:
        with self._store.read() as reader:
            adapter = reader.adapter(digest)
            plan = parse_plan(reader.run(adapter.run).plan)
        return adapter, plan.adapter_method().lora_spec.peft_config_json(plan.base_model.name)

    def _new_file(self) -> Path:
        try:
            self._scratch.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix="import-", dir=self._scratch)
        except OSError as error:
            raise StorageFailed(f"cannot write to {self._scratch}: {error.strerror}") from error
        os.close(descriptor)
        return Path(name)


def _flush(descriptor: int) -> None:
    os.fsync(descriptor)
