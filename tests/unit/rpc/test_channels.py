"""Transport settings: both ends fit each other, and nothing that streams is ever retried."""

from __future__ import annotations

import json

import pytest

from common.rpc.channels import (
    CLIENT_WINDOW_BYTES,
    RETRIED_METHODS,
    channel_options,
    server_options,
    upload_channel_options,
)


def test_a_client_does_not_ping_faster_than_the_server_allows():
    least = dict(server_options())["grpc.http2.min_ping_interval_without_data_ms"]

    for options in (channel_options(), upload_channel_options()):
        assert int(dict(options)["grpc.keepalive_time_ms"]) >= 2 * int(least)


def test_an_upload_channel_retries_nothing():
    options = dict(upload_channel_options())

    assert options["grpc.enable_retries"] == 0
    assert "grpc.service_config" not in options


def test_a_retry_policy_names_its_methods_one_by_one():
    config = json.loads(str(dict(channel_options())["grpc.service_config"]))
    names = [name for method in config["methodConfig"] for name in method["name"]]

    assert {f"{name['service']}/{name['method']}" for name in names} == RETRIED_METHODS


def test_a_server_does_not_share_its_port():
    assert dict(server_options())["grpc.so_reuseport"] == 0


def test_limits_are_the_operators_to_set():
    options = dict(server_options(most_message_bytes=1, most_streams_per_connection=2))

    assert options["grpc.max_receive_message_length"] == 1
    assert options["grpc.max_concurrent_streams"] == 2


@pytest.mark.parametrize("options", [server_options(), channel_options(), upload_channel_options()])
def test_what_a_slow_receiver_has_to_hold_does_not_grow_with_the_network(options):
    values = dict(options)
    assert values["grpc.http2.bdp_probe"] == 0
    assert values["grpc.http2.lookahead_bytes"] <= CLIENT_WINDOW_BYTES
