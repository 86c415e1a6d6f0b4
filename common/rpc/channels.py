"""Transport settings that both ends must agree on: keepalive, message limits, and what a channel may retry.

A channel never retries a streaming call: the library's replay loses messages in silence and the call still ends OK.
Uploads go through a channel that retries nothing at all and are resumed by the application.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

ChannelOption = tuple[str, int | str]

MOST_MESSAGE_BYTES: Final = 4 * 1024 * 1024

# Trailing metadata of every answer: the coordinator's clock, RFC 3339 in UTC.
TIME_METADATA: Final = "accord-time"
# Beside it for everybody with a certificate: the version of the coordinator's software.
VERSION_METADATA: Final = "accord-version"

# A lost network is noticed within half a minute, well before any window. The server accepts pings three times as often
# as a client sends them; one that pings faster is cut off (GOAWAY, too_many_pings).
CLIENT_PING_SECONDS: Final = 20
SERVER_PING_SECONDS: Final = 30
PING_TIMEOUT_SECONDS: Final = 10
LEAST_PING_INTERVAL_SECONDS: Final = 7
# What a site behind a balancer that forgets connections sooner than usual may set, with room for a late packet.
LEAST_CLIENT_PING_SECONDS: Final = 10

# The library's own bound is two minutes, for which a site would stay away from a coordinator that is back.
MOST_RECONNECT_SECONDS: Final = 15

MOST_STREAMS_PER_CONNECTION: Final = 100
# Who takes longer for TLS and the first frame holds a connection and says nothing; the library's own bound is 120 s.
HANDSHAKE_SECONDS: Final = 15
# A connection without an open call is closed then; a participant's has its long poll, others come back by themselves.
IDLE_SECONDS: Final = 300

# What a sender may have on its way that the receiver has not read yet. The library's own way is to let that grow for as
# long as the network gets faster by it; between eight fast sites and a busy coordinator that took another 130 MiB. A
# coordinator's memory is taken by every upload at once, a site's by one download.
SERVER_WINDOW_BYTES: Final = 1024 * 1024
CLIENT_WINDOW_BYTES: Final = 8 * 1024 * 1024

# Unary calls whose comment in protos/ says that a retry is safe, whoever repeats it. Streams are not among them, nor is
# CreateJoinToken, whose secret is shown once, nor any call of the admin service that changes something: an operator
# repeats that with the same request_id.
RETRIED_METHODS: Final[frozenset[str]] = frozenset(
    {
        "accord.v1.EnrollmentService/Enroll",
        "accord.v1.EnrollmentService/RenewCertificate",
        "accord.v1.RoundService/GetAssignment",
        "accord.v1.RoundService/GetCharter",
        "accord.v1.RoundService/GetPlan",
        "accord.v1.RoundService/JoinRun",
        "accord.v1.RoundService/DeclineRun",
        "accord.v1.RoundService/ReportPrepared",
        "accord.v1.RoundService/ReportFailure",
        "accord.v1.AdapterService/GetAdapter",
        "accord.v1.SecureAggregationService/AdvertiseKeys",
        "accord.v1.SecureAggregationService/DepositShares",
        "accord.v1.SecureAggregationService/ConfirmShares",
        "accord.v1.SecureAggregationService/GetUpload",
        "accord.v1.SecureAggregationService/GetEvidence",
        "accord.v1.SecureAggregationService/CommitSurvivors",
        "accord.v1.SecureAggregationService/RevealShares",
        "accord.v1.AdminService/GetFederation",
        "accord.v1.AdminService/ListJoinTokens",
        "accord.v1.AdminService/ListParticipants",
        "accord.v1.AdminService/GetParticipant",
        "accord.v1.AdminService/GetPublishedCharter",
        "accord.v1.AdminService/GetRun",
        "accord.v1.AdminService/ListRuns",
        "accord.v1.AdminService/GetRound",
        "accord.v1.AdminService/ListRounds",
        "accord.v1.AdminService/ListAdapters",
        "accord.v1.AdminService/ListAuditEvents",
        "accord.v1.AdminService/VerifyAuditLog",
        "accord.v1.AdminService/ListWebTokens",
    }
)


def server_options(
    *, most_message_bytes: int = MOST_MESSAGE_BYTES, most_streams_per_connection: int = MOST_STREAMS_PER_CONNECTION
) -> list[ChannelOption]:
    """Options of every listener."""
    return [
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
        ("grpc.max_connection_idle_ms", IDLE_SECONDS * 1000),
        *_common_options(ping_seconds=SERVER_PING_SECONDS, window_bytes=SERVER_WINDOW_BYTES),
        *_message_limits(most_message_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", LEAST_PING_INTERVAL_SECONDS * 1000),
        ("grpc.max_concurrent_streams", most_streams_per_connection),
        # On by default: a second server would bind the same port in silence and take half of the calls.
        ("grpc.so_reuseport", 0),
    ]


def channel_options(*, ping_seconds: int = CLIENT_PING_SECONDS) -> list[ChannelOption]:
    """Options of a client's channel for everything but uploads: RETRIED_METHODS are retried on UNAVAILABLE.

    ping_seconds: how long a connection is left quiet; at least LEAST_CLIENT_PING_SECONDS.
    """
    return [
        *_common_options(ping_seconds=ping_seconds, window_bytes=CLIENT_WINDOW_BYTES),
        *_message_limits(MOST_MESSAGE_BYTES),
        ("grpc.enable_retries", 1),
        ("grpc.service_config", _service_config(sorted(RETRIED_METHODS))),
        *_own_connection(),
    ]


def upload_channel_options(*, ping_seconds: int = CLIENT_PING_SECONDS) -> list[ChannelOption]:
    """Options of a client's channel for client-streaming calls: nothing is ever replayed."""
    return [
        *_common_options(ping_seconds=ping_seconds, window_bytes=CLIENT_WINDOW_BYTES),
        *_message_limits(MOST_MESSAGE_BYTES),
        ("grpc.enable_retries", 0),
        *_own_connection(),
    ]


def _common_options(*, ping_seconds: int, window_bytes: int) -> list[ChannelOption]:
    return [
        ("grpc.keepalive_time_ms", ping_seconds * 1000),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_SECONDS * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", window_bytes),
    ]


def _message_limits(most_bytes: int) -> list[ChannelOption]:
    return [("grpc.max_receive_message_length", most_bytes), ("grpc.max_send_message_length", most_bytes)]


def _own_connection() -> list[ChannelOption]:
    """The library shares connections between channels of equal settings; a renewed certificate needs its own."""
    return [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", MOST_RECONNECT_SECONDS * 1000)]


def _service_config(methods: Sequence[str]) -> str:
    names = [dict(zip(("service", "method"), method.split("/"), strict=True)) for method in methods]
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.2s",
        "maxBackoff": "3s",
        "backoffMultiplier": 2.5,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": policy}]})
