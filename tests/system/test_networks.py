"""Real networks between a site and its coordinator: proxies, balancers, IPv6, boxes that open TLS, clocks that are off.

For each obstacle the same reason is said by `check`, by the enrolment and by the daemon; and where something is in the
way that can be borne, nothing is lost.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from accord.v1 import round_pb2, round_pb2_grpc
from benchmarks.made_up_site import DescribedModel, MadeUpTrainer
from common.basemodel import describe
from common.clock import SystemClock
from common.errors import AccordError, ClockWrong, ProxyFailed, TlsIntercepted
from common.identifiers import FederationId
from common.rpc.channels import (
    CLIENT_PING_SECONDS,
    LEAST_CLIENT_PING_SECONDS,
    LEAST_PING_INTERVAL_SECONDS,
    SERVER_PING_SECONDS,
)
from common.service_manager import ServiceManager
from demo.federation import leashed
from participant.app import serving
from participant.cli import status as status_command
from participant.cli.enroll import enroll_site
from participant.cli.parser import build_parser
from participant.config import MOST_QUIET_SECONDS, load_config
from participant.contact import CONTACT_FILE
from participant.daemon import Daemon
from participant.identity import IdentityFolder
from participant.masking import EVIDENCE_WAIT_SECONDS
from participant.network import looking
from participant.network.dialling import POLL_SECONDS, dial_for_uploads
from participant.network.looking import Obstacle, Papers
from participant.network.route import NO_PROXY_VARIABLES, PROXY_VARIABLES, Route, straight_to
from participant.policy_file import load_policy
from participant.preflight import Finding, Site, Verdict, preflight
from tests.rpc.background import coordinator_in_background
from tests.rpc.parts import HOST, Pki
from tests.system.networks import ConnectProxy, Namespace, Relay, full_server, haproxy, silent_server

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

WAIT_SECONDS = 60.0
LAYERS = ("name", "port", "tls", "call", "clock")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in (*PROXY_VARIABLES, *NO_PROXY_VARIABLES):
        monkeypatch.delenv(name, raising=False)


def set_coordinator(config: Path, **settings: object) -> Path:
    """Write [coordinator] anew."""
    text = config.read_text().split("\n[coordinator]")[0]
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())
    config.write_text(f"{text}\n[coordinator]\n{lines}\n")
    return config


def findings(config: Path) -> dict[str, Finding]:
    site = Site(config, clock=SystemClock())
    found = preflight(site, chosen=lambda name: name in LAYERS)
    return {finding.check: finding for finding in found if finding.check in LAYERS}


def first_failure(config: Path) -> Finding:
    return next(finding for finding in findings(config).values() if finding.verdict is Verdict.FAILED)


def enrolling(config: Path, token: str) -> AccordError:
    with pytest.raises(AccordError) as caught:
        enroll_site(load_config(config), token)
    return caught.value


class Ear:
    """A service manager's socket, and the states that the daemon tells it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(WAIT_SECONDS)

    def until(self, words: str) -> str:
        while words not in (heard := self.socket.recv(8192).decode()):
            pass
        return heard


@contextmanager
def built(config: Path, *, manager: ServiceManager | None = None) -> Iterator[Daemon]:
    loaded = load_config(config)
    model = describe(config.parent / "model")
    with serving(
        loaded,
        policy=load_policy(loaded.policy_file),
        trainer=MadeUpTrainer(),
        base_models=DescribedModel(model),
        clock=SystemClock(),
        manager=manager,
    ) as daemon:
        yield daemon


@contextmanager
def working(config: Path) -> Iterator[Ear]:
    """A whole daemon in a thread; yields what its service manager hears."""
    ear, stop = Ear(config.parent / "notify"), threading.Event()
    with closing(ear.socket), built(config, manager=ServiceManager(str(ear.path))) as daemon:
        thread = threading.Thread(target=daemon.run, args=(stop,))
        thread.start()
        try:
            yield ear
        finally:
            stop.set()
            thread.join(WAIT_SECONDS)


