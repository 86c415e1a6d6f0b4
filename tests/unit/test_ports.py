"""Ports that the demo and the tests give to their processes: nobody else gets them meanwhile."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from demo import ports
from demo.ports import HOST, free_ports


def test_no_port_is_given_twice_and_each_can_be_listened_on_again_and_again() -> None:
    found = [*free_ports(20), *free_ports(20)]
    assert len(set(found)) == len(found) == 40
    for _ in range(2):
        with socket.create_server((HOST, found[0])):
            pass


def test_another_process_is_not_given_what_this_one_has() -> None:
    ours = free_ports(3)
    words = f"from demo.ports import free_ports; free_ports(1, among={ours})"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=False)
    assert "1 ports were wanted, and 0 of 3 are free" in done.stderr


def test_a_port_on_which_somebody_listens_is_not_given() -> None:
    with socket.create_server((HOST, 0)) as server, pytest.raises(OSError, match="0 of 1"):
        free_ports(1, among=[server.getsockname()[1]])


def test_the_ports_are_none_that_the_kernel_gives_to_connections_by_itself() -> None:
    with socket.socket() as any_one:
        any_one.bind((HOST, 0))
        assert any_one.getsockname()[1] not in ports._PORTS
