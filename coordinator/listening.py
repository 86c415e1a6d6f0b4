"""The coordinator's gRPC ports and who gets through them: certificates, roles, rates, connections, refusals.

Knows nothing of what is served there: the composition root adds that to what is opened here.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Mapping

import grpc

from common import tracing
from common.clock import Clock
from common.rpc.interceptors import CallGuard, NobodyRevoked, Revocations
from common.rpc.tls import ServerTls, mutual_tls, server_tls
from coordinator.authorization import RULES
from coordinator.call_lines import CallLines
from coordinator.config import Config
from coordinator.connections import Bounds, Connections
from coordinator.identity import ServingIdentity
from coordinator.metrics import Metrics
from coordinator.rates import RECORDED, RateLimit
from coordinator.services import listeners
from coordinator.services.listeners import Listener, ListenerLimits
from coordinator.store.interface import Store


class Listening:
    """Opens the listeners of one coordinator and watches over them."""

    def __init__(
        self,
        config: Config,
        *,
        identity: ServingIdentity,
        revocations: Revocations,
        store: Store,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._identity = identity
        self._revocations = revocations
        self._clock = clock
        self._metrics = metrics
        self._guards: list[CallGuard] = []
        self._name_of: dict[int, str] = {}
        self.calls = CallLines(store, clock, on_refused=metrics.refused)
        self._connections = Connections(
            bounds=Bounds(
                per_address=config.limits.connections_per_address, per_caller=config.limits.connections_per_caller
            ),
            on_closed=lambda address, actor, why: self.calls.disconnected(address, actor, why.value),
            on_counted=self._count_connections,
        )

    def open(self) -> dict[str, Listener]:
        """Take every port at once, so that the addresses in join tokens are the real ones. Raises ConfigInvalid."""
        config, identity = self._config, self._identity
        opened = {
            "participants": self._open(
                "participants", config.participants.listen, mutual_tls(identity.participants_tls), self._revocations
            ),
            "admin": self._open("admin", config.admin.listen, mutual_tls(identity.admin_tls), self._revocations),
        }
        if identity.own is not None:
            tls = ServerTls(identity.participants_tls.certificate, identity.participants_tls.key)
            opened["enrollment"] = self._open("enrollment", config.enrollment.listen, server_tls(tls), NobodyRevoked())
        # Probes come without a certificate and from inside: their listener is not watched.
        self._name_of = {listener.port: name for name, listener in opened.items()}
        self._connections.watch(self._name_of)
        if config.health.grpc:
            opened["health_grpc"] = self._open("health.grpc", config.health.grpc, None, NobodyRevoked())
        return opened

    def background(self) -> tuple[tuple[str, Coroutine[object, object, None]], ...]:
        """What runs beside the listeners."""
        return (("calls", self.calls.run()), ("connections", self._connections.run()))

    async def end_revoked_calls(self) -> None:
        """Somebody was revoked: what it has open ends."""
        for guard in self._guards:
            await guard.recheck()

    async def stop(self, opened: Iterable[Listener], *, grace: float) -> None:
        """Let open calls end within `grace` seconds, and write down what was called."""
        await listeners.stop_listeners(opened, grace=grace)
        await self.calls.close()

    def _open(
        self, name: str, address: str, credentials: grpc.ServerCredentials | None, revocations: Revocations
    ) -> Listener:
        limits, metrics = self._config.limits, self._metrics
        guard = CallGuard(
            federation=self._identity.federation,
            rules=RULES,
            revocations=revocations,
            clock=self._clock,
            on_call=lambda method, code, seconds: metrics.observe_rpc(method, code.name, seconds),
            on_refused=self.calls.refused,
            on_answered=self.calls.answered,
            on_known=self._connections.prove,
            most_open_calls=limits.open_calls,
        )
        self._guards.append(guard)
        rate = RateLimit(calls_per_second=limits.calls_per_second, burst=limits.calls_burst)
        recorded = RateLimit(
            calls_per_second=limits.recorded_calls_per_minute / 60, burst=limits.recorded_burst, methods=RECORDED
        )
        return listeners.open_listener(
            name,
            address,
            credentials=credentials,
            interceptors=(guard, rate, recorded, *tracing.server_interceptors()),
            limits=ListenerLimits(limits.message_bytes, limits.streams_per_connection, limits.connections),
        )

    def _count_connections(self, counts: Mapping[int, int]) -> None:
        for port, count in counts.items():
            self._metrics.connections.labels(self._name_of[port]).set(count)