def contact(config: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((config.parent / "state" / CONTACT_FILE).read_text())
    return value


def status(config: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `accord-participant status --json` says."""
    capsys.readouterr()
    status_command.execute(build_parser().parse_args(["status", "--config", str(config), "--json"]))
    # The daemon of this process logs beside it.
    text = capsys.readouterr().out
    value: dict[str, Any] = json.JSONDecoder().raw_decode(text[text.index("{\n") :])[0]
    return value


# --- an HTTP proxy ---------------------------------------------------------------------------------------------------


def test_a_site_enrols_and_works_through_a_proxy_with_a_password_whatever_the_environment_says(
    config, coordinator, monkeypatch
):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "*")
    (config.parent / "password").write_text("p@ss:w/rd%\n")
    with ConnectProxy(credentials="site one:p@ss:w/rd%") as proxy:
        set_coordinator(
            config, proxy=f"http://site%20one@{proxy.address}", proxy_password_file=str(config.parent / "password")
        )
        enroll_site(load_config(config), coordinator.invite("bank"))
        found = findings(config)
        with built(config) as daemon:
            assert daemon.turn(0)
    assert {one.verdict for one in found.values()} == {Verdict.OK}, found
    assert f"through the proxy {proxy.address}" in found["port"].found
    ports = {coordinator.enrollment_port, coordinator.port}
    assert set(proxy.asked) == {f"{HOST}:{port}" for port in ports}
    assert "p@ss" not in repr(load_config(config).coordinator.line(f"{HOST}:1"))


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY"])
def test_the_environments_proxy_counts_unless_the_host_is_excepted_or_the_configuration_says_none(
    enrolled, monkeypatch, name
):
    with ConnectProxy() as proxy:
        monkeypatch.setenv(name, f"http://{proxy.address}")
        with built(enrolled) as daemon:
            assert daemon.turn(0)
        through = len(proxy.asked)
        assert through > 0
        monkeypatch.setenv(name.replace("https", "no").replace("HTTPS", "NO"), "127.0.0.0/8")
        with built(enrolled) as daemon:
            assert daemon.turn(0)
        monkeypatch.delenv(name.replace("https", "no").replace("HTTPS", "NO"))
        set_coordinator(enrolled, proxy="none")
        with built(enrolled) as daemon:
            assert daemon.turn(0)
        assert len(proxy.asked) == through


@dataclass(frozen=True)
class Refusal:
    """How a proxy refuses, and what a person is told."""

    proxy: Callable[[], ConnectProxy]
    found: str
    action: str


REFUSALS = {
    "no password": Refusal(lambda: ConnectProxy(credentials="u:p"), "407", "coordinator.proxy_password_file"),
    "kerberos alone": Refusal(lambda: ConnectProxy(credentials="u:p", scheme="Negotiate"), "407", "takes Negotiate"),
    "forbidden": Refusal(lambda: ConnectProxy(allows=False), "403", "allow CONNECT to 127.0.0.1"),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_a_proxy_that_refuses_is_named_with_its_answer_and_what_to_do(enrolled, refusal):
    with refusal.proxy() as proxy:
        finding = first_failure(set_coordinator(enrolled, proxy=f"http://{proxy.address}"))
    assert (finding.check, finding.reason) == ("port", "PROXY_FAILED")
    assert proxy.address in finding.found
    assert refusal.found in finding.found
    assert refusal.action in finding.action


def test_an_enrolment_through_a_proxy_that_refuses_ends_with_the_proxys_reason(config, coordinator):
    with ConnectProxy(allows=False) as proxy:
        error = enrolling(set_coordinator(config, proxy=f"http://{proxy.address}"), coordinator.invite("clinic"))
    assert isinstance(error, ProxyFailed)
    assert f"ask the proxy's administrator to allow CONNECT to {HOST}:{coordinator.enrollment_port}" in error.message


def test_a_daemon_behind_a_proxy_says_why_it_waits_and_goes_on_when_the_password_is_right(enrolled, capsys):
    password = enrolled.parent / "password"
    password.write_text("yesterday's")
    with ConnectProxy(credentials="accord:today's") as proxy:
        set_coordinator(enrolled, proxy=f"http://accord@{proxy.address}", proxy_password_file=str(password))
        with working(enrolled) as ear:
            said = ear.until("PROXY_FAILED")
            assert "does not take user accord with this password" in said
            told = status(enrolled, capsys)
            assert told["daemon_is_running"]
            assert told["contact"]["reason"] == "PROXY_FAILED"
            assert "does not take user accord" in told["contact"]["message"]
            password.write_text("today's")
            ear.until("STATUS=in touch with the coordinator")
            assert status(enrolled, capsys)["contact"]["reason"] == ""


def test_a_proxy_that_is_down_is_told_from_a_coordinator_that_is_down(enrolled):
    with closing(socket.create_server((HOST, 0))) as taken:
        nowhere = f"{HOST}:{taken.getsockname()[1]}"
    finding = first_failure(set_coordinator(enrolled, proxy=f"http://{nowhere}"))
    assert (finding.check, finding.reason) == ("port", "PROXY_FAILED")
    assert f"the proxy {nowhere} cannot be reached" in finding.found
    finding = first_failure(set_coordinator(enrolled, address=nowhere))
    assert (finding.check, finding.reason) == ("port", "CONNECTION_REFUSED")


# --- a balancer ------------------------------------------------------------------------------------------------------


def test_polls_shorter_than_a_balancers_limit_keep_their_connection_and_a_quiet_one_that_is_cut_costs_nothing(
    enrolled, coordinator, tmp_path
):
    with (
        Relay((HOST, coordinator.port)) as relay,
        haproxy(tmp_path, "", mode="tcp", server=relay.address, idle_seconds=10) as port,
    ):
        config = load_config(set_coordinator(enrolled, address=f"{HOST}:{port}", poll_seconds=1))
        identity = IdentityFolder(config.identity_directory).load()
        lost, before = threading.Event(), relay.connections
        with built(enrolled) as daemon, dial_for_uploads(identity, config.coordinator.line("")) as quiet:
            stub = round_pb2_grpc.RoundServiceStub(quiet)
            stub.GetCharter(round_pb2.GetCharterRequest(), timeout=WAIT_SECONDS)
            quiet.subscribe(lambda state: lost.set() if state is grpc.ChannelConnectivity.IDLE else None)
            for _ in range(13):
                assert daemon.turn(config.coordinator.poll_seconds)
            # Longer than the balancer bears, and over one connection.
            assert lost.wait(WAIT_SECONDS)
            assert relay.connections - before == 2
            stub.GetCharter(round_pb2.GetCharterRequest(), timeout=WAIT_SECONDS)
            assert relay.connections - before == 3
        assert contact(enrolled)["reason"] == ""


def test_nothing_is_quiet_for_a_minute_unless_a_site_asks_for_it():
    quiet = (POLL_SECONDS, CLIENT_PING_SECONDS, SERVER_PING_SECONDS, EVIDENCE_WAIT_SECONDS, MOST_QUIET_SECONDS)
    assert max(quiet) < 60
    assert LEAST_CLIENT_PING_SECONDS > LEAST_PING_INTERVAL_SECONDS


# --- IPv6 ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")


@pytest.mark.usefixtures("ipv6")
def test_a_site_enrols_and_works_over_ipv6_straight_and_through_a_proxy(config, tmp_path):
    with coordinator_in_background(tmp_path / "c", host="[::1]", listen="[::]") as coordinator:
        coordinator.publish(coordinator.charter())
        enroll_site(load_config(config), coordinator.invite("bank"))
        found = findings(config)
        assert {one.verdict for one in found.values()} == {Verdict.OK}, found
        assert f"[::1]:{coordinator.port} answers" in found["port"].found
        with built(config) as daemon:
            assert daemon.turn(0)
        with ConnectProxy() as proxy:
            set_coordinator(config, proxy=f"http://{proxy.address}")
            assert {one.verdict for one in findings(config).values()} == {Verdict.OK}
            with built(config) as daemon:
                assert daemon.turn(0)
            assert set(proxy.asked) == {f"[::1]:{coordinator.port}"}


# --- boxes that open TLS ---------------------------------------------------------------------------------------------


@contextmanager
def box_in_front(folder: Path, pki: Pki, *, port: int, mode: str) -> Iterator[int]:
    """A haproxy that ends TLS with a certificate of `pki` and goes on in TLS, without a certificate of its own."""
    folder.mkdir(exist_ok=True)
    pem = folder / "box.pem"
    pem.write_bytes(pki.folder.server_certificate.read_bytes() + pki.folder.server_key.read_bytes())
    server = f"{HOST}:{port} ssl verify none alpn h2"
    with haproxy(folder, f"ssl crt {pem} alpn h2", mode=mode, server=server) as box:
        yield box


def test_a_box_with_a_certificate_of_another_ca_is_refused_by_check_and_daemon_with_its_issuer(
    enrolled, coordinator, tmp_path
):
    inspector = Pki.create(tmp_path / "inspector", FederationId("inspector"))
    with box_in_front(tmp_path / "box", inspector, port=coordinator.port, mode="http") as box:
        set_coordinator(enrolled, address=f"{HOST}:{box}")
        finding = first_failure(enrolled)
        with working(enrolled) as ear:
            said = ear.until("TLS_INTERCEPTED")
    assert (finding.check, finding.reason) == ("tls", "TLS_INTERCEPTED")
    assert "exempt" in finding.action
    for text in (finding.found, said):
        assert "was issued by CN=inspector coordinator CA" in text


@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_a_box_with_the_federations_certificate_that_goes_on_without_the_sites_is_told_from_the_coordinator(
    enrolled, coordinator, tmp_path, mode
):
    with box_in_front(tmp_path / "box", coordinator.pki, port=coordinator.port, mode=mode) as box:
        finding = first_failure(set_coordinator(enrolled, address=f"{HOST}:{box}"))
    assert (finding.check, finding.reason) == ("tls", "TLS_INTERCEPTED")
    assert "does not ask for this site's certificate" in finding.found
    assert "tell the federation's operator" in finding.action


def test_an_enrolment_through_a_box_that_opens_tls_ends_with_the_issuer_and_leaves_the_token_unused(
    config, coordinator, tmp_path
):
    inspector = Pki.create(tmp_path / "inspector", FederationId("inspector"))
    token = coordinator.invite("bank")
    behind = coordinator.enrollment_port
    with (
        box_in_front(tmp_path / "box", inspector, port=behind, mode="http") as box,
        ConnectProxyTo(box) as proxy,
    ):
        error = enrolling(set_coordinator(config, proxy=f"http://{proxy.address}"), token)
    assert isinstance(error, TlsIntercepted)
    assert "issued by CN=inspector coordinator CA" in error.message
    assert "not by this federation's CA (CN=north coordinator CA" in error.message
    set_coordinator(config, proxy="none")
    assert enroll_site(load_config(config), token).participant == "bank"


class ConnectProxyTo(ConnectProxy):
    """A proxy that leads every connection into the box behind it, as an inspecting one does."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._box = port

    async def _route(self, reader: Any, writer: Any) -> tuple[str, int] | None:
        found = await super()._route(reader, writer)
        return None if found is None else (HOST, self._box)


# --- clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hours", "word"), [(1, "behind"), (-1, "ahead of")])
def test_a_clock_that_is_an_hour_off_is_said_by_check_daemon_and_status_until_it_is_right(
    enrolled, coordinator, monkeypatch, hours, word
):
    monkeypatch.setattr(coordinator.told, "time", SystemClock().now() + timedelta(hours=hours))
    finding = findings(enrolled)["clock"]
    assert (finding.verdict, finding.reason) == (Verdict.FAILED, "CLOCK_WRONG")
    assert f"{word} the coordinator's" in finding.found
    with capture_logs() as logged, working(enrolled) as ear:
        said = ear.until("CLOCK_WRONG")
        assert f"{word} the coordinator's" in said
        assert f"{word} the coordinator's" in contact(enrolled)["clock"]
    assert "clock_wrong" in {line["event"] for line in logged}
    coordinator.told.time = None
    with built(enrolled) as daemon:
        assert daemon.turn(0)
    assert contact(enrolled)["clock"] == ""


def test_a_certificate_from_a_coordinator_whose_clock_is_ahead_is_not_kept_and_the_reason_is_the_clock(
    config, coordinator, monkeypatch
):
    token = coordinator.invite("bank")
    monkeypatch.setattr(coordinator.told, "time", SystemClock().now() + timedelta(minutes=50))
    error = enrolling(config, token)
    assert isinstance(error, ClockWrong)
    assert "set this machine's clock" in error.message
    assert not IdentityFolder(config.parent / "state" / "identity").is_there
    coordinator.told.time = None
    assert enroll_site(load_config(config), coordinator.invite("bank")).participant == "bank"


def test_a_coordinators_certificate_of_the_future_is_a_clock_that_is_wrong(enrolled, coordinator, tmp_path):
    pki = coordinator.pki
    issued = pki.authority.issue_server([HOST], now=pki.now + timedelta(hours=1))
    pem = tmp_path / "future.pem"
    pem.write_bytes(issued.chain_pem.encode() + issued.key_pem)
    server = f"{HOST}:{coordinator.port} ssl verify none alpn h2"
    with haproxy(tmp_path, f"ssl crt {pem} alpn h2", mode="http", server=server) as port:
        set_coordinator(enrolled, address=f"{HOST}:{port}")
        finding = first_failure(enrolled)
    assert (finding.check, finding.reason) == ("tls", "CLOCK_WRONG")
    assert "minutes too early" in finding.found


# --- name, port, handshake -------------------------------------------------------------------------------------------


def obstacle(seen: object) -> Obstacle:
    assert isinstance(seen, Obstacle), seen
    return seen


def test_every_layer_that_can_fail_has_a_reason_of_its_own(enrolled, coordinator):
    papers = Papers.of(IdentityFolder(enrolled.parent / "state" / "identity"))
    now = SystemClock().now()
    kinds = [obstacle(looking.name_resolution(Route("coordinator.invalid", 443))).kind]
    with closing(socket.create_server((HOST, 0))) as taken:
        nowhere = taken.getsockname()[1]
    kinds.append(obstacle(looking.port(Route(HOST, nowhere))).kind)
    with full_server() as port:
        kinds.append(obstacle(looking.port(Route(HOST, port), seconds=0.3)).kind)
    with silent_server() as port:
        kinds.append(obstacle(looking.tls(Route(HOST, port), papers, now=now, seconds=0.3)).kind)
    with Relay((HOST, coordinator.port), host="127.0.0.2") as relay:
        kinds.append(obstacle(looking.tls(straight_to(relay.address), papers, now=now)).kind)
    assert [kind.reason for kind in kinds] == [
        "HOST_NOT_FOUND",
        "CONNECTION_REFUSED",
        "CONNECTION_FILTERED",
        "HANDSHAKE_STALLED",
        "WRONG_HOST",
    ]


LOOKS = """
import sys
from datetime import UTC, datetime
from participant.network import looking
from participant.network.route import straight_to
route, papers = straight_to(sys.argv[1]), looking.Papers(open(sys.argv[2]).read())
for _ in sys.stdin:
    seen = looking.port(route, seconds=1.0)
    if isinstance(seen, looking.Looked):
        seen = looking.tls(route, papers, now=datetime.now(UTC), seconds=1.0)
    print(seen.kind.reason, flush=True)
"""


def test_behind_a_firewall_that_drops_rejects_or_swallows_large_packets_each_has_its_reason(enrolled, coordinator):
    trust = enrolled.parent / "state" / "identity" / "trust.pem"
    with Namespace() as wire, Relay((HOST, coordinator.port), host=wire.outside) as relay:
        words = wire.command(sys.executable, "-c", LOOKS, relay.address, str(trust))
        with subprocess.Popen(leashed(words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as looker:
            assert looker.stdin is not None
            assert looker.stdout is not None
            found = []
            for rules in (
                # The relay has another address than the certificate is for: it was read, so all packets came through.
                (),
                (f"output tcp dport {relay.port} drop",),
                (f"output tcp dport {relay.port} reject with tcp reset",),
                (f"input tcp sport {relay.port} meta length > 600 drop",),
            ):
                wire.rules(*rules)
                looker.stdin.write("look\n")
                looker.stdin.flush()
                found.append(looker.stdout.readline().strip())
            looker.stdin.close()
    assert found == ["WRONG_HOST", "CONNECTION_FILTERED", "CONNECTION_REFUSED", "HANDSHAKE_STALLED"]
