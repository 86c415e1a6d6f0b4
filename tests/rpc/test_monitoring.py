"""A real Prometheus scrapes a coordinator and sites that have played rounds, over plain HTTP and over mutual TLS.

Every query of the dashboard is asked of it, and every label that it has seen must be in the page of metrics.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import CollectorRegistry

from common.certificates import to_pem
from common.clock import SystemClock
from common.errors import InvalidArgument, Unavailable
from common.http_listener import HttpTls
from common.identifiers import FederationId, ParticipantId
from coordinator.pki import key_pem, new_authority
from participant import app as participant_app
from participant.health import serving_health
from participant.trainer import OnProgress, Preparation, Prepared
from participant.training.result import Phase, Progress
from tests.metrics_page import LABELS, MEMBERS, OPEN_RUN, PAGE, PROCESS, VERSION, declared, page, services
from tests.programs import debian_program
from tests.rpc.federation import POLICY, Federation, MadeUpTrainer, delta_of, federation_in

ROOT = Path(__file__).parents[2]
BUDGET = POLICY + "[privacy]\nepsilon = 8.0\nfigures_epsilon = 4.0\ndelta = 1e-5\n"
SCRAPE = "200ms"
# Sums over the steps of a round.
TRAINED = {"train_loss": 5.0, "train_steps": 2.0}


def load_dashboard() -> Any:
    path = ROOT / "deploy" / "grafana" / "dashboard.py"
    spec = importlib.util.spec_from_file_location("accord_dashboard", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DASHBOARD = load_dashboard()


class ToldTrainer(MadeUpTrainer):
    """One that says how its steps go."""

    def prepare(self, work: Preparation, *, on_progress: OnProgress, stop: threading.Event) -> Prepared:
        for step in (1, 2):
            on_progress(Progress(phase=Phase.TRAIN, step=step, total_steps=2, loss=2.5, tokens_per_second=900.0))
        return super().prepare(work, on_progress=on_progress, stop=stop)


@dataclass(frozen=True)
class Papers:
    """A CA of the monitoring's own, with a server's and a scraper's certificate."""

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> Papers:
        folder.mkdir()
        now = SystemClock().now()
        authority = new_authority(FederationId("watch"), now=now)
        (folder / "ca.pem").write_text(to_pem([authority.certificate]))
        server = authority.issue_server(["localhost", "127.0.0.1"], now=now)
        (folder / "server.pem").write_text(server.chain_pem)
        (folder / "server.key").write_bytes(server.key_pem)
        key = ec.generate_private_key(ec.SECP256R1())
        scraper = authority.issue_participant(key.public_key(), ParticipantId("prometheus"), now=now)
        (folder / "scraper.pem").write_text(scraper.chain_pem)
        (folder / "scraper.key").write_bytes(key_pem(key))
        return cls(folder)

    @property
    def tls(self) -> HttpTls:
        return HttpTls(self.folder / "server.pem", self.folder / "server.key", self.folder / "ca.pem")

    @property
    def config(self) -> str:
        tls = self.tls
        return (
            f'[metrics]\nlisten = "127.0.0.1:0"\ncertificate = "{tls.certificate}"\nkey = "{tls.key}"\n'
            f'client_ca = "{tls.client_ca}"\n'
        )

    def scrape(self) -> Mapping[str, object]:
        return {
            "ca_file": str(self.folder / "ca.pem"),
            "cert_file": str(self.folder / "scraper.pem"),
            "key_file": str(self.folder / "scraper.key"),
        }

    def fetch(self, address: str, *, with_certificate: bool) -> str:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        if with_certificate:
            context.load_cert_chain(self.folder / "scraper.pem", self.folder / "scraper.key")
        with urllib.request.urlopen(f"https://{address}/metrics", timeout=10, context=context) as answer:
            return answer.read().decode()


@dataclass
class Watched:
    """What the tests look at."""

    federation: Federation
    papers: Papers
    registries: list[CollectorRegistry]
    prometheus: str
    plain_site: str

    def ask(self, path: str, **parameters: str) -> Any:
        url = f"{self.prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read().decode()
            return json.loads(text) if text.startswith("{") else {"status": text}  # while it starts

    def wait_for(self, query: str) -> None:
        """Until Prometheus has it: the next scrapes bring it."""
        deadline = threading.Event()
        for _ in range(200):
            if self.ask("query", query=query).get("data", {}).get("result"):
                return
            deadline.wait(0.1)
        raise AssertionError(f"{query} never came; targets: {self.ask('targets')}")


