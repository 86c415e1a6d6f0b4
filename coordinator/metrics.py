"""The coordinator's Prometheus metrics, declared once. Labels come from closed sets, or are names of members."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from common.errors import (
    BaseModelMismatch,
    BaseModelUnavailable,
    CertificateRevoked,
    CharterInvalid,
    ClockWrong,
    DataInvalid,
    DigestMismatch,
    InvalidArgument,
    MemberAtFault,
    PlanInvalid,
    PolicyRefusal,
    ProtocolViolation,
    ShapeMismatch,
    StorageFailed,
    TrainingFailed,
    Unavailable,
    UpdateLost,
    UpdateNotFinite,
    UploadMismatch,
)
from common.states import RoundKind, RoundState, RunState
from common.version import software_version
from coordinator.open_runs import OpenRuns
from coordinator.rounds.model import Round
from coordinator.store.measured import BlobOperation, StoreOperation

_RPC_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 300)
_STEP_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_PHASE_SECONDS: Final = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 10_800, 36_000)
_ROUND_SECONDS: Final = (1, 10, 60, 300, 900, 1800, 3600, 7200, 14_400, 28_800, 86_400, 259_200)
_STORE_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


# The driver's reasons, and those that a site gives when it is out by itself; whatever else a site says counts as OTHER.
DROP_REASONS: Final = frozenset(
    {"WINDOW_PASSED", "NO_MASKING_KEYS", "ABSENT", "LEFT_RUN"}
    | {
        kind.reason
        for kind in (
            BaseModelUnavailable,
            CertificateRevoked,
            ClockWrong,
            DataInvalid,
            MemberAtFault,
            PolicyRefusal,
            ProtocolViolation,
            ShapeMismatch,
            StorageFailed,
            TrainingFailed,
            Unavailable,
            UpdateLost,
            UpdateNotFinite,
            UploadMismatch,
        )
    }
)
# What a site may say of a run that it declines or leaves; its own words beyond these count as OTHER.
DECLINE_REASONS: Final = frozenset(
    {
        kind.reason
        for kind in (
            BaseModelMismatch,
            BaseModelUnavailable,
            CharterInvalid,
            DataInvalid,
            DigestMismatch,
            InvalidArgument,
            PlanInvalid,
            PolicyRefusal,
            ProtocolViolation,
        )
    }
)
OTHER: Final = "OTHER"


class Verdict(StrEnum):
    """The gate's."""

    ACCEPTED = "accepted"
    SET_ASIDE = "set_aside"


class Direction(StrEnum):
    READ = "read"
    WRITTEN = "written"


