"""Preflight checks of the way to the coordinator: name, port, TLS, clock, and one real authenticated call.

Each looks at one layer alone, so that the first that fails is the one to repair. Goes through the proxy that gRPC
would use.
"""

from __future__ import annotations

import os
import socket
import ssl
import urllib.parse
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import grpc
from cryptography import x509

from common.clock import Clock
from common.errors import AccordError, CertificateRevoked, NotFound, PermissionDenied, Unauthenticated
from common.rpc.channels import TIME_METADATA, VERSION_METADATA
from common.version import software_version
from participant.client import CoordinatorClient
from participant.enrollment import dial
from participant.identity import IdentityFolder, SiteIdentity
from participant.preflight.report import Result, failed, ok, skipped, warning

CONNECT_SECONDS: Final = 10.0
# The CA dates certificates back by five minutes; a clock that is further off breaks handshakes and deadlines.
MOST_SKEW: Final = timedelta(minutes=5)
NOTED_SKEW: Final = timedelta(seconds=30)
NOTED_SERVER_CERTIFICATE_DAYS: Final = 7
MOST_VERSION_CHARACTERS: Final = 64

_PROXY_VARIABLES: Final = ("grpc_proxy", "https_proxy", "http_proxy")
_NO_PROXY_VARIABLES: Final = ("no_grpc_proxy", "no_proxy")
# HTTP/2 connection preface and an empty SETTINGS frame (RFC 9113, 3.4): the server must answer with its own.
_HTTP2_HELLO: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
_FRAME_HEADER_BYTES: Final = 9
_SETTINGS_FRAME: Final = 4
_MOST_PROXY_ANSWER_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Route:
    """How to get to the coordinator: its host and port, and the proxy on the way, if any."""

    host: str
    port: int
    proxy: tuple[str, int] | None = None

    @property
    def first_hop(self) -> tuple[str, int]:
        return self.proxy or (self.host, self.port)

    @property
    def via(self) -> str:
        return f" through the proxy {self.proxy[0]}:{self.proxy[1]}" if self.proxy else ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the coordinator said to an authenticated call. server_time: None if it does not tell the time.

    software_version: the coordinator's; "" if it does not tell.
    """

    charter: bytes | None
    server_time: datetime | None
    asked: datetime
    answered: datetime
    software_version: str = ""


def route_to(address: str, *, environment: Callable[[str], str | None] = os.environ.get) -> Route:
    """The way that gRPC would take to host:port, as the environment's proxy variables say."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    direct = Route(host, int(port))
    proxy = next((value for name in _PROXY_VARIABLES if (value := environment(name))), None)
    exceptions = next((value for name in _NO_PROXY_VARIABLES if (value := environment(name))), "")
    if proxy is None or any(_covers(item.strip(), host) for item in exceptions.split(",")):
        return direct
    parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return Route(host, int(port), (parts.hostname, parts.port or 80)) if parts.hostname else direct


def _covers(exception: str, host: str) -> bool:
    return bool(exception) and (host == exception or host.endswith("." + exception.lstrip(".")))


# --- name and port -------------------------------------------------------------------------------------------------


def name_resolution(route: Route) -> Result:
    """The host (or the proxy's) has an address."""
    host, port = route.first_hop
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        return failed(
            f"{host} has no address: {error}",
            "check the spelling of the address, and this machine's DNS servers (resolvectl query HOST)",
        )
    addresses = sorted({str(entry[4][0]) for entry in found})
    return ok(f"{host} is {', '.join(addresses)}{route.via}")


def port(route: Route) -> Result:
    """Something listens at the port, and nothing in between drops the way there."""
    host, number = route.first_hop
    try:
        with closing(_connect(route)):
            return ok(f"{route.host}:{route.port} answers{route.via}")
    except ConnectionRefusedError:
        return failed(
            f"{host}:{number} refuses connections",
            "check the port; if it is right, the coordinator is down: ask the federation's operator",
        )
    except TimeoutError:
        return failed(
            f"{host}:{number} does not answer within {CONNECT_SECONDS:g} s",
            f"ask your network's administrator to allow outbound TCP to {route.host} port {route.port}",
        )
    except OSError as error:
        return failed(
            f"{host}:{number} cannot be reached: {error}",
            f"check the network, and that outbound TCP to {route.host} port {route.port} is allowed",
        )


