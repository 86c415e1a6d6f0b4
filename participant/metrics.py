"""The participant's metrics: declared once, with labels from closed sets. Knows nothing of who counts what when."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from common.errors import (
    AccordError,
    AggregationFailed,
    BaseModelMismatch,
    BaseModelUnavailable,
    CertificateRevoked,
    CharterInvalid,
    ClockWrong,
    ConnectionFiltered,
    ConnectionRefused,
    DataInvalid,
    HandshakeStalled,
    HostNotFound,
    NormExceeded,
    PlanInvalid,
    PolicyRefusal,
    ProtocolViolation,
    ProxyFailed,
    StorageFailed,
    TlsIntercepted,
    TrainingFailed,
    Unavailable,
    UpdateNotFinite,
    WrongHost,
)

OTHER_REASON: Final = "OTHER"

# Label values: a coordinator of a newer version must not be able to grow a time series for each text that it sends.
REASONS: Final = frozenset(
    {
        kind.reason
        for kind in (
            AggregationFailed,
            BaseModelMismatch,
            BaseModelUnavailable,
            CertificateRevoked,
            CharterInvalid,
            ClockWrong,
            ConnectionFiltered,
            ConnectionRefused,
            DataInvalid,
            HandshakeStalled,
            HostNotFound,
            NormExceeded,
            PlanInvalid,
            PolicyRefusal,
            ProtocolViolation,
            ProxyFailed,
            StorageFailed,
            TlsIntercepted,
            TrainingFailed,
            Unavailable,
            UpdateNotFinite,
            WrongHost,
        )
    }
)

_PHASE_SECONDS_BUCKETS: Final = (0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0)


class WorkPhase(StrEnum):
    """Which part of a round the time went into."""

    KEY_SETUP = "key_setup"
    FETCH_ADAPTER = "fetch_adapter"
    PREPARE = "prepare"  # evaluation and training
    UPLOAD = "upload"  # masking and sending
    CLOSE = "close"


class RoundResult(StrEnum):
    """How a round ended, as this site saw it."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LEFT_OUT = "left_out"


def reason_label(error: AccordError) -> str:
    """The error's reason, its nearest class's that has a label, or OTHER."""
    kinds = [kind for kind in type(error).__mro__ if issubclass(kind, AccordError)]
    return next((kind.reason for kind in kinds if kind.reason in REASONS), OTHER_REASON)


@dataclass(frozen=True, slots=True)
class ParticipantMetrics:
    """One participant's metrics in one registry."""

    assignments: Counter
    rounds: Counter
    phase_seconds: Histogram
    upload_bytes: Counter
    upload_resumes: Counter
    download_bytes: Counter
    clipped_elements: Counter
    clipped_norm_ratio: Gauge
    update_scale_ratio: Gauge
    training_tokens_per_second: Gauge
    refusals: Counter
    failures: Counter
    certificate_expiry_seconds: Gauge
    last_contact_seconds: Gauge
    clock_difference_seconds: Gauge
    free_disk_bytes: Gauge

    @classmethod
    def create(cls, registry: CollectorRegistry) -> ParticipantMetrics:
        """Declare them all. Raises ValueError if the registry has them already."""
        return cls(
            assignments=Counter(
                "accord_participant_assignments", "Assignments taken up, by task.", ["task"], registry=registry
            ),
            rounds=Counter("accord_participant_rounds", "Rounds that ended, by result.", ["result"], registry=registry),
            phase_seconds=Histogram(
                "accord_participant_phase_seconds",
                "Time spent in each part of a round.",
                ["phase"],
                buckets=_PHASE_SECONDS_BUCKETS,
                registry=registry,
            ),
            upload_bytes=Counter("accord_participant_upload_bytes", "Bytes of masked updates sent.", registry=registry),
            upload_resumes=Counter(
                "accord_participant_upload_resumes",
                "Uploads that went on at their last durable chunk.",
                registry=registry,
            ),
            download_bytes=Counter(
                "accord_participant_download_bytes", "Bytes of global adapters fetched.", registry=registry
            ),
            clipped_elements=Counter(
                "accord_participant_clipped_elements",
                "Elements of updates that were outside the plan's clip.",
                registry=registry,
            ),
            clipped_norm_ratio=Gauge(
                "accord_participant_clipped_norm_ratio",
                "Part of the latest update's L2 norm that was cut off its elements.",
                registry=registry,
            ),
            update_scale_ratio=Gauge(
                "accord_participant_update_scale_ratio",
                "Factor that brought the latest update within the plan's L2 bound; 1 where it was.",
                registry=registry,
            ),
            training_tokens_per_second=Gauge(
                "accord_participant_training_tokens_per_second", "Speed of the latest training.", registry=registry
            ),
            refusals=Counter(
                "accord_participant_refusals",
                "Runs and rounds that this site refused, by reason.",
                ["reason"],
                registry=registry,
            ),
            failures=Counter(
                "accord_participant_failures",
                "Work of this site that failed, by reason.",
                ["reason"],
                registry=registry,
            ),
            certificate_expiry_seconds=Gauge(
                "accord_participant_certificate_expiry_timestamp_seconds",
                "End of this site's certificate, Unix time; alert before it comes near.",
                registry=registry,
            ),
            last_contact_seconds=Gauge(
                "accord_participant_last_contact_timestamp_seconds",
                "When the coordinator last answered, Unix time.",
                registry=registry,
            ),
            clock_difference_seconds=Gauge(
                "accord_participant_clock_difference_seconds",
                "The coordinator's time less this machine's, as far as it is certain.",
                registry=registry,
            ),
            free_disk_bytes=Gauge(
                "accord_participant_state_free_bytes", "Free space where the state directory lies.", registry=registry
            ),
        )

    def timed(self, phase: WorkPhase) -> AbstractContextManager[object]:
        """Count the block's time to a part of a round, however the block ends."""
        timer: AbstractContextManager[object] = self.phase_seconds.labels(phase=phase.value).time()
        return timer

    def refused(self, error: AccordError) -> None:
        """Count a refusal under its reason."""
        self.refusals.labels(reason=reason_label(error)).inc()

    def failed(self, error: AccordError) -> None:
        """Count a failure under its reason."""
        self.failures.labels(reason=reason_label(error)).inc()
