"""Three real participants and a coordinator as processes, with a tiny model: what only shows between processes.

A cancelled run ends the training that it has begun, and the next one trains; its spans come from every process, in one
trace for each round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from common.basemodel import BaseModel, describe
from demo.federation import LocalFederation
from demo.folders import processes_below
from tests.collector import Collector, attributes, collecting
from tests.site_files import POLICY, write_records
from tests.tiny_model import make_tiny_model

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

SITES = ("bank", "clinic", "newsroom")
WAIT_SECONDS = 120.0
POLL_SECONDS = 0.1
CONFIG = """
state_directory = "state"
policy_file = "policy.toml"
least_free_mebibytes = 1
base_models = [{{ source = "{model}" }}]
data = {{ train_file = "train.jsonl" }}
training = {{ threads = 1 }}
charter = {{ mode = "pinned", file = "charter.json", digest = "{digest}" }}
tracing = {{ endpoint = "{endpoint}" }}
"""
SETTINGS = {"rounds": 1, "batch_size": 2, "max_length": 96, "rank": 2, "alpha": 4.0, "element_clip": 0.1}


@dataclass(frozen=True)
class Played:
    """What was seen while two runs were played. trained: pids of the training that the first one began."""

    collector: Collector
    cancelled: str
    trained: frozenset[int]
    left: frozenset[int]
    afterwards: str


def workers(folder: Path) -> frozenset[int]:
    return frozenset(
        process.pid for process in processes_below(folder) if "participant.training.worker" in process.cmdline()
    )


def until(federation: LocalFederation, reached: Callable[[], bool]) -> None:
    give_up = time.monotonic() + WAIT_SECONDS
    while not reached():
        federation.require_running()
        assert time.monotonic() < give_up, [site.last_words() for site in federation.sites.values()]
        time.sleep(POLL_SECONDS)


def begin(federation: LocalFederation, run: str, model: BaseModel, *, steps: int) -> None:
    """Create a run, and start it once every site has joined."""
    admin = federation.admin
    admin.create_run(run, {**SETTINGS, "steps_per_round": steps, "base_model_json": model.to_json()})
    until(federation, lambda: all(member["joined"] for member in admin.run(f"runs/{run}")["members"]))
    admin.start_run(f"runs/{run}")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    folder = tmp_path_factory.mktemp("real")
    model = make_tiny_model(folder / "tiny")
    with collecting() as (collector, endpoint):
        with LocalFederation(folder / "federation", name="press") as federation:
            federation.prepare_coordinator()
            with federation.coordinator_config.open("a") as config:
                config.write(f'[tracing]\nendpoint = "{endpoint}"\n')
            federation.start_coordinator()
            for site in SITES:
                federation.site_folder(site).mkdir(parents=True)
                (federation.site_folder(site) / "policy.toml").write_text(
                    POLICY.replace("most_steps_per_round = 10", "most_steps_per_round = 100_000")
                )
                write_records(federation.site_folder(site) / "train.jsonl")
                write_config(federation, site, model, endpoint)
            federation.enroll(*SITES)
            digest = federation.publish_charter(SITES)
            for site in SITES:
                write_config(federation, site, model, endpoint, digest)
                federation.pin_charter(site, digest)
                federation.start_site(site)

            begin(federation, "endless", describe(model), steps=100_000)
            until(federation, lambda: len(workers(federation.folder)) == len(SITES))
            trained = workers(federation.folder)
            federation.admin.cancel_run("runs/endless", reason="it would never end")
            until(federation, lambda: not workers(federation.folder) & trained)
            cancelled, left = str(federation.admin.run("runs/endless")["state"]), workers(federation.folder)

            begin(federation, "short", describe(model), steps=2)
            until(federation, lambda: federation.admin.run("runs/short")["state"] not in ("created", "running"))
            afterwards = str(federation.admin.run("runs/short")["state"])
        # Everything has ended, and has sent what it had.
        yield Played(collector, cancelled, trained, left, afterwards)


def write_config(federation: LocalFederation, site: str, model: Path, endpoint: str, digest: str = "0" * 64) -> None:
    federation.site_config(site).write_text(CONFIG.format(model=model, endpoint=endpoint, digest=digest))


def test_a_run_that_is_cancelled_ends_the_training_that_it_began(played: Played) -> None:
    assert played.cancelled == "cancelled"
    assert len(played.trained) == len(SITES)
    assert played.left == frozenset()


def test_the_sites_train_in_the_next_run(played: Played) -> None:
    assert played.afterwards == "succeeded"


def about(span: Span) -> tuple[object, object]:
    return attributes(span).get("accord.run"), attributes(span).get("accord.round")


def test_spans_of_every_process_are_in_one_trace_for_each_round(played: Played) -> None:
    by_service = {
        (resource["service.name"], resource["service.instance.id"]) for resource in played.collector.resources
    }
    assert {("accord-participant", site) for site in SITES} < by_service
    assert {service for service, _ in by_service} == {"accord-participant", "accord-coordinator"}
    spans = played.collector.spans
    of_round = [span for span in spans if about(span) == ("short", 1)]
    (root,) = (span for span in of_round if span.name == "round")
    strays = {span.name for span in of_round if span.trace_id != root.trace_id}
    assert strays == set()
    in_trace = [span for span in spans if span.trace_id == root.trace_id]
    assert sum(span.name == "training_job" for span in in_trace) == len(SITES)
    served = [span.parent_span_id for span in in_trace if span.name == "serve UploadMaskedUpdate"]
    made = [span.span_id for span in in_trace if span.name == "call UploadMaskedUpdate"]
    assert sorted(served) == sorted(made)
    assert len(made) == len(SITES)
