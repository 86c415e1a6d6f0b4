"""Certificates against the charter, and identity signatures of every accepted kind."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import MemberRejected, SignatureInvalid
from common.secagg import PinnedMember, PinnedMembers, sign_as_identity, spki_sha256, verify_identity
from tests.unit.secagg.federation import NOW, Authority, member_uri

DIGEST = bytes(range(32))


@pytest.fixture(scope="module")
def ca():
    return Authority.create()


def pinned(ca, *, key_sha256=None, at=NOW):
    return PinnedMembers({"a": PinnedMember(member_uri("a"), ca.pem, key_sha256)}, at)


def test_a_members_own_certificate_gives_its_key(ca):
    member = ca.issue(member_uri("a"))
    key = pinned(ca, key_sha256=spki_sha256(member.certificate)).verify("a", member.chain)
    verify_identity(key, "advertise", DIGEST, sign_as_identity(member.key, "advertise", DIGEST))


def test_another_ca_name_time_key_or_member_is_refused(ca):
    member = ca.issue(member_uri("a"))
    twin = ca.issue(member_uri("a"))
    other_ca = Authority.create()
    cases = [
        (pinned(other_ca), "a", member.chain, "does not chain"),
        (pinned(ca), "a", other_ca.issue(member_uri("a")).chain, "does not chain"),
        (pinned(ca, at=NOW + timedelta(days=60)), "a", member.chain, "does not chain"),
        (pinned(ca, at=NOW - timedelta(days=5)), "a", member.chain, "does not chain"),
        (pinned(ca), "a", ca.issue(member_uri("b")).chain, "participants/b"),
        (pinned(ca, key_sha256=spki_sha256(member.certificate)), "a", twin.chain, "identity key"),
        (pinned(ca), "b", member.chain, "not a member"),
        (pinned(ca), "a", (), "no certificate"),
        (pinned(ca), "a", (b"junk",), "cannot be read"),
    ]
    for verifier, org_id, chain, words in cases:
        with pytest.raises(MemberRejected, match=words):
            verifier.verify(org_id, chain)


@pytest.mark.parametrize(
    "key",
    [
        Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 3072),
    ],
    ids=["ed25519", "p256", "p384", "rsa3072"],
)
def test_every_accepted_kind_of_key_signs_and_another_name_or_digest_does_not_verify(key):
    signature = sign_as_identity(key, "advertise", DIGEST)
    verify_identity(key.public_key(), "advertise", DIGEST, signature)
    for name, digest, bad in (
        ("ready", DIGEST, signature),
        ("advertise", bytes(32), signature),
        ("advertise", DIGEST, signature[:-1] + bytes([signature[-1] ^ 1])),
    ):
        with pytest.raises(SignatureInvalid):
            verify_identity(key.public_key(), name, digest, bad)


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP521R1()), rsa.generate_private_key(65537, 2048)])
def test_weak_or_unlisted_keys_neither_sign_nor_count(key):
    with pytest.raises(MemberRejected):
        sign_as_identity(key, "advertise", DIGEST)
    with pytest.raises(MemberRejected):
        verify_identity(key.public_key(), "advertise", DIGEST, bytes(64))


def test_certificates_are_never_checked_without_a_time_zone(ca):
    with pytest.raises(ValueError, match="aware"):
        PinnedMembers({}, NOW.replace(tzinfo=None))
