"""A small HTTP server in threads of its own, plain or with mutual TLS, for what monitoring reads. Knows no content.

With TLS, files are read anew for every connection, so that a renewed certificate needs no restart. A caller without a
certificate gets through the handshake, since probes have none; `has_certificate` tells the application, which answers
it what is nobody's secret.
"""

from __future__ import annotations

import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import WSGIApplication, WSGIEnvironment

from common.errors import ConfigInvalid

# A connection that says nothing is let go: scrapers and probes speak at once.
SILENCE_SECONDS: Final = 10.0
_CERTIFICATE: Final = "accord.client_certificate"


@dataclass(frozen=True, slots=True)
class HttpTls:
    """PEM files. client_ca: whose certificates count."""

    certificate: Path
    key: Path
    client_ca: Path

    def context(self) -> ssl.SSLContext:
        """Raises ConfigInvalid if a file cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_OPTIONAL
        try:
            context.load_cert_chain(self.certificate, self.key)
        except OSError as error:
            raise ConfigInvalid(f"metrics: {self.certificate} and {self.key} are no use for TLS: {error}") from error
        try:
            context.load_verify_locations(self.client_ca)
        except OSError as error:
            raise ConfigInvalid(f"metrics: {self.client_ca} has no usable CA certificate: {error}") from error
        return context


def has_certificate(environment: WSGIEnvironment) -> bool:
    """Whether the caller has shown a certificate of the client CA; True where there is no TLS and nobody is asked."""
    return bool(environment.get(_CERTIFICATE, True))


@contextmanager
def serving_http(host: str, port: int, application: WSGIApplication, *, tls: HttpTls | None = None) -> Iterator[int]:
    """Serve until the end of the block; yields the port (that was taken, if 0 was asked for).

    Raises ConfigInvalid if the port cannot be had, or the TLS files cannot be used.
    """
    if tls is not None:
        tls.context()
    try:
        server = make_server(host, port, application, _server_of(tls, host), _Handler)
    except OSError as error:
        raise ConfigInvalid(
            f"metrics: cannot listen on {host}:{port}: {error.strerror}; choose another port"
        ) from error
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="http", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """One slow scraper keeps no probe waiting."""

    daemon_threads = True
    allow_reuse_address = True
    tls: HttpTls | None = None

    def server_bind(self) -> None:
        # The library's own asks DNS for this host's full name, which may hang where there is no DNS.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: a handshake that hangs is nobody else's."""
        request.settimeout(SILENCE_SECONDS)
        if self.tls is not None:
            try:
                request = self.tls.context().wrap_socket(request, server_side=True)
            except (OSError, ssl.SSLError, ConfigInvalid):
                self.shutdown_request(request)
                return
        super().process_request_thread(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that goes away in the middle is no news."""


def _server_of(tls: HttpTls | None, host: str) -> type[_Server]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return type("_Server", (_Server,), {"tls": tls, "address_family": family})


class _Handler(WSGIRequestHandler):
    """Silent: a probe every few seconds is no news."""

    def get_environ(self) -> WSGIEnvironment:
        environment = super().get_environ()
        if isinstance(self.connection, ssl.SSLSocket):
            environment[_CERTIFICATE] = bool(self.connection.getpeercert())
        return environment

    def log_message(self, format: str, *args: object) -> None:
        return None