def _connect(route: Route) -> socket.socket:
    connection = socket.create_connection(route.first_hop, timeout=CONNECT_SECONDS)
    if route.proxy is not None:
        try:
            _tunnel(connection, route)
        except BaseException:
            connection.close()
            raise
    return connection


def _tunnel(connection: socket.socket, route: Route) -> None:
    target = f"{route.host}:{route.port}"
    connection.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer and len(answer) < _MOST_PROXY_ANSWER_BYTES:
        piece = connection.recv(4096)
        if not piece:
            break
        answer += piece
    status = answer.split(b"\r\n", 1)[0].decode(errors="replace")
    if status.split(" ")[1:2] != ["200"]:
        raise ConnectionError(f"the proxy does not connect to {target}: {status or 'it hung up'}")


# --- TLS -----------------------------------------------------------------------------------------------------------


def tls(route: Route, files: IdentityFolder, *, now: datetime) -> Result:
    """Both certificates are accepted, and HTTP/2 is spoken behind them."""
    context = ssl.create_default_context(cafile=str(files.trust_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.certificate_file, files.key_file)
    context.set_alpn_protocols(["h2"])
    try:
        with closing(_connect(route)) as plain, context.wrap_socket(plain, server_hostname=route.host) as secured:
            shown = x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
            return _behind_the_handshake(secured, shown, now=now)
    except ssl.SSLCertVerificationError as error:
        return _not_the_coordinator(route, files, error)
    except ssl.SSLError as error:
        return failed(f"no TLS handshake: {_reason(error)}", _NOT_TLS)
    except (ConnectionError, TimeoutError, OSError) as error:
        return failed(f"the connection broke during the TLS handshake: {error}", _NOT_TLS)


_NOT_TLS: Final = (
    "check that the port is the coordinator's, and that nothing between (proxy, load balancer) takes TLS apart"
)


def _behind_the_handshake(secured: ssl.SSLSocket, shown: x509.Certificate, *, now: datetime) -> Result:
    if secured.selected_alpn_protocol() != "h2":
        return failed(
            "the other side does not speak HTTP/2", "check the port: this is some other service, or a box in between"
        )
    try:
        # In TLS 1.3 a server judges the client's certificate after the client's handshake is over.
        secured.sendall(_HTTP2_HELLO)
        frame = secured.recv(_FRAME_HEADER_BYTES)
    except ssl.SSLError as error:
        return _certificate_refused(_reason(error))
    except (ConnectionError, TimeoutError) as error:
        return _certificate_refused(str(error) or type(error).__name__)
    if not frame:
        return _certificate_refused("the coordinator hung up after the handshake")
    if len(frame) < _FRAME_HEADER_BYTES or frame[3] != _SETTINGS_FRAME:
        return failed("the other side does not speak HTTP/2", "check the port: this is some other service")
    days = (shown.not_valid_after_utc - now).days
    said = f"{secured.version()}, the coordinator's certificate is issued by {_name(shown.issuer)}, {days} days left"
    if days < NOTED_SERVER_CERTIFICATE_DAYS:
        return warning(said, "tell the federation's operator that the coordinator's certificate is about to expire")
    return ok(said)


def _certificate_refused(why: str) -> Result:
    return failed(
        f"the coordinator does not accept this site's certificate: {why}",
        "see the check `certificate`; if that is fine, the coordinator does not know the CA: ask the federation's "
        "operator, or enroll again with a new join token",
    )


def _not_the_coordinator(route: Route, files: IdentityFolder, error: ssl.SSLCertVerificationError) -> Result:
    """Why the certificate that was shown does not verify. The most common reason at partners is an inspecting proxy."""
    shown = _shown_certificate(route)
    if shown is None:
        return failed(f"the coordinator's certificate does not verify: {error.verify_message}", _NOT_TLS)
    ours = {ca.subject for ca in x509.load_pem_x509_certificates(files.trust_file.read_bytes())}
    if shown.issuer not in ours:
        return failed(
            f"{route.host}:{route.port} shows a certificate issued by {_name(shown.issuer)}, and this federation's "
            f"are issued by {', '.join(sorted(map(_name, ours)))}",
            "something between here and the coordinator takes TLS apart (an inspecting proxy or firewall: exempt the "
            "coordinator's address), or this is not this federation's coordinator",
        )
    if error.verify_code in _NAME_MISMATCHES:
        names = ", ".join(_host_names(shown)) or "no host"
        return failed(
            f"the coordinator's certificate is not for {route.host}; it is for {names}",
            "dial the coordinator by one of these names (coordinator.address), or ask its operator to add this one",
        )
    return failed(
        f"the coordinator's certificate does not verify: {error.verify_message} (valid from "
        f"{shown.not_valid_before_utc:%Y-%m-%d %H:%M} to {shown.not_valid_after_utc:%Y-%m-%d %H:%M} UTC)",
        "check this machine's clock; if it is right, tell the federation's operator",
    )


_NAME_MISMATCHES: Final = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


def _shown_certificate(route: Route) -> x509.Certificate | None:
    """The certificate that is shown there, believed by nobody: it is only looked at."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with closing(_connect(route)) as plain, context.wrap_socket(plain, server_hostname=route.host) as secured:
            return x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
    except (OSError, ValueError):
        return None


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


def _name(name: x509.Name) -> str:
    return name.rfc4514_string() or "an unnamed CA"


def _host_names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [
        *names.get_values_for_type(x509.DNSName),
        *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
    ]


# --- the call ------------------------------------------------------------------------------------------------------


class _MetadataRecorder(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc, type-arg, unused-ignore]
    """Keeps the metadata of the latest call, whether it succeeded or not."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}

    def intercept_unary_unary(self, continuation, details, request):  # type: ignore[no-untyped-def]
        call = continuation(details, request)
        pairs: Sequence[tuple[str, str | bytes]] = [*(call.initial_metadata() or ()), *(call.trailing_metadata() or ())]
        self.seen = {key: value for key, value in pairs if isinstance(value, str)}
        return call


def ask(identity: SiteIdentity, *, clock: Clock) -> Answer:
    """One authenticated call that changes nothing: fetch the charter. Raises what the coordinator raised."""
    recorder = _MetadataRecorder()
    with dial(identity) as channel:
        client = CoordinatorClient(
            grpc.intercept_channel(channel, recorder), channel, software_version=software_version()
        )
        asked = clock.now()
        try:
            charter: bytes | None = client.charter()
        except NotFound:
            charter = None
        answered = clock.now()
    version = recorder.seen.get(VERSION_METADATA, "")[:MOST_VERSION_CHARACTERS]
    return Answer(charter, _time(recorder.seen.get(TIME_METADATA)), asked, answered, version)


def call_failed(error: AccordError) -> Result:
    """What to do about a call that the coordinator, or the way there, did not let through."""
    if isinstance(error, CertificateRevoked):
        return failed(
            f"the coordinator has revoked this site: {error.message}",
            "ask the federation's operator why; only they can let this site in again",
        )
    if isinstance(error, Unauthenticated | PermissionDenied):
        return failed(
            f"the coordinator does not know this site: {error.message}",
            "check the address (another federation's coordinator?), or enroll again with a new join token",
        )
    return failed(
        f"the call failed: {error.message}",
        "if name, port and TLS are fine, something between does not pass gRPC (HTTP/2), or the coordinator is starting",
    )


def clock_skew(answer: Answer) -> Result:
    """This machine's clock against the coordinator's, as far as the time on the way allows."""
    if answer.server_time is None:
        return skipped("the coordinator does not tell its time")
    early, late = answer.server_time - answer.asked, answer.server_time - answer.answered
    # The coordinator looked at its clock between the two: only what lies outside is a difference.
    skew = early if early < timedelta() else late if late > timedelta() else timedelta()
    seconds = abs(skew.total_seconds())
    if seconds < NOTED_SKEW.total_seconds():
        return ok(f"within {max(seconds, (answer.answered - answer.asked).total_seconds()):.1f} s of the coordinator's")
    said = f"this clock is {seconds:.0f} s {'behind' if skew > timedelta() else 'ahead of'} the coordinator's"
    action = "set the clock and keep it right: timedatectl set-ntp true, or your own time server"
    return failed(said, action) if abs(skew) > MOST_SKEW else warning(said, action)


def _time(text: str | None) -> datetime | None:
    try:
        time = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return time.astimezone(UTC) if time is not None and time.tzinfo is not None else None
