"""The table of who may call what: complete against the protos, and every cell of it tried on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from accord.v1 import adapter_pb2, admin_pb2, enrollment_pb2, round_pb2, secure_aggregation_pb2
from common.clock import SystemClock
from common.errors import AccordError, PermissionDenied, Unauthenticated
from common.identifiers import FederationId, Role
from common.rpc.channels import RETRIED_METHODS
from common.rpc.interceptors import CallGuard, NobodyRevoked
from common.rpc.status import to_error
from common.rpc.tls import ServerTls, server_tls
from coordinator.authorization import RULES
from tests.rpc.parts import FEDERATION, Credential, Pki, dialling, serving, serving_mutual_tls

OWN = (adapter_pb2, admin_pb2, enrollment_pb2, round_pb2, secure_aggregation_pb2)
METHODS: dict[str, MethodDescriptor] = {
    f"{service.full_name}/{method.name}": method
    for module in (*OWN, health_pb2, reflection_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
OWN_METHODS = frozenset(name for name in METHODS if name.startswith("accord."))
CALLERS = (Role.PARTICIPANT, Role.VIEWER, Role.OPERATOR, Role.SECURITY_OFFICER)


def test_every_method_has_a_rule_and_every_rule_a_method():
    assert set(RULES) == set(METHODS)


def test_nobody_is_let_in_without_a_certificate_but_to_enroll_and_to_ask_for_health():
    assert {name for name, roles in RULES.items() if Role.ANONYMOUS in roles} == {
        "accord.v1.EnrollmentService/Enroll",
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
    }


def test_participants_and_operators_share_no_method():
    operators = {Role.VIEWER, Role.OPERATOR, Role.SECURITY_OFFICER}
    for name in OWN_METHODS:
        assert not (Role.PARTICIPANT in RULES[name] and RULES[name] & operators), name


def test_a_viewer_can_call_nothing_that_changes_something():
    changing = ("Create", "Revoke", "Draft", "Publish", "Start", "Pause", "Resume", "Cancel", "RollBack")
    for name in OWN_METHODS:
        if name.split("/")[1].startswith(changing):
            assert Role.VIEWER not in RULES[name], name


def test_a_channel_retries_no_stream_and_nothing_unknown():
    assert set(METHODS) >= RETRIED_METHODS
    for name in RETRIED_METHODS:
        assert not METHODS[name].client_streaming, name
        assert not METHODS[name].server_streaming, name
    assert "accord.v1.AdminService/CreateJoinToken" not in RETRIED_METHODS


# --- every cell on a real server -----------------------------------------------------------------------------------


async def answer_once(request: bytes, context: object) -> bytes:
    return b""


async def answer_stream(request: bytes, context: object) -> AsyncIterator[bytes]:
    yield b""


async def take_stream(requests: AsyncIterator[bytes], context: object) -> bytes:
    async for _ in requests:
        pass
    return b""


async def echo_stream(requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
    async for _ in requests:
        yield b""


def handler_of(method: MethodDescriptor) -> grpc.RpcMethodHandler:
    if method.client_streaming and method.server_streaming:
        return grpc.stream_stream_rpc_method_handler(echo_stream)
    if method.client_streaming:
        return grpc.stream_unary_rpc_method_handler(take_stream)
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(answer_stream)
    return grpc.unary_unary_rpc_method_handler(answer_once)


def handlers() -> list[grpc.GenericRpcHandler]:
    """A handler for every method of the protos that answers whoever gets through to it."""
    by_service: dict[str, dict[str, grpc.RpcMethodHandler]] = {}
    for name, method in METHODS.items():
        service, short = name.split("/")
        by_service.setdefault(service, {})[short] = handler_of(method)
    return [grpc.method_handlers_generic_handler(service, methods) for service, methods in by_service.items()]


async def outcome(channel, name) -> AccordError | None:
    """Call a method; None if its handler has answered."""
    method, path = METHODS[name], f"/{name}"
    try:
        if method.client_streaming and method.server_streaming:
            async for _ in channel.stream_stream(path)(iter([b""]), timeout=10):
                pass
        elif method.client_streaming:
            await channel.stream_unary(path)(iter([b""]), timeout=10)
        elif method.server_streaming:
            async for _ in channel.unary_stream(path)(b"", timeout=10):
                pass
        else:
            await channel.unary_unary(path)(b"", timeout=10)
    except grpc.RpcError as failure:
        return to_error(failure)
    return None


def guard() -> CallGuard:
    return CallGuard(federation=FEDERATION, rules=RULES, revocations=NobodyRevoked(), clock=SystemClock())


@dataclass(frozen=True)
class Listener:
    port: int
    pki: Pki
    foreign: Pki

    def caller(self, role: Role, *, pki: Pki | None = None) -> Credential:
        source = pki or self.pki
        return source.participant("bank") if role is Role.PARTICIPANT else source.operator("alice", role)


@pytest.fixture
async def listener(tmp_path):
    pki, foreign = Pki.create(tmp_path / "own"), Pki.create(tmp_path / "foreign", FederationId("south"))
    pki.folder.trusted.mkdir()
    (pki.folder.trusted / "south.pem").write_bytes(foreign.trust_bundle)
    async with serving_mutual_tls(handlers(), guard(), pki) as port:
        yield Listener(port, pki, foreign)


@pytest.mark.parametrize("role", CALLERS)
async def test_a_caller_gets_through_to_the_methods_of_its_role_and_to_no_other(listener, role):
    async with dialling(listener.port, trust_bundle=listener.pki.trust_bundle, caller=listener.caller(role)) as channel:
        outcomes = {name: await outcome(channel, name) for name in METHODS}

    assert {name for name, error in outcomes.items() if error is None} == {
        name for name, roles in RULES.items() if role in roles
    }
    assert {type(error) for error in outcomes.values() if error is not None} == {PermissionDenied}


@pytest.mark.parametrize("role", CALLERS)
async def test_a_caller_of_another_federation_gets_through_to_nothing(listener, role):
    caller = listener.caller(role, pki=listener.foreign)
    async with dialling(listener.port, trust_bundle=listener.pki.trust_bundle, caller=caller) as channel:
        outcomes = {name: await outcome(channel, name) for name in METHODS}

    assert {type(error) for error in outcomes.values()} == {Unauthenticated}


async def test_without_a_certificate_only_the_open_methods_answer(tmp_path):
    pki = Pki.create(tmp_path)
    tls = server_tls(ServerTls(pki.folder.server_certificate, pki.folder.server_key))
    async with (
        serving(handlers(), guard(), tls) as port,
        dialling(port, trust_bundle=pki.trust_bundle) as channel,
    ):
        outcomes = {name: await outcome(channel, name) for name in METHODS}

    assert {name for name, error in outcomes.items() if error is None} == {
        name for name, roles in RULES.items() if Role.ANONYMOUS in roles
    }
    assert {type(error) for error in outcomes.values() if error is not None} == {Unauthenticated}


async def test_on_the_enrolment_listener_a_certificate_that_is_shown_all_the_same_counts_for_nothing(tmp_path):
    pki = Pki.create(tmp_path)
    tls = server_tls(ServerTls(pki.folder.server_certificate, pki.folder.server_key))
    async with (
        serving(handlers(), guard(), tls) as port,
        dialling(port, trust_bundle=pki.trust_bundle, caller=pki.operator("eve", Role.OPERATOR)) as channel,
    ):
        error = await outcome(channel, "accord.v1.AdminService/CreateRun")

    assert type(error) is Unauthenticated
