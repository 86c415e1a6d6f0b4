"""The coordinator as the participant sees it: typed calls in, the API's messages out. Protobuf stops here.

Every call has a deadline. Uploads go over a channel that never retries (a replayed stream loses messages in silence).
Raises the errors that the coordinator raised (common.errors), and Unavailable when it cannot be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import grpc

from accord.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    round_pb2,
    round_pb2_grpc,
    secure_aggregation_pb2,
    secure_aggregation_pb2_grpc,
)
from common.assignments import Assignment
from common.errors import ProtocolViolation, UploadIncomplete
from common.rpc import assignments as wire
from common.rpc.channels import TIME_METADATA
from common.rpc.status import raised_as_errors
from participant.network.clocks import parse_time
from participant.outward import without_folders

CALL_SECONDS: Final = 30.0
STREAM_SECONDS: Final = 24 * 3600.0
# Added to the wait of a long poll, for the way there and back.
POLL_MARGIN_SECONDS: Final = 15.0
# Of one roster, and of one site's shares: a thousand members' are an eighth of it. More would only fill the memory.
MOST_KEY_SETUP_BYTES: Final = 32 << 20
_PART_BYTES: Final = 64
# Pauses between tries while the coordinator is away; the last one goes on and on.
BACKOFF_SECONDS: Final = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True, slots=True)
class Assignments:
    """The coordinator's answer to "what should I do now", with the tag that names it.

    not_understood: how many tasks this version does not know; the others do not wait for them. server_time: what the
    coordinator's clock said when it was asked.
    """

    tag: str
    tasks: tuple[Assignment, ...]
    not_understood: int = 0
    server_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class PublishedAdapter:
    """What is published of a global adapter beside its bytes."""

    digest: str
    size_bytes: int
    manifest: bytes
    manifest_signature: bytes
    peft_config: str


@dataclass(frozen=True, slots=True)
class UploadState:
    """How much of an upload is durable at the coordinator."""

    durable_chunks: int
    is_complete: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """Who survived, and the signatures that show it."""

    survivors: tuple[str, ...]
    is_fast: bool
    receipts: tuple[bytes, ...] = field(repr=False)
    commits: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class RoundExhibits:
    """What the coordinator shows of a finished round beside its chunks; by participants' names.

    adapter: digest of what it published, empty after an evaluation round. chunk_digests: SHA-256 of every chunk, one
    after the other. pair_keys: by (dropped, survivor). confirmations: of those who share a mask with a dropped member.
    """

    adapter: str
    metrics: Mapping[str, float]
    commits: tuple[bytes, ...] = field(repr=False)
    receipts: Mapping[str, bytes] = field(repr=False)
    chunk_digests: Mapping[str, bytes] = field(repr=False)
    self_keys: Mapping[str, bytes] = field(repr=False)
    pair_keys: Mapping[tuple[str, str], bytes] = field(repr=False)
    confirmations: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ShownChunk:
    """One chunk of a participant's masked update, as the coordinator has it."""

    chunk: int
    participant: str
    words: bytes = field(repr=False)


