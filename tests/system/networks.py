"""Networks as partners have them: relays that cut, reset and delay, a CONNECT proxy, haproxy, and a namespace.

All of it is told what to do from the test's own thread, and ends with its block, or with the test run.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

import pytest

from demo.federation import leashed
from demo.ports import free_ports
from tests.programs import debian_program

HOST: Final = "127.0.0.1"
READY_SECONDS: Final = 20.0
POLL_SECONDS: Final = 0.02
_PIECE_BYTES: Final = 64 * 1024

Target = tuple[str, int]


class Relay:
    """TCP to a target, in a thread of its own. `cut` is a partition: packets vanish, and nobody is told."""

    def __init__(self, target: Target | None, *, host: str = HOST, delay_seconds: float = 0.0) -> None:
        """host: where it listens. delay_seconds: one way. target: None where a subclass finds out."""
        self.port = 0
        self.connections = 0
        self.bytes_up = 0
        self._host = host
        self._target = target
        self._delay = delay_seconds
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._flowing = asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._on_loop(self._start)
        return self

    def __exit__(self, *_: object) -> None:
        self._on_loop(self._stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def address(self) -> str:
        return f"{self._host}:{self.port}"

    def cut(self) -> None:
        """From now on nothing gets through, and nothing is closed; new connections are taken and lead nowhere."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def heal(self) -> None:
        """What was on its way arrives now, as TCP sees to it after a partition."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    def reset(self) -> None:
        """End every connection with a reset to both sides, as a firewall that has lost its state does."""
        self._on_loop(self._reset)

    def _on_loop(self, work: Callable[[], Awaitable[None]]) -> None:
        async def done() -> None:
            await work()

        asyncio.run_coroutine_threadsafe(done(), self._loop).result(READY_SECONDS)

    async def _start(self) -> None:
        self._flowing.set()
        self._server = await asyncio.start_server(self._serve, self._host, 0)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _reset(self) -> None:
        for writer in self._open:
            with suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _route(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Target | None:
        """Where a connection goes; None if it was refused."""
        return self._target

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self._open.add(writer)
        far: asyncio.StreamWriter | None = None
        try:
            await self._flowing.wait()
            if (target := await self._route(reader, writer)) is None:
                return
            answers, far = await asyncio.open_connection(*target)
            self._open.add(far)
            await asyncio.gather(self._pump(reader, far, is_up=True), self._pump(answers, writer, is_up=False))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one side has gone, and so goes the other; or the relay ends
        finally:
            for one in (writer, far):
                if one is not None:
                    self._open.discard(one)
                    one.close()
            self._tasks.discard(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_up: bool) -> None:
        while piece := await source.read(_PIECE_BYTES):
            await self._flowing.wait()
            if self._delay:
                self._loop.call_later(self._delay, self._write, sink, piece)
            else:
                self._write(sink, piece)
            await sink.drain()
            self.bytes_up += len(piece) * is_up
        await asyncio.sleep(self._delay)
        with suppress(OSError):
            sink.write_eof()

    @staticmethod
    def _write(sink: asyncio.StreamWriter, piece: bytes) -> None:
        if not sink.is_closing():
            sink.write(piece)


class ConnectProxy(Relay):
    """An HTTP proxy that knows CONNECT. credentials: "user:password" that it wants. allows: whether it connects."""

    def __init__(self, *, credentials: str = "", allows: bool = True, scheme: str = "Basic") -> None:
        super().__init__(None)
        self.asked: list[str] = []
        self.credentials = credentials
        self.allows = allows
        self._scheme = scheme

    async def _route(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Target | None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, authority, _ = head[0].split(" ")
        host, _, port = authority.rpartition(":")
        self.asked.append(authority)
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        wanted = "Basic " + base64.b64encode(self.credentials.encode()).decode()
        if self.credentials and headers.get("proxy-authorization") != wanted:
            return self._refuse(writer, "407 Proxy Authentication Required", f"Proxy-Authenticate: {self._scheme}\r\n")
        if method != "CONNECT" or not self.allows:
            return self._refuse(writer, "403 Forbidden")
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return host.strip("[]"), int(port)

    @staticmethod
    def _refuse(writer: asyncio.StreamWriter, status: str, header: str = "") -> None:
        writer.write(f"HTTP/1.1 {status}\r\n{header}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())


@contextmanager
def haproxy(folder: Path, listen: str, *, mode: str, server: str, idle_seconds: int = 60) -> Iterator[int]:
    """A real haproxy in front of one server; yields its port. listen, server: options behind the two addresses."""
    program = debian_program("haproxy", package="haproxy")
    (port,) = free_ports(1)
    file = folder / "haproxy.cfg"
    file.write_text(f"""
global
    maxconn 100
    ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
    mode {mode}
    timeout connect 5s
    timeout client {idle_seconds}s
    timeout server {idle_seconds}s
listen accord
    bind {HOST}:{port} {listen}
    server coordinator {server}
