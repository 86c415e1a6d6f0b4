"""Which way the coordinator is dialled: straight, or through an HTTP proxy that is asked to CONNECT.

The same answer holds for gRPC's channels and for the plain sockets of `looking`, so that a check sees what the daemon
sees. What the environment says counts only where the configuration does not say anything else.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import socket
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from common.errors import InvalidArgument, ProxyFailed

CONNECT_SECONDS: Final = 10.0
# Looked at in this order, as gRPC and curl do; the names in capitals are what most administrators write.
PROXY_VARIABLES: Final = ("grpc_proxy", "https_proxy", "HTTPS_PROXY", "http_proxy")
NO_PROXY_VARIABLES: Final = ("no_grpc_proxy", "no_proxy", "NO_PROXY")

_DEFAULT_PROXY_PORT: Final = 80
_NO_PROXY_URL: Final = "is not a proxy's URL, such as http://proxy.example.org:3128"
_MOST_PROXY_ANSWER_BYTES: Final = 16 * 1024

Environment = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. user: "" where it asks for none. origin: which setting names it, for whoever has to change it."""

    host: str
    port: int
    user: str = ""
    password: str = field(default="", repr=False)
    origin: str = "coordinator.proxy"

    @property
    def authority(self) -> str:
        return authority(self.host, self.port)

    @property
    def authorization(self) -> str:
        """The value of Proxy-Authorization; "" for a proxy that asks for no user. Never to be logged."""
        if not self.user:
            return ""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True)
class Route:
    """How to get to the coordinator: its host and port, and the proxy on the way, if any."""

    host: str
    port: int
    proxy: Proxy | None = None

    @property
    def target(self) -> str:
        return authority(self.host, self.port)

    @property
    def first_hop(self) -> tuple[str, int]:
        return (self.proxy.host, self.proxy.port) if self.proxy else (self.host, self.port)

    @property
    def via(self) -> str:
        return f" through the proxy {self.proxy.authority}" if self.proxy else ""


def authority(host: str, port: int) -> str:
    """host:port, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_proxy(text: str, *, origin: str = "coordinator.proxy") -> Proxy:
    """A proxy's URL, http://[user[:password]@]host[:port]. Raises InvalidArgument, which never quotes a password."""
    try:
        parts = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
    except ValueError:  # brackets that do not match
        raise InvalidArgument(f"{origin}: {_NO_PROXY_URL}") from None
    if parts.scheme != "http":
        raise InvalidArgument(
            f"{origin}: {parts.scheme}:// proxies are not supported; name one that takes plain HTTP CONNECT, as "
            "http://host:port (what goes through it is encrypted end to end all the same)"
        )
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.path.strip("/") or parts.query or parts.fragment:
        raise InvalidArgument(f"{origin}: {_NO_PROXY_URL}")
    user, password = (urllib.parse.unquote(part or "") for part in (parts.username, parts.password))
    return Proxy(host, port or _DEFAULT_PROXY_PORT, user, password, origin)


def straight_to(address: str) -> Route:
    """The way to host:port without a proxy."""
    host, _, port = address.rpartition(":")
    return Route(host.strip("[]"), int(port))


def by_environment(address: str, *, environment: Environment = os.environ.get) -> Route:
    """The way to host:port that the environment's variables ask for. Raises InvalidArgument for a proxy of no use."""
    direct = straight_to(address)
    named = next(((name, value) for name in PROXY_VARIABLES if (value := environment(name))), None)
    exceptions = next((value for name in NO_PROXY_VARIABLES if (value := environment(name))), "")
    if named is None or any(_covers(item.strip(), direct.host) for item in exceptions.split(",")):
        return direct
    name, value = named
    return Route(direct.host, direct.port, parse_proxy(value, origin=f"the environment's {name}"))


def _covers(exception: str, host: str) -> bool:
    """Whether an entry of no_proxy is about a host: itself, a domain that it is in, a network, or "*"."""
    if exception in ("*", host):
        return True
    try:
        address, network = ipaddress.ip_address(host), ipaddress.ip_network(exception.strip("[]"), strict=False)
    except ValueError:
        return bool(exception) and host.endswith("." + exception.lstrip("*").lstrip("."))
    return address in network


# --- plain sockets ---------------------------------------------------------------------------------------------------


def connect(route: Route, *, seconds: float = CONNECT_SECONDS) -> socket.socket:
    """A TCP connection to the coordinator. Raises OSError as sockets do, and ProxyFailed when a proxy says no."""
    connection = socket.create_connection(route.first_hop, timeout=seconds)
    if route.proxy is not None:
        try:
            _tunnel(connection, route, route.proxy)
        except BaseException:
            connection.close()
            raise
    return connection


def _tunnel(connection: socket.socket, route: Route, proxy: Proxy) -> None:
    authorization = f"Proxy-Authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
    connection.sendall(f"CONNECT {route.target} HTTP/1.1\r\nHost: {route.target}\r\n{authorization}\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer and len(answer) < _MOST_PROXY_ANSWER_BYTES:
        try:
            piece = connection.recv(4096)
        except TimeoutError:
            raise ProxyFailed(f"the proxy {proxy.authority} takes the connection and does not answer") from None
        if not piece:
            break
        answer += piece
    first, *headers = answer.split(b"\r\n\r\n", 1)[0].decode("latin-1").split("\r\n")
    _, _, status = first.partition(" ")
    if not status.startswith("200"):
        raise ProxyFailed(
            f"the proxy {proxy.authority} does not connect to {route.target}: {status[:100] or 'it hung up'}",
            metadata={"status": status[:3], "schemes": ", ".join(_schemes(headers))},
        )


def _schemes(headers: list[str]) -> list[str]:
    """Ways of saying who one is that a proxy takes."""
    pairs = (header.partition(":") for header in headers)
    return [value.split()[0][:20] for name, _, value in pairs if name.lower() == "proxy-authenticate" and value.split()]
