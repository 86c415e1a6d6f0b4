"""The participant's metrics: declared once, with labels from closed sets. Knows nothing of who counts what when."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

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
from common.version import software_version

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
    training_steps: Counter
    training_loss_nats: Gauge
    heldout_loss_nats: Gauge
    privacy_epsilon_spent: Gauge
    privacy_epsilon_budget: Gauge
    refusals: Counter
    failures: Counter
    certificate_expiry_seconds: Gauge
    last_contact_seconds: Gauge
    clock_difference_seconds: Gauge
    free_disk_bytes: Gauge
    disk_size_bytes: Gauge
    build: Gauge

    @classmethod
    def create(cls, registry: CollectorRegistry) -> ParticipantMetrics:
        """Declare them all, with their known series at zero: an alert on a series that is not there never fires.

        Raises ValueError if the registry has them already.
        """
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a time for each series would double them
        made = cls._declare(registry)
        ProcessCollector(registry=registry)
        made.build.labels(version=software_version()).set(1)
        for result in RoundResult:
            made.rounds.labels(result=result.value)
        for reason in (*sorted(REASONS), OTHER_REASON):
            made.refusals.labels(reason=reason)
            made.failures.labels(reason=reason)
        return made

    @classmethod
    def _declare(cls, registry: CollectorRegistry) -> ParticipantMetrics:
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
            training_steps=Counter(
                "accord_participant_training_steps", "Optimiser steps that were taken.", registry=registry
            ),
            training_loss_nats=Gauge(
                "accord_participant_training_loss_nats",
                "This site's own training loss of the latest step, per answer token. It stays here.",
                registry=registry,
            ),
            heldout_loss_nats=Gauge(
                "accord_participant_heldout_loss_nats",
                "The newest global adapter's loss on this site's held-out records, per answer token. It stays here.",
                registry=registry,
            ),
            privacy_epsilon_spent=Gauge(
                "accord_participant_privacy_epsilon_spent",
                "Epsilon that is spent on this site's data set, of what.",
                ["of"],
                registry=registry,
            ),
            privacy_epsilon_budget=Gauge(
                "accord_participant_privacy_epsilon_budget",
                "Epsilon that the policy allows for this site's data set, of what; absent where it sets no budget.",
                ["of"],
                registry=registry,
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
                "When the coordinator last answered, Unix time; before its first answer, when this service started.",
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
            disk_size_bytes=Gauge(
                "accord_participant_state_size_bytes",
                "Size of the file system that the state directory lies on.",
                registry=registry,
            ),
            build=Gauge(
                "accord_participant_build_info",
                "Always 1; the label is the software's version.",
                ["version"],
                registry=registry,
            ),
        )

    def timed(self, phase: WorkPhase) -> AbstractContextManager[object]:
        """Count the block's time to a part of a round, however the block ends."""
        timer: AbstractContextManager[object] = self.phase_seconds.labels(phase=phase.value).time()
        return timer

    def watch_disk(self, folder: Path) -> None:
        """Show the space around a folder as it is whenever somebody looks."""

        def usage() -> tuple[int, int]:
            try:
                found = shutil.disk_usage(folder)
            except OSError:
                return 0, 0
            return found.free, found.total

        self.free_disk_bytes.set_function(lambda: usage()[0])
        self.disk_size_bytes.set_function(lambda: usage()[1])

    def show_privacy(self, *, training: tuple[float, float | None], figures: tuple[float, float | None]) -> None:
        """(epsilon spent, budget or None) of private training and of noisy figures."""
        for of, (spent, budget) in (("training", training), ("figures", figures)):
            self.privacy_epsilon_spent.labels(of=of).set(spent)
            if budget is not None:
                self.privacy_epsilon_budget.labels(of=of).set(budget)

    def refused(self, error: AccordError) -> None:
        """Count a refusal under its reason."""
        self.refusals.labels(reason=reason_label(error)).inc()

    def failed(self, error: AccordError) -> None:
        """Count a failure under its reason."""
        self.failures.labels(reason=reason_label(error)).inc()
