"""The composition root: builds the coordinator's parts from its configuration, serves, and takes them down again.

The only place that makes concrete objects and hands them on. Everything lives on one event loop; what blocks runs in
threads.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Final

from common import tracing
from common.charter import Charter
from common.clock import Clock, SystemClock
from common.errors import AccordError, ConfigInvalid, NotFound, StorageFailed, Unavailable
from common.log import get_logger
from common.memory import share_one_pool
from common.service_manager import ServiceManager
from common.version import software_version
from coordinator.addresses import Addresses, local_address, public_address
from coordinator.authorization import StoredRevocations
from coordinator.charters import require_signing_key
from coordinator.config import Config, split_address
from coordinator.driver import Driver
from coordinator.identity import ServingIdentity, load_identity
from coordinator.invitations import Inviter
from coordinator.keystore import PkiFolder
from coordinator.listening import Listening
from coordinator.manifests import public_key_hex
from coordinator.metrics import Metrics
from coordinator.monitoring import Monitoring, serving_metrics
from coordinator.relay import Relay
from coordinator.replica import Replica
from coordinator.runs import RunFactory
from coordinator.services import listeners
from coordinator.services.adapter import AdapterServicer
from coordinator.services.admin import AdminServicer
from coordinator.services.admin_parts import FederationFacts, Notices
from coordinator.services.enrollment import EnrollmentServicer
from coordinator.services.health import Health, HealthHttp
from coordinator.services.listeners import Listener
from coordinator.services.round import RoundServicer
from coordinator.services.secure_aggregation import SecureAggregationServicer
from coordinator.store.blobs import BlobStore
from coordinator.store.interface import Store
from coordinator.store.measured import MeasuredBlobs, MeasuredStore
from coordinator.store.opening import open_blobs, open_signals, open_store
from coordinator.store.schema import check_schema, migrate
from coordinator.store.told import ToldStore
from coordinator.wakeups import Wakeups
from coordinator.watch import Watch
from coordinator.web_page import OpenWeb, open_web

REFRESH_EVERY_SECONDS: Final = 60.0
# Blocking steps may take minutes (a large adapter); a driver that has not come round for longer hangs.
DRIVER_STALE: Final = timedelta(minutes=15)
LEAST_CERTIFICATE_LEFT: Final = timedelta(0)

log: Final = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Foundation:
    """What everything else stands on."""

    config: Config
    clock: Clock
    identity: ServingIdentity
    store: Store
    blobs: BlobStore
    wakeups: Wakeups
    metrics: Metrics
    replica: Replica


def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigInvalid, NotFound or StorageFailed if it cannot start."""
    share_one_pool()
    asyncio.run(_run_until_signalled(config))


async def _run_until_signalled(config: Config) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    manager = ServiceManager.from_environment(os.environ)
    await serve(config, clock=SystemClock(), stop=stop, manager=manager)


async def serve(
    config: Config,
    *,
    clock: Clock,
    stop: asyncio.Event,
    started: Callable[[Addresses], None] = lambda _: None,
    manager: ServiceManager | None = None,
) -> None:
    """Serve until `stop` is set; `started` hears the real addresses once calls are answered.

    Raises ConfigInvalid, NotFound or StorageFailed if it cannot start.
    """
    foundation = await asyncio.to_thread(_lay_foundation, config, clock)
    foundation = replace(
        foundation,
        store=ToldStore(
            MeasuredStore(foundation.store, foundation.metrics), on_lost=foundation.metrics.audit_failures.inc
        ),
        blobs=MeasuredBlobs(foundation.blobs, foundation.metrics),
    )
    end_traces = tracing.configure(
        endpoint=config.tracing.endpoint,
        ca=config.tracing.ca,
        service="accord-coordinator",
        instance=foundation.replica.name,
        federation=config.federation,
    )
    try:
        coordinator = _Coordinator(foundation, manager or ServiceManager())
        await coordinator.serve(stop, started)
    finally:
        await asyncio.to_thread(end_traces)
        await asyncio.to_thread(foundation.store.close)


def _lay_foundation(config: Config, clock: Clock) -> Foundation:
    try:
        config.data_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        config.scratch_folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageFailed(f"cannot write to {config.data_folder}: {error.strerror}") from error
    identity = load_identity(config, clock)
    if config.database.migrate_on_start:
        migrate(config.database_url)
    else:
        check_schema(config.database_url)
    store = open_store(config.database_url, clock=clock)
    try:
        _check_signing_key(store, identity)
    except BaseException:
        store.close()
        raise
    metrics = Metrics()
    return Foundation(
        config=config,
        clock=clock,
        identity=identity,
        store=store,
        blobs=open_blobs(config.blobs_url, config.s3, owner=config.federation),
        wakeups=Wakeups(),
        metrics=metrics,
        replica=Replica.claim(config.data_folder),
    )


def _check_signing_key(store: Store, identity: ServingIdentity) -> None:
    """Raises ConfigInvalid if members would refuse what this coordinator signs."""
    try:
        with store.read() as reader:
            charter = Charter.from_bytes(reader.charter())
    except NotFound:
        return  # none is published yet
    require_signing_key(charter, public_key_hex(identity.signing_key))


