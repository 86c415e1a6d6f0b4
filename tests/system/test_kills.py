"""Kill -9 of the coordinator in every state of a round and of a site in every phase of its work, over mTLS.

Three runs of one federation, each from a copy of the same folder: undisturbed, with a coordinator that dies of every
event in its table, and with sites that die of every one in theirs. All three must end with the same adapter: nobody
was left out, and no update was made or sent twice.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.federation import create_run, found, made_up_model
from common.errors import AccordError
from coordinator.uploads import SEGMENT_CHUNKS
from demo.federation import LocalFederation
from tests.system import faulty_coordinator, faulty_site
from tests.system.faulty_coordinator import DURABLE_CHUNKS
from tests.system.kills import Kills

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

RUN = "killed"
ROUNDS = 2
# The evaluation at the end is a round with uploads of its own.
ALL_ROUNDS = ROUNDS + 1
SITES = tuple(faulty_site.EVENTS)
# Five chunks of parameters and the tail's: more than one segment, so that an upload can be half durable.
MEBIBYTES = 9.0
CHUNKS = 6
EVERYBODY = {"quorum": len(SITES), "window_seconds": 3600}
PHASES = ("forming", "training", "collecting", "unmasking", "key_setup")
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Received:
    """An `update_received` of the audit log."""

    site: str
    round: int
    at: datetime
    bytes: int


@dataclass(frozen=True)
class Ended:
    """What a run has left behind."""

    folder: Path
    adapter: str
    survivors: list[int]
    received: list[Received]
    kills: Kills

    def resumed(self, site: str) -> list[int]:
        """Chunks at which the site's log says that an upload went on."""
        return [event["chunk"] for event in self._events(site) if event["event"] == "upload_resumed"]

    def sums_resumed(self) -> list[int]:
        """How many chunks were durable where the coordinator's log says that a sum went on."""
        return [event["chunks"] for event in self._events("coordinator") if event["event"] == "work_resumed"]

    def _events(self, process: str) -> list[dict[str, Any]]:
        lines = (self.folder / "logs" / f"{process}.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a federation whose sites have enrolled; nothing runs there."""
    folder = tmp_path_factory.mktemp("founded") / "federation"
    with LocalFederation(folder, name="killed") as federation:
        found(federation, SITES, made_up_model(MEBIBYTES), log_level="info")
    return folder


@pytest.fixture(scope="module")
def undisturbed(founded: Path) -> Ended:
    with disturbed(founded, "undisturbed") as ended:
        return ended


@contextmanager
def disturbed(
    founded: Path, name: str, *, coordinator: tuple[str, ...] = (), sites: dict[str, tuple[str, ...]] | None = None
) -> Iterator[Ended]:
    """Play the run in a copy of the federation, with processes that die of these events."""
    folder = founded.parent / name
    shutil.copytree(founded, folder)
    markers = folder / "markers"
    markers.mkdir()
    with LocalFederation(folder, name="killed") as federation:
        if coordinator:
            words = [sys.executable, "-m", "tests.system.faulty_coordinator", Kills.text(coordinator), str(markers)]
            federation.coordinator.command = [*words, "serve", "--config", str(federation.coordinator_config)]
        federation.start_coordinator()
        for site in SITES:
            events = Kills.text((sites or {}).get(site, ()))
            federation.start_site(site, [sys.executable, "-m", "tests.system.faulty_site", events, str(markers)])
        settings = dict.fromkeys(PHASES, EVERYBODY)
        # Its answer may die with the coordinator; the run is started all the same.
        with suppress(AccordError):
            create_run(federation, RUN, made_up_model(MEBIBYTES), rounds=ROUNDS, participants=len(SITES), **settings)
        until_over(federation)
        told = (*coordinator, *(event for own in (sites or {}).values() for event in own))
        yield ended(federation, Kills(told, markers))


def until_over(federation: LocalFederation) -> None:
    """Wait for the run's end, whoever is away meanwhile."""
    while True:
        federation.require_running()
        with suppress(AccordError):
            run = federation.admin.run(f"runs/{RUN}")
            assert run["state"] not in ("failed", "cancelled"), run["message"]
            if run["state"] == "succeeded":
                return
        time.sleep(POLL_SECONDS)


def ended(federation: LocalFederation, kills: Kills) -> Ended:
    admin = federation.admin
    rounds = [admin.round(f"runs/{RUN}/rounds/{number}") for number in range(1, ALL_ROUNDS + 1)]
    assert [round_["state"] for round_ in rounds] == ["succeeded"] * ALL_ROUNDS
    return Ended(
        folder=federation.folder,
        adapter=str(admin.run(f"runs/{RUN}")["accepted_adapter_digest"]),
        survivors=[len(round_["survivors"]) for round_ in rounds],
        received=[
            Received(
                site=str(event["actor"]).removeprefix("participants/"),
                round=int(str(event["subject"]).rsplit("/", 1)[-1]),
                at=datetime.fromisoformat(event["time"]),
                bytes=int(json.loads(event["details_json"])["bytes"]),
            )
            for event in admin.audit_events()
            if event["action"] == "update_received"
        ],
        kills=kills,
    )


def require_same(found: Ended, undisturbed: Ended) -> None:
    """The run has ended as if nobody had died, and what was received was not sent again."""
    assert {event for event in found.kills.events if not found.kills.has_happened(event)} == set()
    assert found.survivors == [len(SITES)] * ALL_ROUNDS
    assert found.adapter == undisturbed.adapter
    each = {(one.site, one.round, one.bytes) for one in undisturbed.received}
    assert len(each) == len(found.received) == len(SITES) * ALL_ROUNDS
    assert {(one.site, one.round, one.bytes) for one in found.received} == each
    for one in found.received:
        sent = [s for s in faulty_site.sendings(found.kills.folder, one.site) if s.round == one.round]
        assert sent
        assert [s.first_chunk for s in sent] == sorted(s.first_chunk for s in sent)
        assert all(datetime.fromisoformat(s.at) < one.at for s in sent)


def test_a_coordinator_killed_in_every_state_ends_the_run_with_the_same_adapter(
    founded: Path, undisturbed: Ended
) -> None:
    with disturbed(founded, "coordinator", coordinator=tuple(faulty_coordinator.EVENTS)) as found:
        require_same(found, undisturbed)
        resumed = [chunk for site in SITES for chunk in found.resumed(site)]
        assert SEGMENT_CHUNKS in resumed
        # A whole upload that lacked its receipt goes on with nothing but that.
        assert CHUNKS in resumed
        # And so does a sum: killed twice, it has opened no chunk again whose part of the adapter was durable.
        assert DURABLE_CHUNKS in found.sums_resumed()


def test_sites_killed_in_every_phase_end_the_run_with_the_same_adapter(founded: Path, undisturbed: Ended) -> None:
    with disturbed(founded, "sites", sites=faulty_site.EVENTS) as found:
        require_same(found, undisturbed)
        assert found.resumed("site-0") == [SEGMENT_CHUNKS]
        assert [s.first_chunk for s in faulty_site.sendings(found.kills.folder, "site-0")] == [0, SEGMENT_CHUNKS, 0, 0]
