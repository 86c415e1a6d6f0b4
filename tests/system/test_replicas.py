"""Three coordinators over one PostgreSQL and one bucket, behind a TCP balancer, killed in every phase.

A federation that was founded on SQLite goes on there. Its undisturbed end, still on SQLite and by one coordinator, is
what replicas must come to as well, whichever of them is killed when. And both databases come back from a backup that
was made while they were in use, by the commands of docs/operations-state.md.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from benchmarks.federation import SITE, create_run, found, made_up_model
from common.errors import AccordError
from coordinator.store import audit
from coordinator.store.opening import open_store
from coordinator.store.tables import METADATA
from coordinator.uploads import SEGMENT_CHUNKS
from demo.federation import LocalFederation, Process
from demo.ports import HOST, free_ports
from tests.pages import DOCS, typed
from tests.postgresql import PostgresServer, postgres_server
from tests.programs import debian_program
from tests.seaweedfs import SeaweedFS, seaweedfs_in
from tests.system.faulty_coordinator import EVENTS
from tests.system.kills import Kills

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

DOCUMENT = DOCS / "operations-state.md"
RUN = "killed"
POLL_SECONDS = 0.1
NAME = "replicas"
SITES = ("site-0", "site-1", "site-2")
REPLICAS = ("replica-0", "replica-1", "replica-2")
ROUNDS = 1
# The evaluation at the end is a round, too.
ALL_ROUNDS = ROUNDS + 1
MEBIBYTES = 9.0
EVERYBODY = {"quorum": len(SITES), "window_seconds": 3600}
PHASES = ("forming", "training", "collecting", "unmasking", "key_setup")
# Of whoever drives: a lease is left behind. One in each state of a round and of a key epoch.
OF_THE_DRIVER = (
    "after round forming",
    "after round training",
    "after epoch sharing",
    "after epoch confirming",
    "after epoch ready",
    "before round collecting",
    "after round unmasking",
    "aggregating half durable",
    "before round succeeded",
)
# Of whoever has the call.
OF_A_CALL = ("after message advertisement", "after message deposit", "after upload half", "after message reveal")
KILLS = (*OF_THE_DRIVER, *OF_A_CALL)


def test_the_events_that_replicas_die_of_exist() -> None:
    assert set(KILLS) <= set(EVENTS)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    with seaweedfs_in(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a federation on SQLite whose sites have enrolled; nothing runs there."""
    folder = tmp_path_factory.mktemp("founded") / "federation"
    with LocalFederation(folder, name=NAME) as federation:
        found(federation, SITES, made_up_model(MEBIBYTES), log_level="info")
    return folder


@dataclass(frozen=True)
class Undisturbed:
    """What a federation of one coordinator, on SQLite, has left behind: its folder, and the adapter of its run."""

    folder: Path
    adapter: str


@pytest.fixture(scope="module")
def undisturbed(founded: Path) -> Undisturbed:
    debian_program("sqlite3", package="sqlite3")
    folder = founded.parent / "undisturbed"
    shutil.copytree(founded, folder)
    with LocalFederation(folder, name=NAME) as federation:
        federation.start_coordinator()
        start_sites(federation)
        ended = Undisturbed(folder, played(federation, RUN))
        documented("backup-sqlite", federation.coordinator_folder)
    return ended


def start_sites(federation: LocalFederation) -> None:
    for site in SITES:
        federation.start_site(site, SITE)


def played(federation: LocalFederation, run: str) -> str:
    """Lead a run to its end, and give its adapter's digest."""
    settings = dict.fromkeys(PHASES, EVERYBODY)
    # Its answer may die with a replica; the run is started all the same.
    with suppress(AccordError):
        create_run(federation, run, made_up_model(MEBIBYTES), rounds=ROUNDS, participants=len(SITES), **settings)
    while True:
        federation.require_running()
        with suppress(AccordError):
            found = federation.admin.run(f"runs/{run}")
            assert found["state"] not in ("failed", "cancelled"), found["message"]
            if found["state"] == "succeeded":
                return str(found["accepted_adapter_digest"])
        time.sleep(POLL_SECONDS)