""")
    with (folder / "haproxy.log").open("ab") as log:
        child = subprocess.Popen(leashed([str(program), "-db", "-f", str(file)]), stdout=log, stderr=log)
    try:
        give_up = time.monotonic() + READY_SECONDS
        while not answers(port):
            assert child.poll() is None, (folder / "haproxy.log").read_text()
            assert time.monotonic() < give_up, "haproxy does not listen"
            time.sleep(POLL_SECONDS)
        yield port
    finally:
        child.kill()
        child.wait()


def answers(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def silent_server() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server((HOST, 0)) as server:
        yield int(server.getsockname()[1])


@contextmanager
def full_server() -> Iterator[int]:
    """A port whose queue is full, so that the kernel drops what asks for a connection: filtered, for who asks."""
    with socket.socket() as server:
        server.bind((HOST, 0))
        server.listen(0)
        port = int(server.getsockname()[1])
        waiting = [socket.socket() for _ in range(4)]
        try:
            for one in waiting:
                one.setblocking(False)
                one.connect_ex((HOST, port))
            yield port
        finally:
            for one in waiting:
                one.close()


class Namespace:
    """A network of its own behind a cable (veth) to this machine. It is gone when the test run is.

    inside, outside: the two ends' addresses.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("network namespaces need root")
        for program in ("ip", "tc"):
            debian_program(program, package="iproute2")
        debian_program("nft", package="nftables")
        # 198.18.0.0/15 is set aside for such tests (RFC 2544); four addresses for each process.
        block = os.getpid() % 16384
        base = (198 << 24) + (18 << 16) + block * 4
        self.outside, self.inside = (socket.inet_ntoa(struct.pack("!I", base + n)) for n in (1, 2))
        self._link = f"accord{os.getpid() % 10**8}"
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        unshare = str(debian_program("unshare", package="util-linux"))
        if subprocess.run([unshare, "--net", "true"], capture_output=True, check=False).returncode != 0:
            pytest.skip("this machine lets its root have no network namespaces")
        self._child = subprocess.Popen(leashed([unshare, "--net", "sleep", "infinity"]))
        self._wait_for_namespace(self._child.pid)
        cable = ["type", "veth", "peer", "name", "site", "netns", str(self._child.pid)]
        laid = subprocess.run(["ip", "link", "add", self._link, *cable], capture_output=True, text=True, check=False)
        if laid.returncode != 0:
            self.__exit__()
            pytest.skip(f"this machine lets its root lay no cable: {laid.stderr.strip()}")
        run("ip", "addr", "add", f"{self.outside}/30", "dev", self._link)
        run("ip", "link", "set", self._link, "up")
        self.run("ip", "addr", "add", f"{self.inside}/30", "dev", "site")
        self.run("ip", "link", "set", "site", "up")
        self.run("ip", "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child is not None
        self._child.kill()
        self._child.wait()
        # The cable goes with the namespace, only a moment later.
        subprocess.run(["ip", "link", "del", self._link], capture_output=True, check=False)

    def command(self, *words: str) -> list[str]:
        """The command line that runs a program inside."""
        assert self._child is not None
        return [str(debian_program("nsenter", package="util-linux")), "-t", str(self._child.pid), "-n", *words]

    def run(self, *words: str) -> str:
        return run(*self.command(*words))

    def rules(self, *rules: str) -> None:
        """Replace the firewall inside by these nft rules for what comes in (input) and goes out (output)."""
        subprocess.run(self.command("nft", "delete", "table", "inet", "site"), capture_output=True, check=False)
        chains = {
            chain: "\n".join(f"    {rule.removeprefix(chain)}" for rule in rules if rule.startswith(chain + " "))
            for chain in ("input", "output")
        }
        text = "\n".join(
            f"  chain {chain} {{\n    type filter hook {chain} priority 0;\n{body}\n  }}"
            for chain, body in chains.items()
        )
        subprocess.run(self.command("nft", "-f", "-"), input=f"table inet site {{\n{text}\n}}\n", text=True, check=True)

    def counted(self) -> int:
        """Packets that the first rule with a counter was about."""
        return int(re.findall(r"counter packets (\d+)", self.run("nft", "list", "ruleset"))[0])

    def slow(self, rate: str) -> None:
        """Let what leaves go no faster than that, such as 16mbit."""
        self.run(
            "tc", "qdisc", "replace", "dev", "site", "root", "tbf", "rate", rate, "burst", "32kbit", "latency", "400ms"
        )

    def fast(self) -> None:
        self.run("tc", "qdisc", "del", "dev", "site", "root")

    @staticmethod
    def _wait_for_namespace(pid: int) -> None:
        """The child has unshared once its namespace is another than ours."""
        own = os.readlink("/proc/self/ns/net")
        give_up = time.monotonic() + READY_SECONDS
        while True:
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/ns/net") != own:
                    return
            assert time.monotonic() < give_up, "no network namespace"
            time.sleep(POLL_SECONDS)


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout
