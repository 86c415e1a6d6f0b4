"""The participant's composition root: builds everything from the configuration, runs the daemon, ends it cleanly."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding
from prometheus_client import CollectorRegistry

from common import log, tracing
from common.charter import Charter
from common.clock import Clock, SystemClock
from common.errors import AccordError, ConfigInvalid
from common.memory import share_one_pool
from common.secagg import identity_signer
from common.service_manager import ServiceManager
from participant.base_models import BaseModels, BaseModelSource, ConfiguredBaseModels
from participant.client import CoordinatorClient
from participant.config import CharterConfig, CharterMode, ParticipantConfig
from participant.connection import Connection
from participant.contact import Contact
from participant.control import ControlVariates
from participant.daemon import Daemon, Site
from participant.fence import Fence
from participant.health import serving_health
from participant.journal import Journal
from participant.masking import Identity, MaskingDesk
from participant.metrics import ParticipantMetrics
from participant.policy import Policy
from participant.policy_file import load_policy
from participant.preflight.content import read_pinned
from participant.privacy.desk import PrivacyDesk
from participant.privacy.files import ledger_of, private_records
from participant.shelf import AdapterShelf
from participant.trainer import Trainer, WorkerTrainer
from participant.workbench import Workbench

logger = log.get_logger(__name__)

MEBIBYTE = 1024 * 1024
LOCK_SECONDS: Final = 1.0


def run(config: ParticipantConfig, *, read_again: Callable[[], ParticipantConfig]) -> None:
    """Work until SIGTERM or SIGINT; after SIGHUP go on with what the files say then.

    read_again: the configuration as the files say now. Files with mistakes, or that name what cannot be had (a port,
    say), change nothing. Raises what makes a start impossible, and CertificateRevoked when put out.
    """
    manager = ServiceManager.from_environment(os.environ)
    signals = _Signals.caught(manager)
    os.nice(config.training.nice)
    policy = load_policy(config.policy_file)
    before, is_up = (config, policy), threading.Event()
    while True:
        try:
            _work(config, policy, stop=signals.wake, manager=manager, is_up=is_up)
        except AccordError as error:
            if is_up.is_set() or before == (config, policy):
                raise
            logger.error("configuration_not_taken_up", reason=error.reason, message=error.message)
            config, policy = before
            continue
        # In this order: an end that is signalled in between is seen.
        signals.wake.clear()
        if signals.is_end:
            return
        manager.reloading()
        try:
            fresh = read_again()
            before, (config, policy) = (config, policy), (fresh, load_policy(fresh.policy_file))
            is_up.clear()
        except AccordError as error:
            logger.error("configuration_not_read_again", reason=error.reason, message=error.message)


def _work(
    config: ParticipantConfig,
    policy: Policy,
    *,
    stop: threading.Event,
    manager: ServiceManager,
    is_up: threading.Event,
) -> None:
    """is_up: set once everything that the configuration names could be had."""
    log.configure(form=config.log.form, level=config.log.level_number)
    with _traced(config):
        _work_on(config, policy, stop=stop, manager=manager, is_up=is_up)


@contextmanager
def _traced(config: ParticipantConfig) -> Iterator[None]:
    """Send spans to the collector that is named, if one is."""
    identity = config.identity.load()
    end = tracing.configure(
        endpoint=config.tracing.endpoint,
        ca=config.tracing.ca,
        service="accord-participant",
        instance=identity.participant,
        federation=identity.federation,
    )
    try:
        yield
    finally:
        end()


def _work_on(
    config: ParticipantConfig,
    policy: Policy,
    *,
    stop: threading.Event,
    manager: ServiceManager,
    is_up: threading.Event,
) -> None:
    trainer = WorkerTrainer(config.data.settings(policy), config.evaluation.settings(), config.training.resources())
    sources = tuple(BaseModelSource(model.source, model.digest) for model in config.base_models)
    base_models = ConfiguredBaseModels(sources, cache=config.cache_directory, stop=stop, on_step=manager.alive)
    with serving(
        config, policy=policy, trainer=trainer, base_models=base_models, clock=SystemClock(), manager=manager
    ) as daemon:
        is_up.set()
        daemon.run(stop)


@contextmanager
def serving(
    config: ParticipantConfig,
    *,
    policy: Policy,
    trainer: Trainer,
    base_models: BaseModels,
    clock: Clock,
    manager: ServiceManager | None = None,
) -> Iterator[Daemon]:
    """A daemon with all its parts, closed at the end of the block. Training and models are the caller's choice."""
    manager = manager or ServiceManager()
    share_one_pool()
    state = config.state_directory
    registry = CollectorRegistry()
    metrics = ParticipantMetrics.create(registry)
    metrics.watch_disk(state)
    metrics.last_contact_seconds.set(clock.now().timestamp())  # silence is counted from here
    with ExitStack() as parts:
        parts.enter_context(_only_one(state / "lock"))
        journal = Journal(config.journal_file, fence=Fence(config.counter_file))
        parts.callback(journal.close)
        connection = Connection(
            config.identity,
            line=config.coordinator.line,
            clock=clock,
            on_expiry=lambda at: metrics.certificate_expiry_seconds.set(at.timestamp()),
            on_chunk=manager.alive,
        )
        parts.callback(connection.close)
        if config.metrics.is_served:
            parts.enter_context(
                serving_health(
                    config.metrics.host, config.metrics.port, registry=registry, clock=clock, tls=config.metrics.tls
                )
            )
        desk = MaskingDesk(
            client=connection.client,
            identity=lambda: _signing_identity(connection),
            journal=journal,
            spools=state / "spool",
            metric_groups=trainer.metric_groups,
            clock=clock,
            random_bytes=secrets.token_bytes,
        )
        shelf = AdapterShelf(state / "adapters", connection.client)
        privacy = PrivacyDesk(
            bounds=policy.privacy,
            ledger=ledger_of(config, policy),
            count_records=lambda: private_records(config.data.settings(policy)),
            clock=clock,
            random_bytes=secrets.token_bytes,
        )
        workbench = Workbench(
            participant=connection.identity.participant,
            policy=policy,
            folder=state / "work",
            least_free_bytes=config.least_free_mebibytes * MEBIBYTE,
            client=connection.client,
            journal=journal,
            shelf=shelf,
            trainer=trainer,
            base_models=base_models,
            controls=ControlVariates(state / "controls"),
            privacy=privacy,
            metrics=metrics,
            clock=clock,
            tell=manager.status,
        )
        daemon = Daemon(
            site=Site(
                participant=connection.identity.participant,
                policy=policy,
                charter=lambda client: charter_for(config.charter, client),
            ),
            client=connection.client,
            journal=journal,
            desk=desk,
            shelf=shelf,
            workbench=workbench,
            trainer=trainer,
            base_models=base_models,
            privacy=privacy,
            metrics=metrics,
            clock=clock,
            before_turn=connection.keep_valid,
            interrupt=connection.close,
            manager=manager,
            contact=Contact(
                clock,
                explain=connection.explain,
                folder=state,
                on_clock=lambda skew: metrics.clock_difference_seconds.set(skew.total_seconds()),
            ),
            poll_seconds=config.coordinator.poll_seconds,
        )
        workbench.show_privacy()
        logger.info("participant_started", participant=connection.identity.participant, pid=os.getpid())
        yield daemon
        logger.info("participant_stopped")


