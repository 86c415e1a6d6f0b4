"""What a lying participant sends: the API's own messages over its own certificate, with bytes of its choice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from accord.v1 import secure_aggregation_pb2 as pb
from accord.v1 import secure_aggregation_pb2_grpc
from common.rpc.status import raised_as_errors
from common.secagg import Masked
from participant.spool import chunk_sizes
from tests.rpc.federation import Federation, Site

Part = pb.UploadMaskedUpdateRequest


@dataclass(frozen=True)
class HeldUpload:
    """A masked update that a site has sealed and not sent."""

    site: Site
    run: str
    round: int
    chunks: tuple[bytes, ...]
    masked: Masked

    @property
    def receipt(self) -> bytes:
        return self.masked.message

    def header(self, chunks: Sequence[bytes] | None = None, **changes: Any) -> Part:
        chunks = self.chunks if chunks is None else chunks
        fields = {
            "run": self.run,
            "round": self.round,
            "first_chunk": 0,
            "chunk_count": len(chunks),
            "total_bytes": sum(map(len, chunks)),
            "chunk_digests": b"".join(hashlib.sha256(chunk).digest() for chunk in chunks),
            **changes,
        }
        return Part(header=pb.UploadHeader(**fields))

    def honest(self) -> list[Part]:
        return [self.header(), *map(part, self.chunks), Part(receipt=self.receipt)]

    def send(self, parts: Iterable[Part]) -> int:
        """Bytes that the coordinator has acknowledged. Raises what it answered."""
        return send(self.site, parts)

    def durable_chunks(self) -> int:
        return self.site.client.upload_state(self.run, self.round).durable_chunks


def part(chunk: bytes) -> Part:
    return Part(chunk=chunk)


def send(site: Site, parts: Iterable[Part]) -> int:
    with site.channels() as (_, uploads), raised_as_errors():
        stub = secure_aggregation_pb2_grpc.SecureAggregationServiceStub(uploads)
        answer = stub.UploadMaskedUpdate(_kept_open(parts), timeout=30)
    return int(answer.total_bytes)


def _kept_open(parts: Iterable[Part]) -> Iterator[Part]:
    yield from parts


def secagg_stub(channel: grpc.Channel) -> secure_aggregation_pb2_grpc.SecureAggregationServiceStub:
    return secure_aggregation_pb2_grpc.SecureAggregationServiceStub(channel)


def hold_upload(federation: Federation, number: int, name: str, *, run: str = "run") -> HeldUpload:
    """Play a round until only this site's masked update is missing, sealed and in the test's hands."""
    site = federation.sites[name]
    site.line.cut(before="upload")

    def all_but_one() -> bool:
        states = [state for state, _ in federation.participations(number, run).values()]
        return site.line.is_cut and states.count("uploaded") == len(federation.sites) - 1

    federation.turn_until(all_but_one)
    return held_upload(site, number, run=run)


def held_upload(site: Site, number: int, *, run: str = "run") -> HeldUpload:
    """What a site has sealed for a round, from its journal and its spool."""
    journal = site.journal()
    try:
        entry = journal.round(run, number)
    finally:
        journal.close()
    assert entry is not None
    masked = Masked.from_bytes(entry.state)
    content = (site.state / "spool" / f"{run}-{number}.masked").read_bytes()
    chunks, at = [], 0
    for size in chunk_sizes(masked.context.layout):
        chunks.append(content[at : at + size])
        at += size
    return HeldUpload(site, run, number, tuple(chunks), masked)
