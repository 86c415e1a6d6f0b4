"""A federation whose sites are cut off in every phase of a round, over slow, lossy and far links; one run of it all.

Five sites: two on loopback, one far away (a relay that delays), one that a relay cuts off and resets, and one behind a
cable of its own, which is slow, loses packets and rejects them. Every round closes with those who are there, and who
was away is in the next by itself.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.federation import CONFIG, POLICY, SITE, create_run, made_up_model
from benchmarks.made_up_site import BASE_MODEL_FILE
from common.basemodel import BaseModel
from common.clock import SystemClock
from common.errors import AccordError
from coordinator.uploads import SEGMENT_CHUNKS
from demo.federation import LocalFederation
from demo.ports import HOST
from participant.enrollment import enroll
from participant.identity import IdentityFolder
from tests.system.cut_site import MID_UPLOAD, Halts
from tests.system.faulty_site import sendings
from tests.system.networks import Namespace, Relay

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

RUN = "partitioned"
NEAR, FAR, CUT, WIRED = ("near-0", "near-1"), "far", "cut", "wired"
SITES = (*NEAR, FAR, CUT, WIRED)
KEYS, TRAINING, COLLECTING, RESET, UNMASKING, FORMING, LAST = range(1, 8)
# More than one segment, so that an upload can be half durable.
MEBIBYTES = 9.0
QUORUM = 3
# As long as a site that is there may take on a busy machine; each cut costs the run one of them.
# Keys are set up while sites train, so that a step of it which waits for a site has to fit into training.
WINDOWS = {"forming": 6, "training": 9, "collecting": 5, "unmasking": 8, "key_setup": 4}
POLL_SECONDS = 0.05
POINTS = {
    CUT: (
        f"deposit_shares@{KEYS}",
        f"report_prepared@{TRAINING}",
        f"{MID_UPLOAD}@{COLLECTING}",
        f"{MID_UPLOAD}@{RESET}",
        f"reveal_shares@{UNMASKING}",
    ),
    WIRED: (f"{MID_UPLOAD}@{RESET}",),
}


@dataclass
class Played:
    """What the run has left behind."""

    folder: Path
    rounds: dict[int, dict[str, Any]] = field(default_factory=dict)
    received: list[tuple[str, int]] = field(default_factory=list)
    dropped_packets: int = 0
    vanished_packets: int = 0
    has_wire: bool = True

    @property
    def reached(self) -> set[str]:
        """Points at which the site that is cut has been."""
        return {file.name.split(".")[1] for file in self.folder.glob(f"{CUT}.*.reached")}

    def survivors(self, number: int) -> set[str]:
        return {str(name).removeprefix("participants/") for name in self.rounds[number]["survivors"]}

    def sent(self, site: str, number: int) -> list[int]:
        """First chunks of all uploads that a site has begun in a round."""
        return [one.first_chunk for one in sendings(self.folder, site) if one.round == number]

    def events(self, site: str, name: str) -> list[dict[str, Any]]:
        lines = (self.folder / "logs" / f"{site}.log").read_text().splitlines()
        return [event for line in lines if line.startswith("{") and (event := json.loads(line))["event"] == name]


class Play:
    """The federation while the run goes on, seen and disturbed from outside."""

    def __init__(self, federation: LocalFederation, folder: Path) -> None:
        self.federation = federation
        self.halts = {site: Halts(folder, site) for site in POINTS}

    def at(self, site: str, point: str, *, disturb: Callable[[], None]) -> None:
        """When the site has come to a point: disturb its network, and let it go on into that."""
        self.halts[site].wait_for(point, require=self.require_going)
        disturb()
        self.halts[site].release(point)

    def round(self, number: int) -> dict[str, Any] | None:
        try:
            return dict(self.federation.admin.round(f"runs/{RUN}/rounds/{number}"))
        except AccordError:
            return None  # not begun

    def until_round(self, number: int, *states: str) -> dict[str, Any]:
        while (round_ := self.round(number)) is None or round_["state"] not in states:
            self.require_going()
            time.sleep(POLL_SECONDS)
        return round_

    def require_going(self) -> None:
        self.federation.require_running()
        run = self.federation.admin.run(f"runs/{RUN}")
        assert run["state"] not in ("failed", "cancelled"), run["message"]

    def until_said(self, site: str, event: str) -> None:
        log = self.federation.sites[site].log
        while f'"{event}"' not in log.read_text():
            self.federation.require_running()
            time.sleep(POLL_SECONDS)


OVER = ("succeeded", "failed", "cancelled")


@pytest.fixture(scope="module")
def wire() -> Iterator[Namespace | None]:
    """The wired site's cable; None where this machine does not let us have one."""
    with ExitStack() as parts:
        try:
            namespace: Namespace | None = parts.enter_context(Namespace())
        except pytest.skip.Exception:
            namespace = None
        yield namespace


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, wire: Namespace | None) -> Played:
    folder = tmp_path_factory.mktemp("partitions") / "federation"
    model = made_up_model(MEBIBYTES)
    with ExitStack() as parts:
        federation = parts.enter_context(LocalFederation(folder, name="north"))
        port = prepared(federation, HOST if wire is None else wire.outside)
        found(federation, model)
        far = parts.enter_context(Relay((HOST, port), delay_seconds=0.03))
        cut = parts.enter_context(Relay((HOST, port)))
        dial(federation, FAR, far.address)
        dial(federation, CUT, cut.address)
        if wire is not None:
            dial(federation, WIRED, f"{wire.outside}:{port}")
        start_sites(federation, folder, wire)
        play = Play(federation, folder)
        for site in SITES:
            play.until_said(site, "participant_started")
        phases = {phase: {"quorum": QUORUM, "window_seconds": seconds} for phase, seconds in WINDOWS.items()}
        create_run(federation, RUN, model, rounds=LAST - 1, participants=len(SITES), **phases)
        played = Played(folder, has_wire=wire is not None)
        disturb(play, cut, wire, port, played)
        for number in range(1, LAST + 1):
            played.rounds[number] = play.until_round(number, *OVER)
        played.received = [
            (str(event["actor"]).removeprefix("participants/"), int(str(event["subject"]).rsplit("/", 1)[-1]))
            for event in federation.admin.audit_events()
            if event["action"] == "update_received"
        ]
    return played


