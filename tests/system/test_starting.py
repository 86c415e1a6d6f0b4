"""How a site starts: what stops it, with which code, what is only a warning, and what its service manager hears."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from common.clock import SystemClock
from common.identifiers import ParticipantId
from demo.federation import leashed
from participant.cli.exits import Exit
from participant.identity import IdentityFolder
from participant.preflight import Site, Verdict, before_start, hindrances
from tests.rpc.background import coordinator_in_background
from tests.site_files import write_site

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 100.0

pytestmark = pytest.mark.system


def verdicts(config: Path, *, will_enroll: bool = False) -> dict[str, Verdict]:
    site = Site(config, clock=SystemClock())
    return {finding.check: finding.verdict for finding in before_start(site, will_enroll=will_enroll)}


def hindered_by(config: Path) -> dict[str, str]:
    return {finding.check: finding.action for finding in hindrances(Site(config, clock=SystemClock()))}


def write_certificate(coordinator, config: Path, *, begin: timedelta, life: timedelta) -> None:
    """Give an enrolled site a certificate of another age."""
    folder = IdentityFolder(config.parent / "state" / "identity")
    issued = coordinator.pki.authority.issue_participant(
        folder.ensure_key().public_key(), ParticipantId("bank"), now=SystemClock().now() + begin, life=life
    )
    folder.certificate_file.write_text(issued.chain_pem)


class Ear:
    """A service manager's socket, read message by message."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(WAIT_SECONDS)

    def until(self, words: str) -> list[str]:
        """All messages up to the first that has these words."""
        heard: list[str] = []
        while not heard or words not in heard[-1]:
            heard.append(self.socket.recv(8192).decode())
        return heard


@contextmanager
def daemon(config: Path, ear: Path, *, watchdog_seconds: float = 0) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-m", "participant", "run", "--config", str(config)]
    environment = {"NOTIFY_SOCKET": str(ear), "PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"}
    if watchdog_seconds:
        environment["WATCHDOG_USEC"] = str(int(watchdog_seconds * 1e6))
    with (config.parent / "log.txt").open("ab") as log:
        process = subprocess.Popen(leashed(words), env=environment, stdout=log, stderr=log, cwd=ROOT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(WAIT_SECONDS)


# --- what stops a start ----------------------------------------------------------------------------------------------


def test_a_coordinator_that_is_away_is_a_warning_and_stops_no_start(config, tmp_path):
    with coordinator_in_background(tmp_path / "short") as short:
        short.enroll(config.parent / "state" / "identity")
    found = verdicts(config)
    assert found["port"] is Verdict.WARNING
    assert Verdict.FAILED not in found.values()
    assert "base_models" not in found  # would take minutes
    assert hindered_by(config) == {}


def test_a_site_that_is_not_enrolled_does_not_start_and_is_told_how(config):
    assert verdicts(config)["identity"] is Verdict.FAILED
    assert "join token" in hindered_by(config)["identity"]


def test_a_site_with_a_join_token_at_hand_is_not_hindered_by_the_lack_of_an_identity(config):
    found = verdicts(config, will_enroll=True)
    assert found["identity"] is Verdict.WARNING
    assert Verdict.FAILED not in found.values()


def test_an_expired_certificate_stops_a_start_because_nobody_renews_it(enrolled, coordinator):
    write_certificate(coordinator, enrolled, begin=-timedelta(days=3), life=timedelta(days=1))
    assert "enroll again" in hindered_by(enrolled)["certificate"]


def test_a_charter_that_is_not_the_pinned_one_stops_a_start(tmp_path, coordinator):
    site = write_site(tmp_path / "pinned", charter=f'file = "charter.json", digest = "{"00" * 32}"')
    coordinator.enroll(site.parent / "state" / "identity")
    (site.parent / "charter.json").write_bytes(coordinator.charter().to_bytes())
    assert set(hindered_by(site)) == {"charter"}


@pytest.mark.parametrize(
    ("mistake", "code"), [("data = ", Exit.CONFIG), ("unenrolled", Exit.REFUSED)], ids=["configuration", "identity"]
)
def test_what_somebody_has_to_put_right_ends_the_daemon_with_a_code_that_asks_for_no_restart(config, mistake, code):
    if mistake in config.read_text():
        config.write_text(config.read_text().replace(mistake, "dat = "))
    words = [sys.executable, "-m", "participant", "run", "--config", str(config), "--join-token-file", "nowhere"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    unit = (ROOT / "deploy" / "systemd" / "accord-participant.service").read_text()
    prevented = next(line for line in unit.splitlines() if line.startswith("RestartPreventExitStatus="))
    assert str(int(code)) in prevented.partition("=")[2].split()


# --- what the service manager hears ----------------------------------------------------------------------------------


def test_a_site_is_ready_once_the_coordinator_has_answered_and_reads_its_files_again(enrolled, tmp_path):
    ear = Ear(tmp_path / "notify")
    with daemon(enrolled, tmp_path / "notify", watchdog_seconds=9) as process:
        heard = ear.until("READY=1")
        assert "STATUS=in touch with the coordinator" in heard[-1]
        ear.until("WATCHDOG=1")

        policy, log = enrolled.parent / "policy.toml", enrolled.parent / "log.txt"
        right, was = policy.read_text(), enrolled.read_text()
        policy.write_text("nonsense = 1\n")
        process.send_signal(1)
        ear.until("RELOADING=1")
        ear.until("READY=1")
        assert b"configuration_not_read_again" in log.read_bytes()

        # Nothing is wrong with these files, but what they name cannot be had.
        policy.write_text(right)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            enrolled.write_text(f"{was}\n[metrics]\nport = {taken.getsockname()[1]}\n")
            process.send_signal(1)
            ear.until("RELOADING=1")
            ear.until("READY=1")
        assert b"configuration_not_taken_up" in log.read_bytes()
        assert process.poll() is None

        process.terminate()
        assert "STATUS=stopping" in ear.until("STOPPING=1")[-1]
        assert process.wait(WAIT_SECONDS) == 0


def test_a_site_whose_coordinator_is_away_is_ready_says_so_and_goes_on_trying(config, tmp_path):
    with coordinator_in_background(tmp_path / "short") as short:
        short.enroll(config.parent / "state" / "identity")
    ear = Ear(tmp_path / "notify")
    with daemon(config, tmp_path / "notify", watchdog_seconds=3):
        assert "STATUS=cannot reach the coordinator" in ear.until("READY=1")[-1]
        ear.until("WATCHDOG=1")
        ear.until("WATCHDOG=1")


def test_a_join_token_beside_the_daemon_enrols_a_site_once(config, coordinator, tmp_path):
    (tmp_path / "token").write_text(coordinator.invite("bank"))
    ear = Ear(tmp_path / "notify")
    words = [sys.executable, "-m", "participant", "run", "--config", str(config)]
    words += ["--join-token-file", str(tmp_path / "token")]
    for _ in range(2):  # the second time the token is spent, and of no matter
        process = subprocess.Popen(
            leashed(words),
            cwd=ROOT,
            env={"NOTIFY_SOCKET": str(tmp_path / "notify"), "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"},
        )
        try:
            ear.until("READY=1")
        finally:
            process.terminate()
            assert process.wait(WAIT_SECONDS) == 0
    assert IdentityFolder(config.parent / "state" / "identity").load().participant == "bank"
