"""The coordinator's Prometheus metrics, declared once. Labels come from closed sets, or are names of members."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from common.errors import (
    BaseModelUnavailable,
    CertificateRevoked,
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
from common.states import RoundKind, RoundState, RunState
from coordinator.rounds.model import Round

_RPC_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 300)
_STEP_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_PHASE_SECONDS: Final = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 10_800, 36_000)


# The driver's reasons, and those that a site gives when it is out by itself; whatever else a site says counts as OTHER.
DROP_REASONS: Final = frozenset(
    {"WINDOW_PASSED", "NO_MASKING_KEYS", "ABSENT", "LEFT_RUN"}
    | {
        kind.reason
        for kind in (
            BaseModelUnavailable,
            CertificateRevoked,
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
OTHER: Final = "OTHER"


class Metrics:
    """Every metric of one coordinator process, on a registry of its own so that two can live in one test."""

    content_type: Final = CONTENT_TYPE_LATEST

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        own = self.registry
        self.open_runs = Gauge("accord_open_runs", "Open runs by state.", ("state",), registry=own)
        self.rounds_ended = Counter(
            "accord_rounds_ended", "Rounds that have ended, by how.", ("kind", "state"), registry=own
        )
        self.open_rounds = Gauge("accord_open_rounds", "Open rounds by phase.", ("phase",), registry=own)
        self.phase_seconds = Histogram(
            "accord_phase_seconds", "How long phases of rounds took.", ("phase",), buckets=_PHASE_SECONDS, registry=own
        )
        self.participations_dropped = Counter(
            "accord_participations_dropped",
            "Participants that left a round early.",
            ("participant", "reason"),
            registry=own,
        )
        self.upload_bytes = Counter("accord_upload_bytes", "Bytes of masked updates made durable.", registry=own)
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
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        """Series with known labels exist from the start: an alert on a series that is not there never fires."""
        self.set_open_runs({})
        self.set_open_rounds({})
        for kind in RoundKind:
            for state in RoundState:
                if state.is_over:
                    self.rounds_ended.labels(kind.value, state.value)

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