def documented(name: str, folder: Path, replaced: Mapping[str, str] = MappingProxyType({})) -> str:
    """Run a block of the document there, and give its output."""
    text = typed(DOCUMENT, name)
    for documented_word, real in replaced.items():
        text = text.replace(documented_word, real)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    words = ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{text}\n{done.stderr}"
    return done.stdout


def moved(federation: LocalFederation, postgres: PostgresServer) -> dict[str, Any]:
    """Take the federation's rows to a new database, with the command that its operator would use."""
    url_file = federation.coordinator_folder / "database.url"
    url_file.touch(mode=0o600)
    url_file.write_text(f"{postgres.create(NAME)}\n")
    said: dict[str, Any] = json.loads(
        documented("move", federation.coordinator_folder, {"--to-file database.url": "--to-file database.url --json"})
    )
    return said


class Replicated(LocalFederation):
    """A federation whose coordinator is a balancer before replicas. The balancer has the addresses that sites know."""

    def start_replicas(self, kills: Kills, bucket: SeaweedFS) -> list[Process]:
        keys = self.coordinator_folder / "keys"
        (self.coordinator_data / "pki").rename(keys)
        (self.coordinator_data / "signing-key.pem").rename(keys / "signing-key.pem")
        taken = free_ports(3 * len(REPLICAS))
        ports = {name: taken[3 * place : 3 * place + 3] for place, name in enumerate(REPLICAS)}
        replicas = []
        for name in REPLICAS:
            config = self._write_replica(name, ports[name], blobs=bucket.url(NAME))
            words = [sys.executable, "-m", "tests.system.faulty_replica", Kills.text(kills.events), str(kills.folder)]
            command = [*words, str(config.parent / "data"), "serve", "--config", str(config)]
            log = self.folder / "logs" / f"{name}.log"
            replicas.append(Process(name, command, log, environment=bucket.environment))
        for replica in replicas:
            replica.start()
        self._balance(ports)
        self.start_coordinator()
        return replicas

    def _write_replica(self, name: str, ports: list[int], *, blobs: str) -> Path:
        folder = self.coordinator_folder / name
        folder.mkdir()
        participants, admin, health = ports
        config = folder / "coordinator.toml"
        config.write_text(
            f"""
federation = "{self.name}"
data_folder = "data"
[database]
url_file = "../database.url"
migrate_on_start = false
[blobs]
url = "{blobs}"
[keys]
folder = "../keys"
[participants]
listen = "{HOST}:{participants}"
[enrollment]
listen = "{HOST}:0"
[admin]
listen = "{HOST}:{admin}"
[health]
http = "{HOST}:{health}"
grpc = ""
[certificates]
host_names = ["{HOST}"]
"""
        )
        return config

    def _balance(self, ports: dict[str, list[int]]) -> None:
        """Put haproxy in the place of the coordinator's process."""
        known = self.listen_addresses
        config = self.coordinator_folder / "haproxy.cfg"
        text = [
            "defaults\n mode tcp\n timeout connect 1s\n timeout client 1h\n timeout server 1h",
            " option redispatch\n retries 3",
            " default-server inter 100ms fall 1 rise 1 on-marked-down shutdown-sessions",
        ]
        for place, listener in enumerate(("participants", "admin")):
            text.append(f"listen {listener}\n bind {known[listener]}\n balance roundrobin")
            text.append(" option httpchk GET /readyz")
            text += [f" server {name} {HOST}:{own[place]} check port {own[2]}" for name, own in ports.items()]
        config.write_text("\n".join(text) + "\n")
        haproxy = debian_program("haproxy", package="haproxy")
        self.coordinator = Process(
            "haproxy", [str(haproxy), "-db", "-f", str(config)], self.folder / "logs" / "haproxy.log"
        )

    @property
    def listen_addresses(self) -> dict[str, str]:
        config = tomllib.loads(self.coordinator_config.read_text())
        return {name: config[name]["listen"] for name in ("participants", "admin")}