class CoordinatorClient:
    """One connection for calls and one for uploads; both are the caller's to close.

    on_chunk: told of every chunk of an upload or a download, from whatever thread it moves in. on_trust: told with
    every assignment the digest of the CAs that a renewal of the certificate would bring.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        upload_channel: grpc.Channel,
        *,
        software_version: str,
        on_chunk: Callable[[], None] = lambda: None,
        on_trust: Callable[[str], None] = lambda trust_bundle_sha256: None,
    ) -> None:
        self._rounds = round_pb2_grpc.RoundServiceStub(channel)
        self._adapters = adapter_pb2_grpc.AdapterServiceStub(channel)
        self._secagg = secure_aggregation_pb2_grpc.SecureAggregationServiceStub(channel)
        self._uploads = secure_aggregation_pb2_grpc.SecureAggregationServiceStub(upload_channel)
        self._software_version = software_version
        self._on_chunk = on_chunk
        self._on_trust = on_trust

    # --- rounds ---------------------------------------------------------------------------------------------------

    def assignments(self, known_tag: str, *, wait_seconds: int) -> Assignments:
        """What to do now; waits while that is what `known_tag` names."""
        request = round_pb2.GetAssignmentRequest(
            known_tag=known_tag, wait_seconds=wait_seconds, software_version=self._software_version
        )
        with raised_as_errors():
            response, call = self._rounds.GetAssignment.with_call(request, timeout=wait_seconds + POLL_MARGIN_SECONDS)
        self._on_trust(response.trust_bundle_sha256)
        understood = [task for task in response.assignments if wire.is_understood(task)]
        return Assignments(
            response.tag,
            tuple(wire.from_proto(task) for task in understood),
            len(response.assignments) - len(understood),
            _server_time(call),
        )

    def charter(self) -> bytes:
        """The charter that the coordinator works under, byte for byte."""
        with raised_as_errors():
            return self._rounds.GetCharter(round_pb2.GetCharterRequest(), timeout=CALL_SECONDS).charter

    def plan(self, run: str) -> bytes:
        """A run's plan, byte for byte."""
        with raised_as_errors():
            return self._rounds.GetPlan(round_pb2.GetPlanRequest(run=run), timeout=CALL_SECONDS).plan

    def join_run(self, run: str, *, plan_digest: str, base_model_digest: str) -> None:
        request = round_pb2.JoinRunRequest(run=run, plan_digest=plan_digest, base_model_digest=base_model_digest)
        with raised_as_errors():
            self._rounds.JoinRun(request, timeout=CALL_SECONDS)

    def decline_run(self, run: str, *, reason: str, message: str) -> None:
        request = round_pb2.DeclineRunRequest(run=run, reason=reason, message=without_folders(message))
        with raised_as_errors():
            self._rounds.DeclineRun(request, timeout=CALL_SECONDS)

    def report_progress(self, run: str, round_: int, *, activity: str, done: int, total: int) -> None:
        request = round_pb2.ReportProgressRequest(run=run, round=round_, activity=activity, done=done, total=total)
        with raised_as_errors():
            self._rounds.ReportProgress(request, timeout=CALL_SECONDS)

    def report_prepared(self, run: str, round_: int, *, adapter: str) -> None:
        request = round_pb2.ReportPreparedRequest(run=run, round=round_, adapter_digest=adapter)
        with raised_as_errors():
            self._rounds.ReportPrepared(request, timeout=CALL_SECONDS)

    def report_failure(self, run: str, round_: int, *, reason: str, message: str) -> None:
        request = round_pb2.ReportFailureRequest(run=run, round=round_, reason=reason, message=without_folders(message))
        with raised_as_errors():
            self._rounds.ReportFailure(request, timeout=CALL_SECONDS)

    # --- adapters -------------------------------------------------------------------------------------------------

    def adapter(self, digest: str) -> PublishedAdapter:
        with raised_as_errors():
            response = self._adapters.GetAdapter(adapter_pb2.GetAdapterRequest(digest=digest), timeout=CALL_SECONDS)
        return PublishedAdapter(
            digest=digest,
            size_bytes=response.adapter.size_bytes,
            manifest=response.adapter.manifest_json.encode(),
            manifest_signature=bytes.fromhex(response.adapter.manifest_signature),
            peft_config=response.peft_config_json,
        )

    def adapter_chunks(self, digest: str, *, offset: int, moved_only: bool = False) -> Iterator[bytes]:
        """The adapter's model file from an offset on; or of what has moved from its parent, one behind the other."""
        request = adapter_pb2.DownloadAdapterRequest(digest=digest, offset=offset, moved_only=moved_only)
        with raised_as_errors():
            for message in self._adapters.DownloadAdapter(request, timeout=STREAM_SECONDS):
                self._on_chunk()
                yield message.chunk

    # --- key epochs -----------------------------------------------------------------------------------------------

    def advertise_keys(self, run: str, epoch: int, advertisement: bytes) -> None:
        request = secure_aggregation_pb2.AdvertiseKeysRequest(run=run, epoch=epoch, advertisement=advertisement)
        with raised_as_errors():
            self._secagg.AdvertiseKeys(request, timeout=CALL_SECONDS)

    def roster(self, run: str, epoch: int) -> bytes:
        """The key roster's canonical bytes."""
        request = secure_aggregation_pb2.GetRosterRequest(run=run, epoch=epoch)
        with raised_as_errors():
            stream = self._secagg.GetRoster(request, timeout=STREAM_SECONDS)
            return b"".join(_no_more_than(MOST_KEY_SETUP_BYTES, (message.chunk for message in stream), "roster"))

    def deposit_shares(self, run: str, epoch: int, deposit: bytes) -> None:
        request = secure_aggregation_pb2.DepositSharesRequest(run=run, epoch=epoch, deposit=deposit)
        with raised_as_errors():
            self._secagg.DepositShares(request, timeout=CALL_SECONDS)

    def shares(self, run: str, epoch: int) -> tuple[bytes, ...]:
        """The sealed shares for this participant."""
        request = secure_aggregation_pb2.GetSharesRequest(run=run, epoch=epoch)
        with raised_as_errors():
            stream = self._secagg.GetShares(request, timeout=STREAM_SECONDS)
            return tuple(_no_more_than(MOST_KEY_SETUP_BYTES, (message.sealed_share for message in stream), "shares"))

    def confirm_shares(self, run: str, epoch: int, confirmation: bytes) -> None:
        request = secure_aggregation_pb2.ConfirmSharesRequest(run=run, epoch=epoch, confirmation=confirmation)
        with raised_as_errors():
            self._secagg.ConfirmShares(request, timeout=CALL_SECONDS)

    # --- masked updates -------------------------------------------------------------------------------------------

    def upload_state(self, run: str, round_: int) -> UploadState:
        with raised_as_errors():
            response = self._secagg.GetUpload(
                secure_aggregation_pb2.GetUploadRequest(run=run, round=round_), timeout=CALL_SECONDS
            )
        return UploadState(response.durable_chunks, response.complete)

    def upload(
        self,
        run: str,
        round_: int,
        *,
        spool: Path,
        chunk_sizes: Sequence[int],
        chunk_digests: bytes,
        first_chunk: int,
        receipt: bytes,
    ) -> None:
        """Send the spooled masked update from `first_chunk` on, and the receipt that ends it.

        chunk_sizes: bytes of every chunk, in order; chunk_digests: their SHA-256, one after the other.

        Returns when all of it is durable at the coordinator. Raises Unavailable or UploadIncomplete when the stream
        breaks; what arrived by then stays there.
        """
        total = spool.stat().st_size
        header = secure_aggregation_pb2.UploadHeader(
            run=run,
            round=round_,
            first_chunk=first_chunk,
            chunk_count=len(chunk_sizes),
            total_bytes=total,
            chunk_digests=chunk_digests,
        )

        def messages() -> Iterator[secure_aggregation_pb2.UploadMaskedUpdateRequest]:
            yield secure_aggregation_pb2.UploadMaskedUpdateRequest(header=header)
            with spool.open("rb") as file:
                file.seek(sum(chunk_sizes[:first_chunk]))
                for size in chunk_sizes[first_chunk:]:
                    self._on_chunk()
                    yield secure_aggregation_pb2.UploadMaskedUpdateRequest(chunk=file.read(size))
            yield secure_aggregation_pb2.UploadMaskedUpdateRequest(receipt=receipt)

        with raised_as_errors():
            response = self._uploads.UploadMaskedUpdate(messages(), timeout=STREAM_SECONDS)
        if response.total_bytes != total:
            raise UploadIncomplete(f"the coordinator has {response.total_bytes} of {total} bytes")

    def evidence(self, run: str, round_: int, *, for_reveal: bool, wait_seconds: int) -> Evidence:
        """Who survived. With `for_reveal`, waits for evidence that suffices to reveal."""
        request = secure_aggregation_pb2.GetEvidenceRequest(
            run=run, round=round_, for_reveal=for_reveal, wait_seconds=wait_seconds
        )
        with raised_as_errors():
            response = self._secagg.GetEvidence(request, timeout=wait_seconds + POLL_MARGIN_SECONDS)
        return Evidence(tuple(response.survivors), response.fast, tuple(response.receipts), tuple(response.commits))

    def commit_survivors(self, run: str, round_: int, commit: bytes) -> None:
        request = secure_aggregation_pb2.CommitSurvivorsRequest(run=run, round=round_, commit=commit)
        with raised_as_errors():
            self._secagg.CommitSurvivors(request, timeout=CALL_SECONDS)

    def reveal_shares(self, run: str, round_: int, reveal: bytes) -> None:
        request = secure_aggregation_pb2.RevealSharesRequest(run=run, round=round_, reveal=reveal)
        with raised_as_errors():
            self._secagg.RevealShares(request, timeout=CALL_SECONDS)

    # --- audits ---------------------------------------------------------------------------------------------------

    def audit_chunks(self, run: str, round_: int, chunks: Sequence[int]) -> tuple[RoundExhibits, Iterator[ShownChunk]]:
        """What a finished round's sum was made of; the chunks follow as they are asked for, in that order."""
        request = secure_aggregation_pb2.AuditChunksRequest(run=run, round=round_, chunks=chunks)
        with raised_as_errors():
            stream = self._secagg.AuditChunks(request, timeout=STREAM_SECONDS)
            shown: list[secure_aggregation_pb2.AuditChunksResponse] = []
            first: secure_aggregation_pb2.AuditedChunk | None = None
            for message in stream:
                if message.WhichOneof("part") == "chunk":
                    first = message.chunk
                    break
                shown.append(message)

        def follow() -> Iterator[ShownChunk]:
            part = first
            with raised_as_errors():
                while part is not None:
                    yield ShownChunk(part.chunk, part.participant, part.words)
                    message = next(stream, None)
                    part = message.chunk if message is not None else None

        return _exhibits(shown), follow()


