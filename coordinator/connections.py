"""Keeps the listeners' connections within bounds: so many from one address, and none that says nothing.

A caller is known only once it calls; a connection that shakes no hand, or shakes it and then keeps silent, is nobody's
and still takes memory and a descriptor. The transport has no such limit for one address, so the process looks at its
own sockets from time to time and shuts those down that are too many. Knows nothing of what is called.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from common.log import get_logger

SWEEP_SECONDS: Final = 1.0
# The handshake alone may take half of it; a client that connects does so because it has something to call.
SILENT_SECONDS: Final = 30.0
DESCRIPTORS: Final = next((path for path in (Path("/proc/self/fd"), Path("/dev/fd")) if path.is_dir()), None)
MAPPED: Final = "::ffff:"
_NEVER_CLOSED: Final[list[int]] = []

log: Final = get_logger(__name__)


class Closing(Enum):
    """Why a connection was shut down; the value is a metric's label and an audit line's reason."""

    TOO_MANY = "TOO_MANY_CONNECTIONS"
    SILENT = "SILENT_CONNECTION"


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection."""

    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Seen:
    """An open connection to one of our ports. since: when it was first seen, by the stopwatch."""

    peer: Peer
    local_port: int
    since: float


def peer_of(text: str) -> Peer | None:
    """The peer as gRPC names it ("ipv4:10.0.0.7:4711", "ipv6:%5B::1%5D:4711"); None for what is no TCP address."""
    kind, _, rest = unquote(text).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdecimal():
        return None
    return Peer(host.strip("[]").removeprefix(MAPPED), int(port))


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many connections there may be: from one address (0 for any number), and of one caller with a certificate.

    silent_seconds: how long one may be there over which nobody known has called.
    """

    per_address: int
    per_caller: int
    silent_seconds: float = SILENT_SECONDS


def surplus(
    connections: Iterable[Seen], *, proven: Mapping[Peer, str], bounds: Bounds, now: float
) -> dict[Peer, Closing]:
    """Which connections to shut down. proven: who has called over a connection, by its certificate.

    Of an address with too many those go first over which nobody known has called, and the newest of them: who is at
    work stays at work, even behind the same address.
    """
    closing = {
        one.peer: Closing.SILENT
        for one in connections
        if one.peer not in proven and now - one.since > bounds.silent_seconds
    }
    of_address: defaultdict[str, list[Seen]] = defaultdict(list)
    of_caller: defaultdict[str, list[Seen]] = defaultdict(list)
    for one in connections:
        if one.peer in proven:
            of_caller[proven[one.peer]].append(one)
        if one.peer not in closing and bounds.per_address:
            of_address[one.peer.address].append(one)
    for found in of_caller.values():
        found.sort(key=lambda one: one.since)
        closing |= {one.peer: Closing.TOO_MANY for one in found[bounds.per_caller :]}
    for found in of_address.values():
        found.sort(key=lambda one: (one.peer not in proven, one.since))
        closing |= {one.peer: Closing.TOO_MANY for one in found[bounds.per_address :]}
    return closing


class Connections:
    """Watches the connections to some ports. `run` is a task of the event loop."""

    def __init__(
        self,
        *,
        bounds: Bounds,
        on_closed: Callable[[str, str, Closing], None],
        on_counted: Callable[[Mapping[int, int]], None] = lambda counts: None,
        stopwatch: Callable[[], float] = time.monotonic,
    ) -> None:
        """on_closed: hears the address of each connection that is shut down, and who has called over it, "" for nobody.

        on_counted: open ones by local port.
        """
        self._bounds = bounds
        self._on_closed = on_closed
        self._on_counted = on_counted
        self._stopwatch = stopwatch
        self._ports: frozenset[int] = frozenset()
        self._proven: dict[Peer, str] = {}
        self._since: dict[Peer, float] = {}

    def watch(self, ports: Iterable[int]) -> None:
        """The ports whose connections count."""
        self._ports = frozenset(ports)

    def prove(self, peer: str, actor: str) -> None:
        """Somebody with a certificate that counts has called over this connection."""
        found = peer_of(peer)
        if found is not None:
            self._proven[found] = actor

    def sweep(self) -> None:
        """Look at all connections once, and shut down those that are too many."""
        now = self._stopwatch()
        seen = [
            Seen(peer, port, self._since.get(peer, now)) for peer, port, _ in _connected(self._ports, shut=frozenset())
        ]
        self._since = {one.peer: one.since for one in seen}
        self._proven = {peer: actor for peer, actor in self._proven.items() if peer in self._since}
        counts = dict.fromkeys(self._ports, 0)
        for one in seen:
            counts[one.local_port] += 1
        self._on_counted(counts)
        closing = surplus(seen, proven=self._proven, bounds=self._bounds, now=now)
        if closing:
            for peer, _, is_shut in _connected(self._ports, shut=closing.keys()):
                if is_shut:
                    self._on_closed(peer.address, self._proven.get(peer, ""), closing[peer])

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                self.sweep()
            except OSError as error:  # no descriptor is left for looking; the next turn tries again
                log.warning("connections_not_swept", error=str(error))


def _socket_of(number: int) -> socket.socket | None:
    """A descriptor of our own for the socket behind a number; None if there is none any more.

    A file is never duplicated: closing any descriptor of a file gives up all locks that this process holds on it, and a
    database without its locks is soon a broken one.
    """
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            return None
        own = os.dup(number)
    except OSError:
        return None  # gone since it was listed
    if not stat.S_ISSOCK(os.fstat(own).st_mode):
        _NEVER_CLOSED.append(own)  # a file took the number in between
        return None
    try:
        return socket.socket(fileno=own)
    except OSError:  # of a kind that Python does not know
        os.close(own)
        return None


def _connected(ports: Collection[int], *, shut: Collection[Peer]) -> Iterator[tuple[Peer, int, bool]]:
    """This process's connections to the ports: peer, port, and whether it was shut down just now, as `shut` asks.

    Each is looked at through a descriptor of our own, so that a number which the transport closes and gives to another
    socket meanwhile is never mistaken for the one that was meant.
    """
    if DESCRIPTORS is None:
        return
    for entry in os.listdir(DESCRIPTORS):
        found = _socket_of(int(entry))
        if found is None:
            continue
        with found:
            try:
                if found.type != socket.SOCK_STREAM or found.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                port = found.getsockname()[1]
                if port not in ports:
                    continue
                host, far_port = found.getpeername()[:2]
            except OSError:
                continue  # it listens, or is gone
            peer = Peer(str(host).removeprefix(MAPPED), int(far_port))
            is_meant = peer in shut
            if is_meant:
                try:
                    found.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
            yield peer, port, is_meant
