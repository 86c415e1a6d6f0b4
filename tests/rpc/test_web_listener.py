"""The web page's listener: what strangers can take of it, and certificates that change while it serves."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509

from common.certificates import serial_text
from common.clock import SystemClock
from common.errors import ConfigInvalid
from common.identifiers import Role
from common.rpc.tls import browser_tls
from coordinator.keystore import PkiFolder
from coordinator.web.listener import WebLimits, WebListener
from tests.rpc.browsing import Reader
from tests.rpc.coordinator import CONFIG, running_coordinator
from tests.rpc.parts import HOST, Pki
from tests.rpc.showcase import WEB

WITHOUT_LIBRARIES = """
import asyncio, pathlib, sys
sys.modules["aiohttp"] = sys.modules["jinja2"] = None
from common.clock import SystemClock
from common.errors import ConfigInvalid
from common.identifiers import FederationId
from coordinator import app
from coordinator.config import load_config
from coordinator.keystore import PkiFolder
config = load_config(pathlib.Path(sys.argv[1]))
PkiFolder(config.pki_folder).create_authority(FederationId(config.federation), SystemClock())
try:
    asyncio.run(app.serve(config, clock=SystemClock(), stop=asyncio.Event()))
except* ConfigInvalid as found:
    print(found.exceptions)
"""
LIMITS = WebLimits(connections=2, handshake_seconds=0.5, silence_seconds=0.5, keepalive_seconds=1.0)


@dataclass
class Served:
    pki: Pki
    port: int

    def context(self, *, certificate: Path | None = None) -> ssl.SSLContext:
        found = ssl.create_default_context(cafile=str(self.pki.folder.authority_certificate))
        if certificate is not None:
            found.load_cert_chain(certificate)
        return found

    async def ask(self, context: ssl.SSLContext | None = None) -> tuple[str, str]:
        """The answer's body, and the serial number of the certificate that the server showed."""
        reader, writer = await asyncio.open_connection(HOST, self.port, ssl=context or self.context())
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer.rpartition(b"\r\n\r\n")[2].decode(), serial_text(x509.load_der_x509_certificate(shown))

    async def refuses(self, context: ssl.SSLContext) -> bool:
        """Whether the handshake fails; in TLS 1.3 a client learns of it when it reads."""
        try:
            return (await self.ask(context))[0] == ""
        except (ssl.SSLError, ConnectionError):
            return True


async def whose(request: web.Request) -> web.Response:
    assert request.transport is not None
    shown = request.transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return web.Response(text="somebody" if shown else "nobody")


@asynccontextmanager
async def serving(
    folder: Path, *, requires_certificate: bool = False, limits: WebLimits = LIMITS
) -> AsyncIterator[Served]:
    pki = Pki.create(folder / "pki")
    application = web.Application()
    application.router.add_get("/", whose)
    listener = WebListener(application, browser_tls(pki.tls, requires_certificate=requires_certificate), limits)
    port = await listener.start(HOST, 0)
    try:
        yield Served(pki, port)
    finally:
        await listener.stop()


def operator_file(pki: Pki, folder: Path) -> Path:
    credential = pki.operator("vera", Role.VIEWER)
    path = folder / "operator.pem"
    path.write_bytes(credential.chain + credential.key)
    return path


async def test_a_certificate_is_read_where_one_is_shown_and_not_asked_of_others(tmp_path):
    async with serving(tmp_path) as served:
        assert (await served.ask())[0] == "nobody"
        assert (await served.ask(served.context(certificate=operator_file(served.pki, tmp_path))))[0] == "somebody"


async def test_where_only_certificates_count_nobody_gets_in_without_one(tmp_path):
    async with serving(tmp_path, requires_certificate=True) as served:
        assert await served.refuses(served.context())
        assert (await served.ask(served.context(certificate=operator_file(served.pki, tmp_path))))[0] == "somebody"


async def test_a_certificate_of_a_ca_that_is_not_trusted_shakes_no_hand(tmp_path):
    other = Pki.create(tmp_path / "other")
    async with serving(tmp_path) as served:
        assert await served.refuses(served.context(certificate=operator_file(other, tmp_path)))


async def test_those_who_say_nothing_make_room_for_those_who_ask(tmp_path):
    """Three connections that never shake hands, and more with a handshake and no word, where two fit."""
    async with serving(tmp_path) as served:
        silent = [socket.create_connection((HOST, served.port)) for _ in range(3)]
        mute = [asyncio.create_task(asyncio.open_connection(HOST, served.port, ssl=served.context())) for _ in range(3)]
        async with asyncio.timeout(30):
            assert (await served.ask())[0] == "nobody"
        for one in silent:
            one.close()
        for done in await asyncio.gather(*mute, return_exceptions=True):
            if not isinstance(done, BaseException):
                done[1].close()


async def test_a_renewed_certificate_and_another_ca_count_from_the_next_handshake_on(tmp_path):
    async with serving(tmp_path) as served:
        _, before = await served.ask()
        own = operator_file(served.pki, tmp_path)
        issued = served.pki.authority.issue_server(["localhost", HOST], now=SystemClock().now())
        served.pki.folder.server_key.write_bytes(issued.key_pem)
        served.pki.folder.server_certificate.write_text(issued.chain_pem)
        _, after = await served.ask()
        assert after == serial_text(issued.certificate) != before
        other = Pki.create(tmp_path / "other")
        trusting = served.context(certificate=own)
        served.pki.folder.authority_certificate.write_text(other.folder.trust_bundle())
        assert await served.refuses(trusting)


async def test_a_port_that_is_taken_and_files_that_do_not_fit_are_said_before_anybody_is_served(tmp_path):
    async with serving(tmp_path) as served:
        listener = WebListener(web.Application(), browser_tls(served.pki.tls, requires_certificate=False), LIMITS)
        with pytest.raises(ConfigInvalid, match=f"web: cannot listen on {HOST}:{served.port}"):
            await listener.start(HOST, served.port)
        broken = replace(served.pki.tls, key=tmp_path / "none.key")
        with pytest.raises(ConfigInvalid, match=r"none\.key"):
            browser_tls(broken, requires_certificate=False)


def test_a_coordinator_without_the_pages_libraries_runs_and_says_what_the_page_needs(tmp_path):
    """In a process of its own, where they cannot be imported."""
    (tmp_path / "coordinator.toml").write_text(CONFIG + WEB)
    told = subprocess.run(
        [sys.executable, "-c", WITHOUT_LIBRARIES, str(tmp_path / "coordinator.toml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert "web.listen needs the extra accord[web] (aiohttp is missing)" in told.stdout


def test_who_tries_too_many_tokens_is_slowed_down_and_nobody_else(tmp_path):
    with running_coordinator(tmp_path, CONFIG + WEB) as coordinator:
        stranger = Reader(coordinator.addresses.web, PkiFolder(coordinator.config.pki_folder).authority_certificate)
        tries = (stranger.post("/login", {"token": "accord-web-guess"}).status for _ in range(1000))
        until_refused = list(itertools.takewhile(lambda status: status == 401, tries))
        assert 30 <= len(until_refused) < 1000
        viewer = Reader.of_folder(coordinator.addresses.web, coordinator.operator_folder("vera", Role.VIEWER))
        assert viewer.get("/").status == 200
