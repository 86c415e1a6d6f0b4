"""What stands in the way to the coordinator, layer by layer: name, port, TLS. The first that fails is to be repaired.

gRPC says of all of these that the coordinator is unavailable. `check` asks for each layer; the daemon and `enroll` ask
for the first obstacle once a call has failed, so that a person reads the same reason everywhere.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from common.errors import (
    AccordError,
    ClockWrong,
    ConnectionFiltered,
    ConnectionRefused,
    HandshakeStalled,
    HostNotFound,
    ProxyFailed,
    TlsIntercepted,
    Unauthenticated,
    Unavailable,
    WrongHost,
)
from participant.identity import IdentityFiles
from participant.network.route import CONNECT_SECONDS, Route, connect

# HTTP/2 connection preface and an empty SETTINGS frame (RFC 9113, 3.4): the server must answer with its own.
_HTTP2_HELLO: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
_FRAME_HEADER_BYTES: Final = 9
_SETTINGS_FRAME: Final = 4
_NAME_MISMATCHES: Final = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_NOT_YET_VALID: Final = 9  # X509_V_ERR_CERT_NOT_YET_VALID
_EXPIRED: Final = 10  # X509_V_ERR_CERT_HAS_EXPIRED

_UNOPENED: Final = (
    "whatever opens TLS on the way (inspecting proxy, firewall, load balancer) must pass this connection through "
    "unopened: exempt {target} from TLS inspection"
)
_NOT_TLS: Final = (
    "check that the port is the coordinator's, and that nothing between (proxy, load balancer) takes TLS apart"
)
_PROXY_ACTIONS: Final = {
    "407": "the proxy wants a user and a password: set coordinator.proxy to http://USER@HOST:PORT and put the password "
    "into the file that coordinator.proxy_password_file names",
    "403": "ask the proxy's administrator to allow CONNECT to {target} (many allow port 443 alone)",
    "502": "the proxy cannot reach the coordinator itself: ask its administrator to allow outbound TCP to {target}",
}


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What stands in the way, as the error that it means, and what to do about it."""

    kind: type[AccordError]
    found: str
    action: str

    def error(self) -> AccordError:
        return self.kind(f"{self.found}; {self.action}")


@dataclass(frozen=True, slots=True)
class Looked:
    """Nothing stands in the way at this layer. expires_at: of the coordinator's certificate, where one was shown."""

    found: str
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Papers:
    """Whom this side trusts (PEM) and what it shows: None before it is enrolled."""

    trust_bundle: str
    shown: tuple[Path, Path] | None = None

    @classmethod
    def of(cls, files: IdentityFiles) -> Papers:
        return cls(files.trust_file.read_text(), (files.certificate_file, files.key_file))


def first_obstacle(route: Route, papers: Papers, *, now: datetime) -> Obstacle | None:
    """The first layer's that does not work; None if name, port and TLS are as they should be."""
    seen = name_resolution(route)
    if isinstance(seen, Looked):
        seen = port(route)
    if isinstance(seen, Looked):
        seen = tls(route, papers, now=now)
    return seen if isinstance(seen, Obstacle) else None


def explained(error: AccordError, route: Route, papers: Papers, *, now: datetime) -> AccordError:
    """Why a call has failed that only says "unavailable": the first obstacle's error, or the call's own."""
    if type(error) is not Unavailable:
        return error
    obstacle = first_obstacle(route, papers, now=now)
    return obstacle.error() if obstacle is not None else error


# --- name and port -------------------------------------------------------------------------------------------------


def name_resolution(route: Route) -> Looked | Obstacle:
    """The host (or the proxy's) has an address."""
    host, port = route.first_hop
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        whose = f"the proxy's name {host}" if route.proxy else host
        return Obstacle(
            HostNotFound,
            f"{whose} has no address: {error}",
            "check the spelling of the address, and this machine's DNS servers (resolvectl query HOST)",
        )
    addresses = sorted({str(entry[4][0]) for entry in found})
    return Looked(f"{host} is {', '.join(addresses)}{route.via}")


def port(route: Route, *, seconds: float = CONNECT_SECONDS) -> Looked | Obstacle:
    """Something listens at the port, and nothing in between drops the way there."""
    host, number = route.first_hop
    try:
        with closing(connect(route, seconds=seconds)):
            return Looked(f"{route.target} answers{route.via}")
    except ProxyFailed as error:
        return Obstacle(ProxyFailed, error.message, _proxy_action(route, error))
    except OSError as error:
        if route.proxy is not None:
            return Obstacle(
                ProxyFailed,
                f"the proxy {route.proxy.authority} cannot be reached: {error.strerror or error}",
                f"check {route.proxy.origin}; if it is right, the proxy is down: ask its administrator",
            )
        return _unreached(route, f"{host}:{number}", error, seconds=seconds)