def play(federation: Federation) -> None:
    """Rounds with a site that is lost, an upload that is resumed, one that declines, and a call that is refused."""
    for index in range(4):
        federation.add_site(f"site-{index}", ToldTrainer(delta_of(index), metrics=TRAINED), policy=BUDGET)
    strict = POLICY.replace("most_rank = 64", "most_rank = 2")
    federation.add_site("strict", MadeUpTrainer(delta_of(9)), policy=strict)
    federation.create_run(rounds=4, gate_loss_rise=0.5)
    assert federation.play(1)["state"] == "succeeded"
    line = federation.sites["site-3"].line
    line.cut(before="upload")
    others = [name for name in federation.sites if name != "site-3"]
    federation.turn_until(lambda: line.is_cut)
    assert federation.play(2, sites=others)["state"] == "succeeded"
    line.mend()
    with pytest.raises((InvalidArgument, Unavailable)):
        federation.sites["site-0"].client.report_prepared("Not A Run", 1, adapter="x")
    federation.turn_until(lambda: federation.run()["round"] == 3)
    federation.turn()


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("monitoring")
    prometheus = debian_program("prometheus", package="prometheus")
    papers = Papers.create(folder / "papers")
    registries: list[CollectorRegistry] = []

    def make_registry() -> CollectorRegistry:
        registries.append(CollectorRegistry())
        return registries[-1]

    with ExitStack() as parts:
        parts.enter_context(patch.object(participant_app, "CollectorRegistry", make_registry))
        federation = parts.enter_context(federation_in(folder, limits=papers.config))
        play(federation)
        plain = parts.enter_context(serving_health("127.0.0.1", 0, registry=registries[0], clock=federation.clock))
        shut = parts.enter_context(
            serving_health("127.0.0.1", 0, registry=registries[1], clock=federation.clock, tls=papers.tls)
        )
        assert federation.addresses is not None
        address = started(
            parts,
            prometheus,
            folder,
            [
                job("accord-coordinator", federation.addresses.metrics, papers),
                job("accord-participant", f"127.0.0.1:{plain}", None),
                job("accord-participant-tls", f"127.0.0.1:{shut}", papers),
            ],
        )
        made = Watched(federation, papers, registries, address, f"127.0.0.1:{plain}")
        made.wait_for("count(up == 1) == 3 and on () count(accord_run_round) > 0")
        made.wait_for("count_over_time(accord_ready[1m]) > 8 and on () count_over_time(accord_run_round[1m]) > 8")
        yield made


def job(name: str, address: str, papers: Papers | None) -> Mapping[str, object]:
    found: dict[str, object] = {"job_name": name, "static_configs": [{"targets": [address]}]}
    if papers is not None:
        found |= {"scheme": "https", "tls_config": papers.scrape()}
    return found


def started(parts: ExitStack, program: Path, folder: Path, jobs: list[Mapping[str, object]]) -> str:
    """A Prometheus on a free port, which ends with the test's process."""
    rules = [str(shutil.copy(file, folder)) for file in sorted((ROOT / "deploy" / "prometheus").glob("*.rules.yml"))]
    config = folder / "prometheus.yml"
    config.write_text(  # JSON is YAML
        json.dumps(
            {
                "global": {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE, "evaluation_interval": "1s"},
                "rule_files": rules,
                "scrape_configs": jobs,
            }
        )
    )
    log = folder / "prometheus.log"
    command = [
        *(sys.executable, "-m", "demo.leash", str(os.getpid()), str(program)),
        *(f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}", "--web.listen-address=127.0.0.1:0"),
    ]
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
    parts.callback(process.wait, 20)
    parts.callback(process.terminate)
    pause = threading.Event()
    for _ in range(200):
        for line in log.read_text().splitlines():
            if "Listening on" in line and "address=127.0.0.1:" in line:
                return "http://127.0.0.1:" + line.partition("address=127.0.0.1:")[2].split()[0]
        assert process.poll() is None, log.read_text()
        pause.wait(0.1)
    raise AssertionError(log.read_text())


def as_asked(query: str) -> str:
    """The query as Grafana sends it."""
    for name, value in (("$__rate_interval", "1m"), ("$run", ".*"), ("$site", ".*")):
        query = query.replace(name, value)
    return query