def _server_time(call: grpc.Call) -> datetime | None:
    told = dict(call.trailing_metadata() or ()).get(TIME_METADATA)
    return parse_time(told) if isinstance(told, str) else None


def _no_more_than(most: int, parts: Iterable[bytes], what: str) -> Iterator[bytes]:
    """The parts as they come, of which even an empty one counts. Raises ProtocolViolation once they are over `most`."""
    received = 0
    for part in parts:
        received += _PART_BYTES + len(part)
        if received > most:
            raise ProtocolViolation(
                f"the coordinator sends more than {most >> 20} MiB of {what}; the rest was not read"
            )
        yield part


def _exhibits(shown: Sequence[secure_aggregation_pb2.AuditChunksResponse]) -> RoundExhibits:
    parts: dict[str, list[secure_aggregation_pb2.AuditChunksResponse]] = {}
    for message in shown:
        parts.setdefault(message.WhichOneof("part") or "", []).append(message)
    rounds = [message.round for message in parts.get("round", ())]
    uploads = [message.upload for message in parts.get("upload", ())]
    return RoundExhibits(
        adapter="".join(part.adapter_digest for part in rounds),
        metrics={metric.name: metric.value for part in rounds for metric in part.metrics},
        commits=tuple(commit for part in rounds for commit in part.commits),
        receipts={part.participant: part.receipt for part in uploads},
        chunk_digests={part.participant: part.chunk_digests for part in uploads},
        self_keys={part.participant: part.self_key for part in uploads},
        pair_keys={
            (message.pair.dropped, message.pair.survivor): message.pair.pair_key for message in parts.get("pair", ())
        },
        confirmations={
            message.confirmation.participant: message.confirmation.confirmation
            for message in parts.get("confirmation", ())
        },
    )