def _unreached(route: Route, hop: str, error: OSError, *, seconds: float) -> Obstacle:
    if isinstance(error, ConnectionRefusedError):
        return Obstacle(
            ConnectionRefused,
            f"{hop} refuses connections",
            "check the port; if it is right, the coordinator is down (ask the federation's operator), or a firewall "
            "rejects the connection",
        )
    if isinstance(error, TimeoutError):
        return Obstacle(
            ConnectionFiltered,
            f"{hop} does not answer within {seconds:g} s: packets vanish on the way",
            f"ask your network's administrator to allow outbound TCP to {route.target}",
        )
    return Obstacle(
        Unavailable,
        f"{hop} cannot be reached: {error.strerror or error}",
        f"check the network, and that outbound TCP to {route.target} is allowed",
    )


def _proxy_action(route: Route, error: ProxyFailed) -> str:
    status, schemes = error.metadata.get("status", ""), error.metadata.get("schemes", "")
    if status == "407" and schemes and "basic" not in schemes.lower():
        return f"the proxy takes {schemes} alone, and this program knows Basic: ask for an exemption for {route.target}"
    if status == "407" and route.proxy is not None and route.proxy.user:
        return f"the proxy does not take user {route.proxy.user} with this password: see {route.proxy.origin}"
    if status.startswith("5"):
        status = "502"
    return _PROXY_ACTIONS.get(status, "ask the proxy's administrator to allow CONNECT to {target}").format(
        target=route.target
    )


# --- TLS -----------------------------------------------------------------------------------------------------------


def tls(route: Route, papers: Papers, *, now: datetime, seconds: float = CONNECT_SECONDS) -> Looked | Obstacle:
    """Both certificates are accepted, HTTP/2 is spoken behind them, and by the coordinator itself."""
    context = ssl.create_default_context(cadata=papers.trust_bundle)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # As gRPC does it: an organisation's issuing CA may be all that is trusted.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["h2"])
    if papers.shown is not None:
        context.load_cert_chain(*papers.shown)
    try:
        plain = connect(route, seconds=seconds)
    except (OSError, ProxyFailed) as error:
        return Obstacle(Unavailable, f"the connection broke before the TLS handshake: {error}", _NOT_TLS)
    try:
        with closing(plain), context.wrap_socket(plain, server_hostname=route.host) as secured:
            shown = x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
            answer = _first_frame(secured)
            version, protocol = secured.version(), secured.selected_alpn_protocol()
    except ssl.SSLCertVerificationError as error:
        return _not_the_coordinator(route, papers, error, now=now)
    except TimeoutError:
        return Obstacle(
            HandshakeStalled,
            f"{route.target} takes the connection, and the TLS handshake does not get on within {seconds:g} s",
            "small packets pass and large ones vanish: let ICMP 'fragmentation needed' through, or lower the MTU of "
            "this machine's interface (ip link set dev NAME mtu 1400) to see whether that is it; else a firewall holds "
            "TLS back",
        )
    except ssl.SSLError as error:
        return Obstacle(Unavailable, f"no TLS handshake: {_reason(error)}", _NOT_TLS)
    except OSError as error:
        return Obstacle(Unavailable, f"the connection broke during the TLS handshake: {error}", _NOT_TLS)
    if protocol != "h2":
        return Obstacle(
            Unavailable,
            "the other side does not speak HTTP/2",
            "check the port: this is some other service, or a box in between",
        )
    if papers.shown is not None and _lets_anybody_in(route, papers, seconds=seconds):
        return _opened_on_the_way(route, shown)
    if isinstance(answer, str):
        return _certificate_refused(answer)
    if not answer:
        return Obstacle(
            Unavailable, "the other side does not speak HTTP/2", "check the port: this is some other service"
        )
    return Looked(
        f"{version}, the coordinator's certificate is issued by {_name(shown.issuer)}, "
        f"{(shown.not_valid_after_utc - now).days} days left",
        shown.not_valid_after_utc,
    )


def _first_frame(secured: ssl.SSLSocket) -> bool | str:
    """Whether HTTP/2 is answered; a text: why nothing is.

    In TLS 1.3 a server judges the client's certificate after the client's handshake, and gRPC's hangs up in silence.
    """
    try:
        secured.sendall(_HTTP2_HELLO)
        frame = secured.recv(_FRAME_HEADER_BYTES)
    except ssl.SSLError as error:
        return _reason(error)
    except OSError as error:
        return str(error) or type(error).__name__
    if not frame:
        return "the other side hung up after the handshake"
    return len(frame) == _FRAME_HEADER_BYTES and frame[3] == _SETTINGS_FRAME