def test_every_query_of_the_dashboard_is_answered_with_data(watched):
    silent = []
    for panel, query in DASHBOARD.queries():
        answer = watched.ask("query", query=as_asked(query))
        if answer["status"] != "success" or not answer["data"]["result"]:
            silent.append((panel, query, answer.get("error", "no data")))
    assert silent == []


def test_figures_on_the_dashboard_are_those_of_the_rounds(watched):
    def value(query: str) -> float:
        (row,) = watched.ask("query", query=query)["data"]["result"]
        return float(row["value"][1])

    assert value("accord_run_rounds_succeeded") == 2
    assert value("accord_run_round") == 3
    assert value("sum(accord_contributions_accepted_total)") == 4 + 3
    assert value('accord_participations_dropped_total{participant="site-3",reason="WINDOW_PASSED"}') == 1
    assert value('accord_runs_declined_total{participant="strict",reason="POLICY_REFUSAL"}') == 1
    assert value('accord_candidates_judged_total{verdict="accepted"}') == 1
    assert value("accord_run_heldout_loss_nats") == pytest.approx(2.0, abs=0.01)
    assert value("accord_leases_held") == 1
    rounds = [watched.federation.round(number)["participations"] for number in (1, 2)]
    assert value("accord_upload_bytes_total") == sum(row["uploaded_bytes"] for rows in rounds for row in rows)


def test_every_label_that_was_seen_has_a_value_of_its_closed_set(watched):
    free = {
        MEMBERS: set(watched.federation.sites),
        OPEN_RUN: {"run"},
    }
    strange, seen = [], set()
    for row in watched.ask("query", query='{__name__=~"accord_.+"}')["data"]["result"]:
        labels = dict(row["metric"])
        scraped = labels.pop("__name__")
        family = next(
            (
                scraped.removesuffix(end)
                for end in ("_total", "_bucket", "_sum", "_count", "")
                if scraped.endswith(end) and (scraped.removesuffix(end) in LABELS or end == "")
            ),
            scraped,
        )
        for ours in ("instance", "job", "le"):
            labels.pop(ours, None)
        for label, value in labels.items():
            allowed = LABELS[family][label]
            seen.add((family, label))
            if allowed != VERSION and value not in (free[allowed] if isinstance(allowed, str) else allowed):
                strange.append((scraped, label, value))
    assert strange == []
    assert len(seen) > 25


def test_every_metric_is_on_the_page_with_the_labels_that_it_has():
    assert PAGE.read_text(encoding="utf-8") == page()
    for registry in services().values():
        for one in declared(registry):
            assert set(one.labels) == set(LABELS.get(one.family, {})), one.name
            assert one.name.startswith("accord_")
            assert not one.name.startswith(PROCESS)


def test_with_a_listener_of_their_own_metrics_are_for_those_with_a_certificate(watched):
    addresses = watched.federation.addresses
    assert "accord_ready 1.0" in watched.papers.fetch(addresses.metrics, with_certificate=True)
    with pytest.raises(urllib.error.HTTPError) as refused:
        watched.papers.fetch(addresses.metrics, with_certificate=False)
    assert refused.value.code == 403
    with pytest.raises(urllib.error.HTTPError) as nothing:
        urllib.request.urlopen(f"http://{addresses.health_http}/metrics", timeout=10)
    assert nothing.value.code == 404
    with urllib.request.urlopen(f"http://{addresses.health_http}/healthz", timeout=10) as answer:
        assert answer.read() == b"ok\n"


def test_a_quiet_client_keeps_no_scraper_waiting(watched):
    import socket

    host, port = watched.federation.addresses.metrics.split(":")
    with socket.create_connection((host, int(port))):  # says nothing, not even TLS
        assert "accord_ready" in watched.papers.fetch(f"{host}:{port}", with_certificate=True)


def test_the_rules_load_and_no_alert_of_theirs_errs(watched):
    groups = watched.ask("rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 30
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule.get("lastError")] == []


def test_the_dashboard_is_what_its_table_says_and_no_panel_lies_on_another():
    text = (ROOT / "deploy" / "grafana" / "accord.json").read_text(encoding="utf-8")
    assert text == json.dumps(DASHBOARD.dashboard(), indent=1) + "\n"
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(text)["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
