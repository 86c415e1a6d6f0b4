"""Which way is dialled: what the environment and the configuration say about proxies, and what they may not say."""

import pytest

from common.errors import InvalidArgument
from participant.network.route import by_environment, parse_proxy, straight_to

TO = "accord.example.org:7443"
THROUGH = {"https_proxy": "http://proxy:3128"}


@pytest.mark.parametrize(
    "exception", ["accord.example.org", ".example.org", "*.example.org", "example.org", "a, .example.org", "*"]
)
def test_a_host_that_the_environment_excepts_is_dialled_straight(exception):
    assert by_environment(TO, environment={**THROUGH, "no_proxy": exception}.get).proxy is None


@pytest.mark.parametrize("exception", ["", "accord.example.com", ".example", "ple.org", "10.0.0.0/8"])
def test_a_host_that_is_not_excepted_is_dialled_through_the_proxy(exception):
    route = by_environment(TO, environment={**THROUGH, "no_proxy": exception}.get)
    assert route.first_hop == ("proxy", 3128)
    assert route.target == TO


@pytest.mark.parametrize(
    ("address", "network"), [("10.1.2.3:7443", "10.0.0.0/8"), ("[2001:db8::1]:7443", "2001:db8::/32")]
)
def test_an_address_in_an_excepted_network_is_dialled_straight(address, network):
    assert by_environment(address, environment={**THROUGH, "no_proxy": network}.get).proxy is None


def test_the_first_variable_that_is_set_counts_and_is_named_in_a_complaint():
    environment = {"grpc_proxy": "http://own:1", "HTTPS_PROXY": "socks5://other:2"}
    assert by_environment(TO, environment=environment.get).first_hop == ("own", 1)
    with pytest.raises(InvalidArgument, match="the environment's HTTPS_PROXY: socks5:// proxies are not supported"):
        by_environment(TO, environment={"HTTPS_PROXY": "socks5://other:2"}.get)


def test_an_ipv6_address_keeps_its_brackets_where_they_are_needed():
    route = straight_to("[2001:db8::1]:7443")
    assert (route.host, route.target) == ("2001:db8::1", "[2001:db8::1]:7443")
    assert parse_proxy("http://[::1]:3128").authority == "[::1]:3128"


def test_a_proxys_user_and_password_are_unquoted_and_shown_to_nobody():
    proxy = parse_proxy("http://site%20one:p%40ss@proxy:3128")
    assert (proxy.user, proxy.password) == ("site one", "p@ss")
    assert "p@ss" not in repr(proxy)


@pytest.mark.parametrize(
    "text", ["https://proxy:3128", "http://", "http://proxy:port", "http://user:secret@proxy:1/path"]
)
def test_what_is_no_proxys_url_is_refused_without_its_password(text):
    with pytest.raises(InvalidArgument) as refused:
        parse_proxy(text)
    assert "secret" not in refused.value.message