def charter_for(config: CharterConfig, client: CoordinatorClient) -> Charter:
    """The charter that plans are checked against: this site's pinned copy, or whatever the coordinator says.

    Raises CharterInvalid if the pinned one is missing or is not the one that was agreed on.
    """
    return Charter.from_bytes(client.charter()) if config.mode is CharterMode.COORDINATOR else read_pinned(config)


def _signing_identity(connection: Connection) -> Identity:
    identity = connection.identity
    return Identity(
        participant=identity.participant,
        certificate_chain=tuple(certificate.public_bytes(Encoding.DER) for certificate in identity.chain),
        signer=identity_signer(identity.private_key),
    )


@dataclass(slots=True)
class _Signals:
    """What this process was told: `wake` is set by every signal, `is_end` by those that mean the end."""

    manager: ServiceManager
    wake: threading.Event
    is_end: bool = False

    @classmethod
    def caught(cls, manager: ServiceManager) -> _Signals:
        signals = cls(manager, threading.Event())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signals._on_signal)
        return signals

    def _on_signal(self, number: int, frame: object) -> None:
        if number == signal.SIGHUP:
            logger.info("configuration_to_be_read_again")
        else:
            self.is_end = True
            self.manager.stopping()
            logger.info("participant_stopping", signal=signal.Signals(number).name)
        self.wake.set()


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Two daemons over one journal would mask twice. Raises ConfigInvalid while another one runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    give_up = time.monotonic() + LOCK_SECONDS
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                # `status` holds it for a moment, to see whether a daemon does.
                if time.monotonic() > give_up:
                    raise ConfigInvalid(f"another accord-participant runs on {path.parent}; stop it first") from error
                time.sleep(LOCK_SECONDS / 20)
            else:
                break
        yield