class Metrics:
    """Every metric of one coordinator process, on a registry of its own so that two can live in one test."""

    content_type: Final = CONTENT_TYPE_LATEST

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a time for each series would double them
        self.registry = registry or CollectorRegistry()
        own = self.registry
        self.open_runs = Gauge("accord_open_runs", "Open runs by state.", ("state",), registry=own)
        self.rounds_ended = Counter(
            "accord_rounds_ended", "Rounds that have ended, by how.", ("kind", "state"), registry=own
        )
        self.open_rounds = Gauge("accord_open_rounds", "Open rounds by phase.", ("phase",), registry=own)
        self.round_seconds = Histogram(
            "accord_round_seconds",
            "How long rounds took from their opening to their end, by how they ended.",
            ("kind", "state"),
            buckets=_ROUND_SECONDS,
            registry=own,
        )
        self.open = OpenRuns(own)
        self.phase_seconds = Histogram(
            "accord_phase_seconds", "How long phases of rounds took.", ("phase",), buckets=_PHASE_SECONDS, registry=own
        )
        self.participations_dropped = Counter(
            "accord_participations_dropped",
            "Participants that left a round early.",
            ("participant", "reason"),
            registry=own,
        )
        self.contributions_accepted = Counter(
            "accord_contributions_accepted",
            "Masked updates that are in a sum that was opened.",
            ("participant",),
            registry=own,
        )
        self.candidates_judged = Counter(
            "accord_candidates_judged", "Adapters that the gate has judged, by its verdict.", ("verdict",), registry=own
        )
        self.runs_declined = Counter(
            "accord_runs_declined",
            "Runs that a participant has declined or left, by its reason.",
            ("participant", "reason"),
            registry=own,
        )
        self.upload_bytes = Counter("accord_upload_bytes", "Bytes of masked updates made durable.", registry=own)
        self.upload_resumes = Counter(
            "accord_upload_resumes", "Uploads that went on at their last durable chunk.", registry=own
        )
        self.download_bytes = Counter("accord_download_bytes", "Bytes of global adapters sent.", registry=own)
        self.rpcs = Counter("accord_rpcs", "Calls served, by method and status code.", ("method", "code"), registry=own)
        self.rpc_seconds = Histogram(
            "accord_rpc_seconds", "How long calls took.", ("method",), buckets=_RPC_SECONDS, registry=own
        )
        self.refusals = Counter(
            "accord_refusals", "Refused calls and connections, by who called and why.", ("role", "reason"), registry=own
        )
        self.connections = Gauge("accord_connections", "Open connections by listener.", ("listener",), registry=own)
        self.driver_step_seconds = Histogram(
            "accord_driver_step_seconds",
            "How long the driver's steps took.",
            ("step",),
            buckets=_STEP_SECONDS,
            registry=own,
        )
        self.driver_failures = Counter("accord_driver_failures", "Steps of the driver that raised.", registry=own)
        self.leases_held = Gauge("accord_leases_held", "Runs that this process drives.", registry=own)
        self.leases_lost = Counter(
            "accord_leases_lost", "Runs that another process took over from this one.", registry=own
        )
        self.oldest_lease_seconds = Gauge(
            "accord_oldest_lease_seconds", "How long this process has driven one run without a break.", registry=own
        )
        self.store_seconds = Histogram(
            "accord_store_seconds",
            "How long transactions took, the wait for their turn included.",
            ("operation",),
            buckets=_STORE_SECONDS,
            registry=own,
        )
        self.store_failures = Counter(
            "accord_store_failures", "Transactions that the database failed.", ("operation",), registry=own
        )
        self.blob_seconds = Histogram(
            "accord_blob_seconds",
            "How long the blob store took.",
            ("operation",),
            buckets=_STORE_SECONDS,
            registry=own,
        )
        self.blob_failures = Counter(
            "accord_blob_failures", "Operations that the blob store failed.", ("operation",), registry=own
        )
        self.blob_bytes = Counter(
            "accord_blob_bytes", "Bytes read from and written to the blob store.", ("direction",), registry=own
        )
        self.audit_failures = Counter(
            "accord_audit_failures",
            "Transactions with a line for the audit log that did not become durable.",
            registry=own,
        )
        self.audit_entries = Gauge(
            "accord_audit_entries", "Lines of the audit log; it never gets shorter.", registry=own
        )
        self.data_free_bytes = Gauge("accord_data_free_bytes", "Free space where the data folder lies.", registry=own)
        self.data_size_bytes = Gauge(
            "accord_data_size_bytes", "Size of the file system that the data folder lies on.", registry=own
        )
        self.participants = Gauge("accord_participants", "Enrolled participants by state.", ("state",), registry=own)
        self.participant_last_seen = Gauge(
            "accord_participant_last_seen_timestamp_seconds",
            "When a participant was last heard.",
            ("participant",),
            registry=own,
        )
        self.certificate_days_left = Gauge(
            "accord_certificate_days_left",
            "Days until a certificate of the coordinator ends.",
            ("certificate",),
            registry=own,
        )
        self.participant_certificate_days_left = Gauge(
            "accord_participant_certificate_days_left",
            "Days until a participant's ends.",
            ("participant",),
            registry=own,
        )
        self.ready = Gauge("accord_ready", "1 while the coordinator is ready to serve.", registry=own)
        self.build = Gauge(
            "accord_build_info", "Always 1; the label is the software's version.", ("version",), registry=own
        )
        self.build.labels(software_version()).set(1)
        ProcessCollector(registry=own)
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        """Series with known labels exist from the start: an alert on a series that is not there never fires."""
        self.set_open_runs({})
        self.set_open_rounds({})
        for kind in RoundKind:
            for state in RoundState:
                if state.is_over:
                    self.rounds_ended.labels(kind.value, state.value)
                    self.round_seconds.labels(kind.value, state.value)
        for verdict in Verdict:
            self.candidates_judged.labels(verdict.value)
        for store_operation in StoreOperation:
            self.store_failures.labels(store_operation.value)
        for blob_operation in BlobOperation:
            self.blob_failures.labels(blob_operation.value)
        for direction in Direction:
            self.blob_bytes.labels(direction.value)

    def observe_rpc(self, method: str, code: str, seconds: float) -> None:
        """Count one served call. method: "/accord.v1.RoundService/GetAssignment"; code: "OK", "NOT_FOUND", ..."""
        self.rpcs.labels(method, code).inc()
        self.rpc_seconds.labels(method).observe(seconds)

    def refused(self, role: str, reason: str) -> None:
        """Count a refused call or connection. role: of the caller, "anonymous" for who has shown no certificate."""
        self.refusals.labels(role, reason).inc()

    def phase_ended(self, phase: str, seconds: float) -> None:
        """Count how long a phase of a round took."""
        self.phase_seconds.labels(phase).observe(seconds)

    def round_ended(self, round_: Round) -> None:
        """Count a round that has ended."""
        self.rounds_ended.labels(round_.kind.value, round_.state.value).inc()
        if round_.ended_at is not None:
            seconds = (round_.ended_at - round_.created_at).total_seconds()
            self.round_seconds.labels(round_.kind.value, round_.state.value).observe(seconds)
        if round_.state is RoundState.SUCCEEDED:
            for name in round_.survivors:
                self.contributions_accepted.labels(name).inc()

    def candidate_judged(self, *, is_accepted: bool) -> None:
        """Count a verdict of the gate."""
        self.candidates_judged.labels((Verdict.ACCEPTED if is_accepted else Verdict.SET_ASIDE).value).inc()

    def run_declined(self, participant: str, reason: str) -> None:
        """Count a run that a participant has declined or left."""
        self.runs_declined.labels(participant, reason if reason in DECLINE_REASONS else OTHER).inc()

    def forget_participant(self, participant: str) -> None:
        """Show no levels of a participant that is out of the federation: an old one would look like trouble."""
        for gauge in (self.participant_last_seen, self.participant_certificate_days_left):
            gauge.remove(participant)

    def lease_lost(self) -> None:
        """Count a run that another process has taken over."""
        self.leases_lost.inc()

    def set_leases(self, held_since: Iterable[datetime], *, now: datetime) -> None:
        """Set which leases this process holds, by the time since when."""
        ages = [(now - since).total_seconds() for since in held_since]
        self.leases_held.set(len(ages))
        self.oldest_lease_seconds.set(max(ages, default=0.0))

    def store_used(self, operation: StoreOperation, seconds: float, *, has_failed: bool) -> None:
        """Count one transaction."""
        self.store_seconds.labels(operation.value).observe(seconds)
        if has_failed:
            self.store_failures.labels(operation.value).inc()

    def blobs_used(
        self, operation: BlobOperation, seconds: float, *, has_failed: bool, read: int = 0, written: int = 0
    ) -> None:
        """Count one operation of the blob store. read, written: bytes."""
        self.blob_seconds.labels(operation.value).observe(seconds)
        if has_failed:
            self.blob_failures.labels(operation.value).inc()
        self.blob_bytes.labels(Direction.READ.value).inc(read)
        self.blob_bytes.labels(Direction.WRITTEN.value).inc(written)

    def participant_dropped(self, participant: str, reason: str) -> None:
        """Count a participant that left a round early. A reason outside the closed set counts as OTHER."""
        self.participations_dropped.labels(participant, reason if reason in DROP_REASONS else OTHER).inc()

    def step_taken(self, step: str, seconds: float) -> None:
        """Count how long a step of the driver took; step: "run", "epoch" or "round"."""
        self.driver_step_seconds.labels(step).observe(seconds)

    def step_failed(self) -> None:
        """Count a step of the driver that raised."""
        self.driver_failures.inc()

    def set_open_runs(self, counts: Mapping[RunState, int]) -> None:
        """Set how many runs there are of each open state; states left out have none."""
        for state in RunState:
            if not state.is_over:
                self.open_runs.labels(state.value).set(counts.get(state, 0))

    def set_open_rounds(self, counts: Mapping[RoundState, int]) -> None:
        """Set how many rounds are in each phase; phases left out have none."""
        for state in RoundState:
            if not state.is_over:
                self.open_rounds.labels(state.value).set(counts.get(state, 0))

    def set_days_left(self, certificate: str, expires_at: datetime, *, now: datetime) -> None:
        """Set how many days a certificate of the coordinator has left; negative once it has ended."""
        self.certificate_days_left.labels(certificate).set((expires_at - now).total_seconds() / 86_400)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
