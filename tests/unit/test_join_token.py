"""The text of a join token: whole or refused, and never repeated in a message."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest

from common.certificates import to_pem
from common.errors import InvalidArgument, JoinTokenInvalid
from common.identifiers import FederationId, ParticipantId
from common.join_token import PREFIX, Invitation, from_text, new_secret, secret_sha256, to_text
from coordinator.pki import new_authority
from tests.fakes import START_OF_TIME

AUTHORITY = new_authority(FederationId("north"), now=START_OF_TIME)
SECRET = new_secret(lambda size: bytes(range(size)))
INVITATION = Invitation(
    federation=FederationId("north"),
    participant=ParticipantId("bank"),
    enrollment_address="coordinator.example:8444",
    coordinator_address="[2001:db8::1]:8443",
    authority=to_pem([AUTHORITY.certificate]),
    secret=SECRET,
)


def changed(**entries: object) -> str:
    """A token with other entries; None leaves one out."""
    text = to_text(INVITATION).removeprefix(PREFIX)
    content = {**json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))), **entries}
    kept = {name: value for name, value in content.items() if value is not None}
    return PREFIX + base64.urlsafe_b64encode(json.dumps(kept).encode()).decode().rstrip("=")


def test_a_token_is_read_back():
    assert from_text(to_text(INVITATION)) == INVITATION


def test_a_token_carries_both_cas_while_one_takes_the_others_place():
    following = new_authority(FederationId("north"), now=START_OF_TIME)
    both = replace(INVITATION, authority=to_pem([AUTHORITY.certificate, following.certificate]))
    assert from_text(to_text(both)) == both
    three = replace(INVITATION, authority=to_pem([AUTHORITY.certificate] * 3))
    with pytest.raises(InvalidArgument, match="carries one, or 2 during a change"):
        to_text(three)
    with pytest.raises(JoinTokenInvalid):
        from_text(changed(authority_next="bm90IGEgY2VydGlmaWNhdGU"))


def test_a_token_survives_being_wrapped_by_a_mail_program():
    text = to_text(INVITATION)
    wrapped = "\r\n  ".join(text[start : start + 60] for start in range(0, len(text), 60)) + "\n"

    assert from_text(wrapped) == INVITATION


def test_a_token_is_one_word_that_a_shell_leaves_alone():
    assert set(to_text(INVITATION)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


def test_a_secret_has_256_bits_and_only_its_digest_is_kept():
    assert len(base64.urlsafe_b64decode(SECRET + "=")) == 32
    assert secret_sha256(SECRET) != secret_sha256(new_secret(lambda size: b"\x01" * size))
    assert SECRET not in secret_sha256(SECRET)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        PREFIX,
        PREFIX + "!!!!",
        PREFIX + "AAAA",
        PREFIX + base64.urlsafe_b64encode(b"[]").decode(),
        PREFIX + base64.urlsafe_b64encode(b"[" * 9000).decode().rstrip("="),
        PREFIX + "A" * 100_000,
        to_text(INVITATION)[:-20],
        to_text(INVITATION).replace("e", "E"),
    ],
)
def test_what_is_no_token_is_refused(text):
    with pytest.raises(JoinTokenInvalid):
        from_text(text)


@pytest.mark.parametrize(
    "entries",
    [
        {"form": 2},
        {"federation": "North"},
        {"participant": "../etc"},
        {"participant": None},
        {"enrollment": "coordinator.example"},
        {"coordinator": "http://coordinator.example:8443/x"},
        {"secret": "short"},
        {"secret": 7},
        {"authority": "AAAA"},
        {"authority": None},
    ],
)
def test_a_token_with_a_wrong_entry_is_refused_and_the_secret_is_not_repeated(entries):
    with pytest.raises(JoinTokenInvalid) as caught:
        from_text(changed(**entries))

    assert SECRET not in caught.value.message
    assert caught.value.__cause__ is None


def test_a_token_does_not_bring_a_certificate_that_is_no_ca():
    leaf = AUTHORITY.issue_server(["localhost"], now=START_OF_TIME).chain_pem

    with pytest.raises(InvalidArgument, match="is not a CA's"):
        to_text(replace(INVITATION, authority=leaf))