class _Coordinator:
    """One running coordinator: listeners, driver and what watches over them."""

    def __init__(self, foundation: Foundation, manager: ServiceManager) -> None:
        self._base = foundation
        self._manager = manager
        self._driver_task: asyncio.Task[None] | None = None
        self._admin_service: AdminServicer | None = None
        config, identity = foundation.config, foundation.identity
        self._revocations = StoredRevocations(
            foundation.store, foundation.clock, revoked_serials=PkiFolder(config.pki_folder).revoked_serials
        )
        self._listening = Listening(
            config,
            identity=identity,
            revocations=self._revocations,
            store=foundation.store,
            clock=foundation.clock,
            metrics=foundation.metrics,
        )
        self._driver = Driver(
            store=foundation.store,
            blobs=foundation.blobs,
            wakeups=foundation.wakeups,
            clock=foundation.clock,
            signing_key=identity.signing_key,
            scratch=config.scratch_folder,
            observer=foundation.metrics,
            holder=foundation.replica.name,
            kept_rounds=config.blobs.kept_rounds,
        )
        self._health = Health(
            checks={
                "database": self._check_database,
                "driver": self._check_driver,
                "certificate": self._check_certificate,
            },
            services=(*listeners.PARTICIPANT_SERVICES, listeners.ADMIN_SERVICE),
            clock=foundation.clock,
            metrics=foundation.metrics,
        )
        self._monitoring = Monitoring(
            foundation.metrics,
            config=config,
            store=foundation.store,
            clock=foundation.clock,
            identity=identity,
            leases=self._driver.driven_since,
        )
        self._watch = Watch(
            manager,
            store=foundation.store,
            check_driver=self._check_driver,
            readiness=lambda: self._health.readiness,
        )

    async def serve(self, stop: asyncio.Event, started: Callable[[Addresses], None]) -> None:
        config = self._base.config
        http: asyncio.Server | None = None
        web: OpenWeb | None = None
        shown = ExitStack()
        opened = self._listening.open()
        try:
            self._add_servicers(opened)
            async with asyncio.TaskGroup() as tasks:
                background = [tasks.create_task(work, name=name) for name, work in self._background()]
                self._driver_task = background[0]
                for listener in opened.values():
                    await listener.server.start()
                http = await self._start_http()
                web = await self._start_web()
                metrics_port = shown.enter_context(serving_metrics(self._base.metrics, config.metrics))
                addresses = self._addresses(opened, http, web, metrics_port)
                addresses.write(config.listeners_file)
                await self._health.check()
                log.info("coordinator_started", **asdict(addresses), version=software_version())
                self._manager.ready("serving")
                started(addresses)
                await stop.wait()
                self._manager.stopping()
                log.info("coordinator_stopping", grace_seconds=config.limits.stop_grace_seconds)
                await self._health.stop()
                self._base.wakeups.end()
                await self._listening.stop(opened.values(), grace=config.limits.stop_grace_seconds)
                for task in background:
                    task.cancel()
        finally:
            await listeners.stop_listeners(opened.values(), grace=0)
            shown.close()
            if http is not None:
                http.close()
            if web is not None:
                await web.listener.stop()
            config.listeners_file.unlink(missing_ok=True)
            log.info("coordinator_stopped")

    def _background(self) -> tuple[tuple[str, Coroutine[object, object, None]], ...]:
        """What runs beside the listeners; the first one is the driver."""
        base = self._base
        signals = open_signals(base.config.database_url, name=base.replica.name)
        return (
            ("driver", self._driver.run()),
            *((("signals", Relay(base.wakeups, signals).run()),) if signals is not None else ()),
            ("health", self._health.run()),
            ("monitoring", self._monitoring.run()),
            ("certificates", self._refresh()),
            *self._listening.background(),
            ("watch", self._watch.run()),
        )

    # --- what is served --------------------------------------------------------------------------------------------

    def _add_servicers(self, opened: dict[str, Listener]) -> None:
        base, config = self._base, self._base.config
        enrollment, own = self._enrollment(), base.identity.own
        listeners.serve_participants(
            opened["participants"].server,
            rounds=RoundServicer(
                store=base.store,
                wakeups=base.wakeups,
                clock=base.clock,
                on_dropped=base.metrics.participant_dropped,
                on_declined=base.metrics.run_declined,
                trust_bundle_sha256=own.bundle_sha256 if own is not None else lambda: "",
            ),
            adapters=AdapterServicer(store=base.store, blobs=base.blobs, on_sent=base.metrics.download_bytes.inc),
            secure_aggregation=SecureAggregationServicer(
                store=base.store,
                blobs=base.blobs,
                wakeups=base.wakeups,
                clock=base.clock,
                on_durable_bytes=base.metrics.upload_bytes.inc,
                on_resumed=base.metrics.upload_resumes.inc,
            ),
            enrollment=enrollment,
        )
        if enrollment is not None:
            listeners.serve_enrollment(opened["enrollment"].server, enrollment)
        admin = self._admin_service = self._admin(self._inviter(opened))
        listeners.serve_admin(opened["admin"].server, admin, with_reflection=config.admin.reflection)
        if "health_grpc" in opened:
            listeners.serve_health(opened["health_grpc"].server, self._health)

    def _enrollment(self) -> EnrollmentServicer | None:
        own = self._base.identity.own
        if own is None:
            return None
        return EnrollmentServicer(
            store=self._base.store,
            authority=own.authority,
            trust_bundle=own.bundle,
            clock=self._base.clock,
            life=timedelta(days=self._base.config.certificates.participant_days),
        )

    def _inviter(self, opened: dict[str, Listener]) -> Inviter | None:
        own, config = self._base.identity.own, self._base.config
        if own is None:
            return None
        host = config.certificates.host_names[0] if config.certificates.host_names else config.host_names[0]
        return Inviter(
            federation=self._base.identity.federation,
            enrollment_address=public_address(
                config.enrollment.public_address,
                listen=config.enrollment.listen,
                port=opened["enrollment"].port,
                host_name=host,
            ),
            coordinator_address=public_address(
                config.participants.public_address,
                listen=config.participants.listen,
                port=opened["participants"].port,
                host_name=host,
            ),
            authority=own.bundle,
            clock=self._base.clock,
        )

    def _admin(self, inviter: Inviter | None) -> AdminServicer:
        base, identity = self._base, self._base.identity
        own = identity.own
        return AdminServicer(
            store=base.store,
            blobs=base.blobs,
            clock=base.clock,
            facts=FederationFacts(
                federation=identity.federation,
                coordinator_public_key=public_key_hex(identity.signing_key),
                trust=own.trust if own is not None else lambda: None,
            ),
            factory=RunFactory(
                federation=identity.federation,
                signing_key=identity.signing_key,
                blobs=base.blobs,
                scratch=base.config.scratch_folder,
                random=secrets.token_bytes,
                most_upload_bytes=base.config.limits.upload_bytes,
            ),
            inviter=inviter,
            notices=Notices(changed=base.wakeups.notify, revoked=self._listening.end_revoked_calls),
        )

    async def _start_http(self) -> asyncio.Server | None:
        address = self._base.config.health.http
        if not address:
            return None
        host, port = split_address(address)
        try:
            # Where metrics have a listener of their own they are for those whom it lets in.
            shown = None if self._base.config.metrics.listen else self._base.metrics
            return await HealthHttp(self._health, shown).start(host, port)
        except OSError as error:
            raise ConfigInvalid(f"health.http: cannot listen on {address}: {error.strerror}") from error

    async def _start_web(self) -> OpenWeb | None:
        base = self._base
        if not base.config.web.listen or self._admin_service is None:
            return None
        return await open_web(
            base.config.web,
            base.config.limits,
            federation=base.identity.federation,
            admin=self._admin_service,
            files=base.identity.admin_tls,
            revocations=self._revocations,
            store=base.store,
            clock=base.clock,
            wakeups=base.wakeups,
            health=lambda: self._health.readiness.reasons,
            on_answered=self._listening.calls.answered,
        )

    def _addresses(
        self, opened: dict[str, Listener], http: asyncio.Server | None, web: OpenWeb | None, metrics_port: int
    ) -> Addresses:
        config = self._base.config
        ports = {name: listener.port for name, listener in opened.items()}
        return Addresses(
            participants=local_address(config.participants.listen, ports["participants"]),
            enrollment=local_address(config.enrollment.listen, ports.get("enrollment")),
            admin=local_address(config.admin.listen, ports["admin"]),
            health_http=local_address(config.health.http, http.sockets[0].getsockname()[1] if http else None),
            health_grpc=local_address(config.health.grpc, ports.get("health_grpc")),
            pid=os.getpid(),
            web=local_address(config.web.listen, web.port if web is not None else None),
            metrics=local_address(config.metrics.listen, metrics_port),
        )

    # --- what watches ---------------------------------------------------------------------------------------------

    async def _check_database(self) -> None:
        await asyncio.to_thread(self._base.store.ping)

    async def _check_driver(self) -> None:
        if self._driver_task is None or self._driver_task.done():
            raise Unavailable("the driver does not run")
        turned_at = self._driver.turned_at
        if turned_at is None:
            raise Unavailable("the driver has not come round yet")
        idle = self._base.clock.now() - turned_at
        if idle > DRIVER_STALE:
            raise Unavailable(f"the driver has not come round for {idle}; see the log, and restart if it stays so")

    async def _check_certificate(self) -> None:
        expires_at = await asyncio.to_thread(self._base.identity.certificate_expires_at)
        if expires_at - self._base.clock.now() <= LEAST_CERTIFICATE_LEFT:
            raise Unavailable(f"the listeners' certificate ended at {expires_at.isoformat()}; put a new one in place")

    async def _refresh(self) -> None:
        """Renew the listeners' certificate before it ends."""
        own = self._base.identity.own
        while own is not None:
            await asyncio.sleep(REFRESH_EVERY_SECONDS)
            try:
                if await asyncio.to_thread(own.refresh):
                    log.info("server_certificate_renewed")
            except AccordError as error:
                log.error("server_certificate_not_renewed", reason=error.reason, message=error.message)
