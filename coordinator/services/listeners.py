"""The coordinator's gRPC listeners: who is served where, with which credentials. Knows nothing of what servicers do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import grpc
from grpc_reflection.v1alpha import reflection

from accord.v1 import (
    adapter_pb2_grpc,
    admin_pb2,
    admin_pb2_grpc,
    enrollment_pb2_grpc,
    round_pb2_grpc,
    secure_aggregation_pb2_grpc,
)
from common.errors import ConfigInvalid
from common.rpc.channels import server_options
from coordinator.services.adapter import AdapterServicer
from coordinator.services.admin import AdminServicer
from coordinator.services.enrollment import EnrollmentServicer
from coordinator.services.health import Health
from coordinator.services.round import RoundServicer
from coordinator.services.secure_aggregation import SecureAggregationServicer

ADMIN_SERVICE: Final[str] = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
PARTICIPANT_SERVICES: Final = (
    "accord.v1.RoundService",
    "accord.v1.AdapterService",
    "accord.v1.SecureAggregationService",
)


@dataclass(frozen=True, slots=True)
class ListenerLimits:
    """Bounds of every listener: bytes of one message, streams of one connection, and connections of all callers."""

    message_bytes: int
    streams_per_connection: int
    connections: int


@dataclass(frozen=True, slots=True)
class Listener:
    """A server with the port that it really has."""

    name: str
    server: grpc.aio.Server
    port: int


def open_listener(
    name: str,
    address: str,
    *,
    credentials: grpc.ServerCredentials | None,
    interceptors: Sequence[grpc.aio.ServerInterceptor],
    limits: ListenerLimits,
) -> Listener:
    """Take the port, so that its number is known; nobody is served before servicers are added and it is started.

    credentials: None for plaintext. Raises ConfigInvalid if the address cannot be had.
    """
    options = dict(server_options()) | {
        "grpc.max_receive_message_length": limits.message_bytes,
        "grpc.max_concurrent_streams": limits.streams_per_connection,
        "grpc.max_allowed_incoming_connections": limits.connections,
    }
    server = grpc.aio.server(interceptors=list(interceptors), options=list(options.items()))
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigInvalid(
            f"{name}: cannot listen on {address}; is another process on that port, or is it not this host's address?"
        ) from error
    return Listener(name, server, port)


async def stop_listeners(opened: Iterable[Listener], *, grace: float) -> None:
    """Take no new calls, and end those that are open after `grace` seconds."""
    await asyncio.gather(*(listener.server.stop(grace) for listener in opened))


def serve_participants(
    server: grpc.aio.Server,
    *,
    rounds: RoundServicer,
    adapters: AdapterServicer,
    secure_aggregation: SecureAggregationServicer,
    enrollment: EnrollmentServicer | None,
) -> None:
    """What participants call with their certificates; enrolment is here for renewals."""
    round_pb2_grpc.add_RoundServiceServicer_to_server(rounds, server)
    adapter_pb2_grpc.add_AdapterServiceServicer_to_server(adapters, server)
    secure_aggregation_pb2_grpc.add_SecureAggregationServiceServicer_to_server(secure_aggregation, server)
    if enrollment is not None:
        enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(enrollment, server)


def serve_enrollment(server: grpc.aio.Server, enrollment: EnrollmentServicer) -> None:
    """What those call who have no certificate yet."""
    enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(enrollment, server)


def serve_admin(server: grpc.aio.Server, admin: AdminServicer, *, with_reflection: bool) -> None:
    """What operators call."""
    admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
    if with_reflection:
        # The library's function is annotated for sync servers, and looks for itself which one it gets.
        reflection.enable_server_reflection((ADMIN_SERVICE, reflection.SERVICE_NAME), cast(Any, server))


def serve_health(server: grpc.aio.Server, health: Health) -> None:
    """What probes call."""
    health.add_to(server)