def _lets_anybody_in(route: Route, papers: Papers, *, seconds: float) -> bool:
    """Whether who answers shakes hands without a certificate from this side, which the coordinator never does.

    Asked in TLS 1.2, where a server looks at the client's certificate before the handshake is over.
    """
    context = ssl.create_default_context(cadata=papers.trust_bundle)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        with (
            closing(connect(route, seconds=seconds)) as plain,
            context.wrap_socket(plain, server_hostname=route.host),
        ):
            return True
    except (OSError, ProxyFailed):
        return False


def _opened_on_the_way(route: Route, shown: x509.Certificate) -> Obstacle:
    return Obstacle(
        TlsIntercepted,
        f"who answers at {route.target} does not ask for this site's certificate, and the coordinator always does: TLS "
        f"ends on the way, at a box with a certificate that {_name(shown.issuer)} has issued",
        f"tell the federation's operator: {_UNOPENED.format(target=route.target)}",
    )


def _certificate_refused(why: str) -> Obstacle:
    return Obstacle(
        Unauthenticated,
        f"the coordinator does not accept this site's certificate: {why}",
        "see the check `certificate`; if that is fine, the coordinator does not know the CA: ask the federation's "
        "operator, or enroll again with a new join token",
    )


def _not_the_coordinator(
    route: Route, papers: Papers, error: ssl.SSLCertVerificationError, *, now: datetime
) -> Obstacle:
    """Why the certificate that was shown does not verify. The most common reason at partners is an inspecting proxy."""
    shown = _shown_certificate(route)
    if shown is None:
        return Obstacle(Unavailable, f"the coordinator's certificate does not verify: {error.verify_message}", _NOT_TLS)
    ours = x509.load_pem_x509_certificates(papers.trust_bundle.encode())
    if shown.issuer not in {ca.subject for ca in ours}:
        own = ", ".join(sorted({_name(ca.subject) for ca in ours}))
        return Obstacle(
            TlsIntercepted,
            f"the certificate that answered at {route.target} was issued by {_name(shown.issuer)}, not by this "
            f"federation's CA ({own}): something opens TLS on the way, or this is another federation's coordinator",
            _UNOPENED.format(target=route.target),
        )
    if error.verify_code in _NAME_MISMATCHES:
        names = ", ".join(_host_names(shown)) or "no host"
        return Obstacle(
            WrongHost,
            f"the coordinator's certificate is not for {route.host}; it is for {names}",
            "dial the coordinator by one of these names (coordinator.address), or ask its operator to add this one",
        )
    if error.verify_code in (_NOT_YET_VALID, _EXPIRED):
        return _not_valid_now(shown, error, now=now)
    return Obstacle(
        TlsIntercepted,
        f"the certificate that answered names this federation's CA and is not signed by it: {error.verify_message}",
        "the federation's CA was replaced (enroll again), or somebody imitates the coordinator: ask its operator",
    )


def _not_valid_now(shown: x509.Certificate, error: ssl.SSLCertVerificationError, *, now: datetime) -> Obstacle:
    """A certificate of tomorrow is a wrong clock. One of yesterday is, more often, one that nobody has renewed."""
    begin, end = shown.not_valid_before_utc, shown.not_valid_after_utc
    is_early = error.verify_code == _NOT_YET_VALID
    return Obstacle(
        ClockWrong if is_early else Unavailable,
        f"the coordinator's certificate does not verify: {error.verify_message} (valid from {begin:%Y-%m-%d %H:%M} to "
        f"{end:%Y-%m-%d %H:%M} UTC); by this machine's clock it is {now:%Y-%m-%d %H:%M} UTC, "
        f"{_span(begin - now) + ' too early' if is_early else _span(now - end) + ' too late'}",
        "set this machine's clock (timedatectl set-ntp true); if it is right, tell the federation's operator",
    )


def _shown_certificate(route: Route) -> x509.Certificate | None:
    """The certificate that is shown there, believed by nobody: it is only looked at."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with closing(connect(route)) as plain, context.wrap_socket(plain, server_hostname=route.host) as secured:
            return x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
    except (OSError, ValueError, ProxyFailed):
        return None


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


def _span(span: timedelta) -> str:
    return f"{span.days} days" if span >= timedelta(days=2) else f"{span.total_seconds() / 60:.0f} minutes"


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
