"""Spans of coordinator and sites, as a collector gets them: one trace a round, linked calls, and nothing private."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from common import tracing
from common.errors import ConfigInvalid
from tests.collector import Collector, attributes, collecting
from tests.rpc.federation import federation_in

ROOT = Path(__file__).parents[2]
ALLOWED = {
    *("accord.run", "accord.round", "accord.epoch", "accord.phase", "accord.kind", "accord.state", "accord.reason"),
    *("rpc.system", "rpc.service", "rpc.method", "rpc.grpc.status_code"),
}


@pytest.fixture(scope="module")
def collector(tmp_path_factory) -> Iterator[Collector]:
    with collecting() as (collector, endpoint):
        with federation_in(tmp_path_factory.mktemp("traced"), limits=f'[tracing]\nendpoint = "{endpoint}"\n') as lab:
            lab.add_sites(3)
            lab.create_run(rounds=1)
            assert lab.play(1)["state"] == "succeeded"
            assert lab.play(2)["state"] == "succeeded"
        yield collector


def of_round(collector: Collector, number: int) -> list[Span]:
    (root,) = (span for span in collector.spans if span.name == "round" and attributes(span)["accord.round"] == number)
    return [span for span in collector.spans if span.trace_id == root.trace_id]


def test_a_round_is_one_trace_of_phases_steps_tasks_and_jobs(collector):
    spans = of_round(collector, 1)
    names = [span.name for span in spans]
    for phase in ("forming", "training", "collecting", "unmasking", "aggregating"):
        assert names.count(f"phase {phase}") == 1
    assert "step round" in names
    for work in ("training_job", "fetch_adapter", "task UploadUpdate", "call UploadMaskedUpdate"):
        assert names.count(work) >= 3, work
    (root,) = (span for span in spans if span.name == "round")
    assert not root.parent_span_id
    assert attributes(root) == {
        "accord.run": "run", "accord.round": 1, "accord.state": "succeeded", "accord.kind": "train"
    } | ({"accord.reason": 0} if "accord.reason" in attributes(root) else {})  # fmt: skip
    tops = [span for span in spans if span.name.startswith(("phase", "step", "task", "training_job"))]
    assert {span.parent_span_id for span in tops} == {root.span_id}
    assert of_round(collector, 2)[0].trace_id != root.trace_id


def test_a_served_call_is_within_the_call_that_a_site_made(collector):
    made = {span.span_id: span for span in collector.spans if span.name == "call UploadMaskedUpdate"}
    served = [span for span in collector.spans if span.name == "serve UploadMaskedUpdate"]
    assert len(served) == len(made) >= 3
    for span in served:
        assert made[span.parent_span_id].trace_id == span.trace_id
        assert span.kind == Span.SPAN_KIND_SERVER
    unary = next(span for span in collector.spans if span.name == "serve ReportPrepared")
    assert attributes(unary)["accord.run"] == "run"
    assert attributes(unary)["accord.round"] in (1, 2)


def test_attributes_are_names_and_numbers_of_what_the_work_is_about_and_nothing_else(collector):
    assert {name for span in collector.spans for name in attributes(span)} <= ALLOWED
    assert not [event for span in collector.spans for event in span.events if event.name != "exception"]
    (resource,) = {tuple(sorted(found.items())) for found in collector.resources}
    assert dict(resource)["service.name"] == "accord-coordinator"
    assert dict(resource)["accord.federation"] == "lab"


def test_without_an_endpoint_nothing_is_loaded_and_nothing_is_wrapped():
    program = (
        "import sys; from common import tracing; import coordinator.app, participant.connection\n"
        "end = tracing.configure(endpoint='', ca=None, service='s', instance='i', federation='f')\n"
        "channel = object()\n"
        "assert tracing.traced_channel(channel) is channel and tracing.server_interceptors() == ()\n"
        "with tracing.span('x', run='r', round_=1): pass\n"
        "end(); print(sorted(name for name in sys.modules if name.startswith('opentelemetry')))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_an_endpoint_without_opentelemetry_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "common.otlp", None)
    with pytest.raises(ConfigInvalid, match=r"pip install 'accord\[tracing\]'"):
        tracing.configure(endpoint="http://127.0.0.1:1", ca=None, service="s", instance="i", federation="f")


def test_a_collector_that_is_away_holds_nothing_up(tmp_path):
    with federation_in(tmp_path, limits='[tracing]\nendpoint = "http://127.0.0.1:9"\n') as lab:
        lab.add_sites(3)
        lab.create_run(rounds=1)
        assert lab.play(1)["state"] == "succeeded"
