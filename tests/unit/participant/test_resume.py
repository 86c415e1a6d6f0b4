"""An upload that goes on at any chunk sends exactly the spool's bytes from there on, and the receipt that ends it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from accord.v1 import secure_aggregation_pb2 as pb
from common.errors import UploadIncomplete
from participant.client import CoordinatorClient

SIZES = (64, 64, 64, 24, 16)


class Collecting:
    """The stub's one call: takes the stream to its end and says how much is durable."""

    def __init__(self, durable: int | None = None) -> None:
        self.messages: list[pb.UploadMaskedUpdateRequest] = []
        self.durable = durable

    def UploadMaskedUpdate(self, messages: Iterator[pb.UploadMaskedUpdateRequest], *, timeout: float) -> Any:
        self.messages = list(messages)
        total = self.messages[0].header.total_bytes
        return SimpleNamespace(total_bytes=total if self.durable is None else self.durable)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    path = tmp_path / "spool"
    path.write_bytes(bytes(at % 251 for at in range(sum(SIZES))))
    return path


@pytest.fixture
def client() -> Iterator[CoordinatorClient]:
    with grpc.insecure_channel("localhost:1") as channel:
        yield CoordinatorClient(channel, channel, software_version="test")


def sent(client: CoordinatorClient, spool: Path, *, first: int, durable: int | None = None) -> Collecting:
    client._uploads = stub = Collecting(durable)  # type: ignore[assignment]
    client.upload(
        "run", 1, spool=spool, chunk_sizes=SIZES, chunk_digests=b"d" * 160, first_chunk=first, receipt=b"receipt"
    )
    return stub


@pytest.mark.parametrize("first", range(len(SIZES) + 1))
def test_an_upload_that_goes_on_at_any_chunk_sends_the_same_bytes(client, spool, first):
    """The last case: all is durable but the receipt."""
    header, *chunks, receipt = sent(client, spool, first=first).messages
    assert (header.header.first_chunk, header.header.chunk_count) == (first, len(SIZES))
    assert header.header.total_bytes == sum(SIZES)
    whole = spool.read_bytes()
    assert [len(message.chunk) for message in chunks] == list(SIZES[first:])
    assert b"".join(message.chunk for message in chunks) == whole[sum(SIZES[:first]) :]
    assert receipt.receipt == b"receipt"


def test_an_answer_that_less_is_durable_is_not_taken_for_success(client, spool):
    with pytest.raises(UploadIncomplete, match="100 of 232"):
        sent(client, spool, first=0, durable=100)