def disturb(play: Play, cut: Relay, wire: Namespace | None, port: int, played: Played) -> None:
    """Everything that happens to the networks, in the order of the rounds."""
    play.at(CUT, f"deposit_shares@{KEYS}", disturb=cut.cut)
    play.until_round(KEYS, *OVER)
    cut.heal()

    if wire is not None:
        wire.slow("40mbit")
        wire.rules(f"output tcp dport {port} numgen random mod 100 < 10 counter drop")
    play.at(CUT, f"report_prepared@{TRAINING}", disturb=cut.cut)
    play.until_round(TRAINING, *OVER)
    cut.heal()
    if wire is not None:
        played.dropped_packets = wire.counted()
        wire.fast()
        wire.rules()

    play.at(CUT, f"{MID_UPLOAD}@{COLLECTING}", disturb=cut.cut)
    play.until_round(COLLECTING, *OVER)
    cut.heal()

    play.at(CUT, f"{MID_UPLOAD}@{RESET}", disturb=cut.reset)
    if wire is not None:
        play.at(WIRED, f"{MID_UPLOAD}@{RESET}", disturb=lambda: wire.rules(f"output tcp dport {port} counter drop"))
        while (vanished := wire.counted()) == 0:
            time.sleep(POLL_SECONDS)
        played.vanished_packets = vanished
        # And when it has not noticed yet, as a firewall does that has restarted:
        wire.rules(f"output tcp dport {port} reject with tcp reset")
        play.until_said(WIRED, "task_to_be_tried_again")
        wire.rules()

    play.at(CUT, f"reveal_shares@{UNMASKING}", disturb=cut.cut)
    play.until_round(FORMING, "training", *OVER)
    cut.heal()


def prepared(federation: LocalFederation, outside: str) -> int:
    """Write the coordinator's configuration so that it is found from outside, too; its port for participants."""
    federation.prepare_coordinator()
    file = federation.coordinator_config
    text = file.read_text()
    port = int(re.findall(r"\[participants\]\nlisten = \"[\d.]+:(\d+)\"", text)[0])
    text = text.replace(f'listen = "{HOST}:{port}"', f'listen = "0.0.0.0:{port}"')
    file.write_text(text.replace(f'host_names = ["{HOST}"]', f'host_names = ["{HOST}", "{outside}"]'))
    return port


