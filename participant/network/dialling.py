"""gRPC channels to the coordinator: with this site's certificate, along the way that the configuration asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import grpc

from common.rpc.channels import CLIENT_PING_SECONDS, ChannelOption, channel_options, upload_channel_options
from common.rpc.tls import channel_credentials
from participant.identity import SiteIdentity
from participant.network.route import Route, straight_to

# One poll, and how often a quiet connection is pinged: balancers and firewalls forget one that has been quiet for a
# minute, and both are well below that.
POLL_SECONDS: Final = 40


@dataclass(frozen=True, slots=True)
class Line:
    """Where and how to dial. ping_seconds: how long a connection is left quiet; poll_seconds: one long poll."""

    route: Route
    ping_seconds: int = CLIENT_PING_SECONDS
    poll_seconds: int = POLL_SECONDS


def straight(address: str) -> Line:
    """To host:port without a proxy, with the usual settings."""
    return Line(straight_to(address))


def dial(identity: SiteIdentity, line: Line | None = None) -> grpc.Channel:
    """A channel to the coordinator for all calls but uploads; the caller's to close.

    line: None for the address of the enrolment, without a proxy.
    """
    line = line or straight(identity.coordinator_address)
    return open_channel(line, _credentials(identity), channel_options(ping_seconds=line.ping_seconds))


def dial_for_uploads(identity: SiteIdentity, line: Line | None = None) -> grpc.Channel:
    """A channel that never replays a call; the caller's to close."""
    line = line or straight(identity.coordinator_address)
    return open_channel(line, _credentials(identity), upload_channel_options(ping_seconds=line.ping_seconds))


def open_channel(line: Line, credentials: grpc.ChannelCredentials, options: list[ChannelOption]) -> grpc.Channel:
    """A channel along a line. The library's own idea of proxies is off: it knows fewer variables than people set."""
    route = line.route
    options = [*options, ("grpc.enable_http_proxy", 0)]
    if route.proxy is None:
        return grpc.secure_channel(route.target, credentials, options=options)
    # The proxy is dialled and asked for the coordinator, and behind it nothing changes: the certificate must still be
    # the coordinator's, for the coordinator's name.
    options += [
        ("grpc.http_connect_server", route.target),
        ("grpc.ssl_target_name_override", route.host),
        ("grpc.default_authority", route.target),
    ]
    if route.proxy.authorization:
        options.append(("grpc.http_connect_headers", f"Proxy-Authorization:{route.proxy.authorization}"))
    return grpc.secure_channel(route.proxy.authority, credentials, options=options)


def _credentials(identity: SiteIdentity) -> grpc.ChannelCredentials:
    return channel_credentials(
        trust_bundle=identity.trust_bundle.encode(),
        certificate_chain=identity.certificate_chain.encode(),
        key=identity.key_pem,
    )
