"""Which connections are shut down, and that it is those of this process."""

from __future__ import annotations

import fcntl
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from coordinator.connections import Bounds, Closing, Connections, Peer, Seen, peer_of, surplus


def seen(address: str, port: int, since: float = 0.0) -> Seen:
    return Seen(Peer(address, port), 8443, since)


def decide(*connections: Seen, proven: tuple[Peer, ...] = (), per_address: int = 2, now: float = 1.0):
    known = {peer: f"participants/{peer.port}" for peer in proven}
    return surplus(connections, proven=known, bounds=Bounds(per_address, per_caller=4, silent_seconds=30), now=now)


def test_an_address_keeps_as_many_as_it_may_and_others_are_not_touched():
    many = [seen("10.0.0.1", port, since=port) for port in range(4)]
    other = [seen("10.0.0.2", port) for port in range(2)]
    assert decide(*many, *other) == {Peer("10.0.0.1", 2): Closing.TOO_MANY, Peer("10.0.0.1", 3): Closing.TOO_MANY}


def test_who_has_called_with_a_certificate_stays_and_a_newcomer_goes():
    late = Peer("10.0.0.1", 9)
    connections = [*(seen("10.0.0.1", port) for port in range(3)), seen(late.address, late.port, since=0.9)]
    assert late not in decide(*connections, proven=(late,))
    assert len(decide(*connections, proven=(late,))) == 2


def test_nobody_is_silent_for_longer_than_he_may_but_who_has_called_before():
    quiet, known = seen("10.0.0.1", 1), seen("10.0.0.1", 2)
    assert decide(quiet, known, proven=(known.peer,), now=31.0) == {quiet.peer: Closing.SILENT}
    assert decide(quiet, known, proven=(known.peer,), now=30.0) == {}


def test_a_caller_keeps_its_oldest_connections_wherever_they_come_from():
    mine = {Peer(f"10.0.0.{number}", 1): "participants/bank" for number in range(6)}
    connections = [seen(peer.address, peer.port, since=place) for place, peer in enumerate(mine)]
    others = {Peer("10.0.1.1", 1): "participants/clinic"}
    found = surplus(
        [*connections, seen("10.0.1.1", 1, since=9)], proven=mine | others, bounds=Bounds(0, per_caller=4), now=10
    )
    assert found == {Peer("10.0.0.4", 1): Closing.TOO_MANY, Peer("10.0.0.5", 1): Closing.TOO_MANY}


def test_behind_a_balancer_there_is_no_bound_on_one_address():
    assert decide(*(seen("10.0.0.1", port) for port in range(1000)), per_address=0) == {}


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("ipv4:10.0.0.7:4711", Peer("10.0.0.7", 4711)),
        ("ipv6:%5Bfe80::1%5D:4711", Peer("fe80::1", 4711)),
        ("ipv6:[::ffff:10.0.0.7]:4711", Peer("10.0.0.7", 4711)),
        ("unix:/run/accord.sock", None),
        ("", None),
    ],
)
def test_peers_are_read_as_the_transport_names_them(text, peer):
    assert peer_of(text) == peer


def test_locks_on_files_outlive_a_look_at_the_connections(tmp_path):
    """A process loses its locks on a file when it closes any descriptor of it: SQLite's database would be lost soon."""
    path = tmp_path / "locked"
    kept = Connections(bounds=Bounds(1, per_caller=4), on_closed=lambda address, actor, why: None)
    kept.watch([1])
    with path.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for _ in range(3):
            kept.sweep()
        another = f"import fcntl; fcntl.lockf(open({str(path)!r}, 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        done = subprocess.run([sys.executable, "-c", another], capture_output=True, text=True, check=False)
    assert "BlockingIOError" in done.stderr


def test_this_process_shuts_down_its_own_connections_and_no_others():
    closed: list[tuple[str, Closing]] = []
    with ExitStack() as stack:
        watched, other = (stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
        kept = Connections(
            bounds=Bounds(1, per_caller=4),
            on_closed=lambda address, actor, why: closed.append((address, why)),
            stopwatch=lambda: 0.0,
        )
        kept.watch([watched.getsockname()[1]])
        ends = []
        for server in (watched, watched, watched, other, other):
            client = stack.enter_context(socket.create_connection(server.getsockname()))
            ends.append((client, stack.enter_context(server.accept()[0])))
        kept.prove(f"ipv4:127.0.0.1:{ends[2][0].getsockname()[1]}", "participants/bank")

        kept.sweep()

        assert closed == [("127.0.0.1", Closing.TOO_MANY)] * 2
        assert [client.recv(1) for client, _ in ends[:2]] == [b"", b""]
        for client, server_end in ends[2:]:
            server_end.sendall(b"x")
            assert client.recv(1) == b"x"