def found(federation: LocalFederation, model: BaseModel) -> None:
    """Start the coordinator and enrol the sites: as `benchmarks.federation.found`, without a process for each step."""
    federation.start_coordinator()
    for site in SITES:
        folder = federation.site_folder(site)
        folder.mkdir(parents=True)
        (folder / BASE_MODEL_FILE).write_text(model.to_json())
        (folder / "policy.toml").write_text(POLICY)
        token = str(federation.admin.create_join_token(site, ttl_seconds=3600)["token"])
        enroll(IdentityFolder(folder / "state" / "identity"), token, SystemClock())
    drafted = federation.admin.draft_charter(
        participants=SITES, least_cohort=3, colluders=None, base_model_digests=(model.digest,)
    )
    charter = str(drafted["charter_json"])
    digest = str(federation.admin.publish_charter(charter)["digest"])
    for site in SITES:
        (federation.site_folder(site) / "charter.json").write_text(charter)
        federation.site_config(site).write_text(CONFIG.format(digest=digest, level="info"))


def dial(federation: LocalFederation, site: str, address: str) -> None:
    config = federation.site_config(site)
    config.write_text(config.read_text() + f'[coordinator]\naddress = "{address}"\n')


def start_sites(federation: LocalFederation, folder: Path, wire: Namespace | None) -> None:
    for site in SITES:
        if site not in POINTS:
            federation.start_site(site, SITE)
            continue
        words = [sys.executable, "-m", "tests.system.cut_site", ",".join(POINTS[site]), str(folder)]
        if site == WIRED and wire is None:
            words = list(SITE)
        federation.start_site(site, wire.command(*words) if site == WIRED and wire is not None else words)


# --- what is claimed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "number"), [("keys", KEYS), ("training", TRAINING), ("collecting", COLLECTING)], ids=str
)
def test_a_round_closes_with_those_who_are_there_and_the_site_that_was_cut_is_in_the_next(played, phase, number):
    assert played.rounds[number]["state"] == "succeeded"
    assert CUT not in played.survivors(number)
    assert len(played.survivors(number)) >= QUORUM
    # It has come to where the next disturbance waits for it.
    assert any(point.endswith(f"@{number + 1}") for point in played.reached)


def test_a_site_that_is_cut_before_it_reveals_is_not_waited_for_and_its_update_counts(played):
    assert played.rounds[UNMASKING]["state"] == "succeeded"
    assert CUT in played.survivors(UNMASKING)


def test_a_round_forms_while_a_site_is_cut_and_that_site_is_there_at_the_end(played):
    assert played.rounds[FORMING]["state"] == "succeeded"
    assert len(played.survivors(FORMING)) >= QUORUM
    assert CUT in played.survivors(LAST)


def test_an_upload_whose_connection_is_reset_goes_on_at_its_last_durable_chunk(played):
    assert played.sent(CUT, RESET) == [0, SEGMENT_CHUNKS]
    assert [event["chunk"] for event in played.events(CUT, "upload_resumed") if event["round"] == RESET] == [
        SEGMENT_CHUNKS
    ]
    assert CUT in played.survivors(RESET)


def test_an_upload_that_a_firewall_drops_and_rejects_midway_goes_on_at_its_last_durable_chunk(played):
    if not played.has_wire:
        pytest.skip("network namespaces need root")
    assert played.vanished_packets > 0
    assert played.sent(WIRED, RESET) == [0, SEGMENT_CHUNKS]
    assert WIRED in played.survivors(RESET)


def test_an_upload_over_a_slow_link_that_loses_packets_completes_in_one_go(played):
    if not played.has_wire:
        pytest.skip("network namespaces need root")
    assert played.dropped_packets > 0
    assert played.sent(WIRED, TRAINING) == [0]
    assert WIRED in played.survivors(TRAINING)


def test_a_site_that_is_far_away_takes_part_and_sends_each_update_once(played):
    took_part = [number for number in played.rounds if FAR in played.survivors(number)]
    assert LAST in took_part
    assert [played.received.count((FAR, number)) for number in took_part] == [1] * len(took_part)


def test_a_site_that_was_cut_five_times_has_a_few_lines_in_its_log_and_no_failure_of_its_own(played):
    assert played.events(CUT, "daemon_turn_broken") == []
    assert played.events(CUT, "task_failed") == []
    assert len(played.events(CUT, "coordinator_unreachable")) <= 3
