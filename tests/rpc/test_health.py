"""Health, readiness and metrics, as probes and Prometheus see them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.errors import StorageFailed
from coordinator.metrics import Metrics
from coordinator.services.health import Health, HealthHttp
from tests.fakes import FakeClock

SERVICE = "accord.v1.RoundService"


class Database:
    """A check that fails when the test says so."""

    def __init__(self) -> None:
        self.problem: Exception | None = None

    async def check(self) -> None:
        if self.problem is not None:
            raise self.problem


@pytest.fixture
def database():
    return Database()


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def health(database, metrics):
    return Health(checks={"database": database.check}, services=(SERVICE,), clock=FakeClock(), metrics=metrics)


async def get(port: int, request: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode())
    await writer.drain()
    answer = (await reader.read()).decode()
    writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]) if head else 0, body


@asynccontextmanager
async def http(health: Health, metrics: Metrics) -> AsyncIterator[int]:
    server = await HealthHttp(health, metrics).start("127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_coordinator_is_not_ready_before_it_was_checked(health, metrics):
    async with http(health, metrics) as port:
        assert (await get(port, "GET /healthz HTTP/1.1\r\n\r\n"))[0] == 200
        assert (await get(port, "GET /readyz HTTP/1.1\r\n\r\n"))[0] == 503
        await health.check()
        assert (await get(port, "GET /readyz HTTP/1.1\r\n\r\n"))[0] == 200


async def test_readiness_names_what_is_wrong_and_comes_back(health, metrics, database):
    async with http(health, metrics) as port:
        database.problem = StorageFailed("the disk is full")
        await health.check()
        code, body = await get(port, "GET /readyz HTTP/1.1\r\n\r\n")
        assert code == 503
        assert json.loads(body) == {"ready": False, "reasons": {"database": "the disk is full"}}
        assert (await get(port, "GET /healthz HTTP/1.1\r\n\r\n"))[0] == 200
        database.problem = None
        await health.check()
        assert (await get(port, "GET /readyz HTTP/1.1\r\n\r\n"))[0] == 200


async def test_a_check_that_breaks_means_not_ready_and_tells_nobody_why(health, metrics, database):
    database.problem = RuntimeError("password is hunter2")
    readiness = await health.check()
    assert not readiness.is_ready
    assert "hunter2" not in str(readiness)


async def test_grpc_probes_see_every_service_change(health, database):
    server = grpc.aio.server()
    health.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for problem, status in (
                (None, health_pb2.HealthCheckResponse.SERVING),
                (StorageFailed("gone"), health_pb2.HealthCheckResponse.NOT_SERVING),
            ):
                database.problem = problem
                await health.check()
                for service in ("", SERVICE):
                    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
                    assert answer.status == status
            watched = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert (await watched.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            database.problem = None
            await health.check()
            assert (await watched.read()).status == health_pb2.HealthCheckResponse.SERVING
            watched.cancel()
    finally:
        await server.stop(None)


async def test_a_stopping_coordinator_stays_not_ready(health):
    await health.check()
    await health.stop()
    assert not (await health.check()).is_ready


async def test_metrics_are_prometheus_text_with_every_known_series(health, metrics):
    metrics.participant_dropped("bank", "WINDOW_PASSED")
    metrics.participant_dropped("bank", "something that a label must not be")
    await health.check()
    async with http(health, metrics) as port:
        code, text = await get(port, "GET /metrics?name=x HTTP/1.1\r\n\r\n")
    assert code == 200
    for line in (
        'accord_open_runs{state="running"} 0.0',
        'accord_open_rounds{phase="collecting"} 0.0',
        'accord_rounds_ended_total{kind="train",state="failed"} 0.0',
        'accord_participations_dropped_total{participant="bank",reason="WINDOW_PASSED"} 1.0',
        'accord_participations_dropped_total{participant="bank",reason="OTHER"} 1.0',
        "accord_ready 1.0",
    ):
        assert line in text.splitlines()


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ("GET / HTTP/1.1\r\n\r\n", 404),
        ("POST /readyz HTTP/1.1\r\n\r\n", 405),
        ("GET /" + "a" * 10_000 + " HTTP/1.1\r\n\r\n", 0),
        ("nonsense\r\n\r\n", 405),
    ],
)
async def test_other_requests_are_turned_away(health, metrics, request_, code):
    async with http(health, metrics) as port:
        assert (await get(port, request_))[0] == code


async def test_a_head_request_has_no_body(health, metrics):
    async with http(health, metrics) as port:
        assert await get(port, "HEAD /healthz HTTP/1.1\r\n\r\n") == (200, "")
