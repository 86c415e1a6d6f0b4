"""What systemd would hear, heard by a real socket."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from common.service_manager import ServiceManager


class Ear:
    """A manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.socket.setblocking(False)
        self.address = address

    def heard(self) -> list[list[str]]:
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode().split("\n"))
            except BlockingIOError:
                return messages


@pytest.fixture(params=["path", "abstract"])
def ear(request, tmp_path: Path):
    address = str(tmp_path / "notify") if request.param == "path" else f"@accord-test-{os.getpid()}"
    ear = Ear(address)
    yield ear
    ear.socket.close()


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_ready_is_said_once_and_again_after_a_reload(ear):
    manager = ServiceManager(ear.address)
    manager.ready("connected")
    manager.ready("connected again")
    manager.reloading()
    manager.ready("as before")
    manager.stopping()
    first, reloading, again, stopping = ear.heard()
    assert first == ["READY=1", "STATUS=connected"]
    assert reloading[0] == "RELOADING=1"
    assert int(reloading[1].removeprefix("MONOTONIC_USEC=")) > 0
    assert again == ["READY=1", "STATUS=as before"]
    assert stopping[0] == "STOPPING=1"


def test_a_status_is_one_line_and_said_only_when_it_is_another(ear):
    manager = ServiceManager(ear.address)
    manager.status("training\nWATCHDOG=1")
    manager.status("training  WATCHDOG=1")
    assert ear.heard() == [["STATUS=training WATCHDOG=1"]]


def test_life_is_told_at_most_ten_times_within_the_watchdog(ear):
    time = Time()
    manager = ServiceManager(ear.address, watchdog_seconds=10, monotonic=time)
    said = []
    for _ in range(40):
        manager.alive()
        said += ear.heard()
        time.now += 0.5
    assert said == [["WATCHDOG=1"]] * 20


def test_a_slow_step_has_a_bound_of_its_own_and_the_old_one_returns_whatever_happens(ear):
    manager = ServiceManager(ear.address, watchdog_seconds=10)
    with pytest.raises(ValueError, match="broken"), manager.slow(60):
        raise ValueError("broken")
    with manager.slow(5):
        pass
    assert ear.heard() == [["WATCHDOG_USEC=60000000", "WATCHDOG=1"], ["WATCHDOG_USEC=10000000", "WATCHDOG=1"]]


def test_nobody_is_told_of_life_where_nobody_watches(ear):
    manager = ServiceManager(ear.address)
    manager.alive()
    with manager.slow(60):
        pass
    assert ear.heard() == []


def test_the_managers_variables_are_not_for_the_processes_that_we_start(ear):
    environment = {"NOTIFY_SOCKET": ear.address, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid()), "A": "b"}
    manager = ServiceManager.from_environment(environment)
    assert environment == {"A": "b"}
    assert manager.watchdog_seconds == 3.0
    manager.alive()
    assert ear.heard() == [["WATCHDOG=1"]]


@pytest.mark.parametrize(("microseconds", "process"), [("3000000", "1"), ("0", ""), ("soon", "")])
def test_a_watchdog_that_is_not_ours_or_not_set_is_none(microseconds, process):
    manager = ServiceManager.from_environment({"WATCHDOG_USEC": microseconds, "WATCHDOG_PID": process})
    assert manager.watchdog_seconds is None


def test_a_manager_that_has_gone_breaks_nothing(tmp_path):
    manager = ServiceManager(str(tmp_path / "gone"), watchdog_seconds=1)
    manager.ready("connected")
    manager.alive()
    manager.stopping()