def events_of(folder: Path, process: str) -> list[dict[str, Any]]:
    lines = (folder / "logs" / f"{process}.log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_a_round_survives_the_death_of_any_replica_in_any_phase(
    founded: Path, undisturbed: Undisturbed, postgres: PostgresServer, bucket: SeaweedFS
) -> None:
    folder = founded.parent / "replicas"
    shutil.copytree(founded, folder)
    markers = folder / "markers"
    markers.mkdir()
    kills = Kills(KILLS, markers)
    with Replicated(folder, name=NAME) as federation, ExitStack() as stack:
        said = moved(federation, postgres)
        for replica in federation.start_replicas(kills, bucket):
            stack.callback(replica.stop)
        start_sites(federation)
        adapter = played(federation, RUN)
        rounds = [federation.admin.round(f"runs/{RUN}/rounds/{number}") for number in range(1, ALL_ROUNDS + 1)]

    assert [event for event in KILLS if not kills.has_happened(event)] == []
    assert adapter == undisturbed.adapter
    assert [len(round_["survivors"]) for round_ in rounds] == [len(SITES)] * ALL_ROUNDS
    # An upload that was acknowledged by half went on at another replica, or at one that knew nothing of it.
    told = [event for site in SITES for event in events_of(folder, site)]
    assert SEGMENT_CHUNKS in [event["chunk"] for event in told if event["event"] == "upload_resumed"]
    # Whoever died as the driver was followed by another one, and more than one replica has driven.
    taken = {name: [e for e in events_of(folder, name) if e["event"] == "lease_taken"] for name in REPLICAS}
    assert sum(map(len, taken.values())) > len(OF_THE_DRIVER)
    assert sum(bool(events) for events in taken.values()) > 1
    # The log goes on from what was moved, without a gap, whoever wrote which line of it.
    with closing(open_store(postgres.url(NAME))) as store, store.read() as reader:
        assert reader.audit_head().sequence > said["audit_sequence"] > 0
        assert reader.audit_event(said["audit_sequence"]).chain_digest == said["audit_chain_digest"]
        assert audit.verify(reader.audit_chain(), head=reader.audit_head()).intact
        received = [e.actor for e in reader.audit_events(action="update_received").rows]
    assert len(received) == len(SITES) * ALL_ROUNDS
    comes_back(folder / "coordinator", postgres)


def comes_back(folder: Path, postgres: PostgresServer) -> None:
    """What was dumped has all that the database has, and is a whole federation."""
    for program in ("pg_dump", "pg_restore"):
        debian_program(program, package="postgresql")
    documented("backup-postgresql", folder)
    (folder / "restored.url").write_text(f"{postgres.create('restored')}\n")
    documented("restore-postgresql", folder)
    before, after = (
        [
            postgres.execute(f"SELECT * FROM {table.name} ORDER BY 1, 2", database=name)
            for table in METADATA.sorted_tables
        ]
        for name in (NAME, "restored")
    )
    assert before == after
    with closing(open_store(postgres.url("restored"))) as store, store.read() as reader:
        assert audit.verify(reader.audit_chain(), head=reader.audit_head()).intact


def test_a_backup_that_was_made_while_the_coordinator_ran_comes_back_and_goes_on(undisturbed: Undisturbed) -> None:
    with LocalFederation(undisturbed.folder, name=NAME) as federation:
        folder = federation.coordinator_folder
        shutil.rmtree(folder / "data")
        documented("restore-sqlite", folder)
        federation.start_coordinator()
        (noted,) = json.loads((folder / "backup" / "audit-head.json").read_text())
        (last, *_) = federation.admin.audit_events(newest_first=True)
        assert (last["sequence"], last["chain_digest"]) == (noted["sequence"], noted["chain_digest"])
        assert federation.admin.verify_audit_log()["intact"]
        assert federation.admin.run(f"runs/{RUN}")["accepted_adapter_digest"] == undisturbed.adapter
        # The sites have not been told of anything, and go on with the next run.
        start_sites(federation)
        assert len(played(federation, "afterwards")) == len(undisturbed.adapter)
