"""The participant's metrics and its health: closed labels, and a probe that does not lie."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from contextlib import closing
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from common.errors import AccordError, ConfigInvalid, PolicyRefusal, SignatureInvalid, TooFewMembers
from participant.health import serving_health
from participant.metrics import OTHER_REASON, REASONS, ParticipantMetrics, reason_label
from tests.fakes import FakeClock

HOST = "127.0.0.1"


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def metrics(registry):
    return ParticipantMetrics.create(registry)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def port(registry, metrics, clock):
    with serving_health(HOST, 0, registry=registry, clock=clock) as port:
        yield port


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_reason_is_its_own_label_that_of_its_kind_or_other():
    assert reason_label(PolicyRefusal("rank")) == "POLICY_REFUSAL"
    assert reason_label(SignatureInvalid("no")) == "PROTOCOL_VIOLATION"
    assert reason_label(TooFewMembers("two")) == "AGGREGATION_FAILED"
    assert reason_label(AccordError("new")) == OTHER_REASON
    assert OTHER_REASON not in REASONS


def test_refusals_and_failures_are_counted_by_reason(metrics, registry):
    metrics.refused(PolicyRefusal("rank"))
    metrics.refused(PolicyRefusal("hours"))
    metrics.failed(AccordError("a bug"))
    assert registry.get_sample_value("accord_participant_refusals_total", {"reason": "POLICY_REFUSAL"}) == 2
    assert registry.get_sample_value("accord_participant_failures_total", {"reason": "OTHER"}) == 1


def test_every_metric_is_named_after_the_participant(metrics, registry):
    own = [family.name for family in registry.collect() if not family.name.startswith("process_")]
    assert {name.split("_")[1] for name in own} == {"participant"}


def test_a_site_is_healthy_while_the_coordinator_answers_and_the_certificate_holds(metrics, clock, port):
    metrics.last_contact_seconds.set(clock.now().timestamp())
    metrics.certificate_expiry_seconds.set((clock.now() + timedelta(days=20)).timestamp())
    assert get(port, "/health") == (200, '{"healthy": true, "problems": []}\n')


def test_a_site_that_has_just_started_has_time_to_be_heard_and_then_is_unhealthy(clock, port):
    assert get(port, "/health")[0] == 200
    clock.advance(minutes=6)
    status, text = get(port, "/health")
    assert status == 503
    assert json.loads(text)["problems"] == ["the coordinator has not answered for 360 s"]


def test_a_site_without_contact_or_without_a_certificate_is_unhealthy_with_both_reasons(metrics, clock, port):
    metrics.last_contact_seconds.set(clock.now().timestamp())
    metrics.certificate_expiry_seconds.set((clock.now() + timedelta(hours=2)).timestamp())
    clock.advance(hours=1)
    status, text = get(port, "/health")
    assert status == 503
    assert len(json.loads(text)["problems"]) == 2


def test_metrics_are_served_beside_health_and_nothing_else_is(metrics, port):
    metrics.upload_bytes.inc(7)
    assert "accord_participant_upload_bytes_total 7.0" in get(port, "/metrics")[1]
    assert get(port, "/")[0] == 404


def test_a_port_that_is_taken_is_a_mistake_in_the_configuration(registry, clock):
    with closing(socket.create_server((HOST, 0))) as taken:
        number = taken.getsockname()[1]
        with (
            pytest.raises(ConfigInvalid, match=str(number)),
            serving_health(HOST, number, registry=registry, clock=clock),
        ):
            pass
