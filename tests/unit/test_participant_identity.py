"""The site's identity folder: whole or not enrolled, and never another's certificate."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from common.certificates import to_pem
from common.errors import ClockWrong, ConfigInvalid, InvalidArgument, NotFound, StorageFailed, Unauthenticated
from common.identifiers import FederationId, ParticipantId
from coordinator.pki import key_pem, new_authority
from participant.identity import RENEW_AT, Enrollment, IdentityFolder, IdentityKey, SiteIdentity
from tests.fakes import START_OF_TIME

NORTH, BANK = FederationId("north"), ParticipantId("bank")
AUTHORITY = new_authority(NORTH, now=START_OF_TIME)
TRUST = to_pem([AUTHORITY.certificate])
ENROLLMENT = Enrollment(
    federation="north", participant="bank", coordinator_address="127.0.0.1:8443", is_renewed_by_coordinator=True
)


@pytest.fixture
def folder(tmp_path) -> IdentityFolder:
    return IdentityFolder(tmp_path / "identity")


def issued(key: IdentityKey, participant: str = "bank", *, now=START_OF_TIME) -> str:
    return AUTHORITY.issue_participant(key.public_key(), ParticipantId(participant), now=now).chain_pem


def enroll(folder: IdentityFolder, chain: str, *, trust: str = TRUST, now=START_OF_TIME) -> SiteIdentity:
    return folder.enroll(ENROLLMENT, certificate_chain=chain, trust_bundle=trust, now=now)


def files(folder: IdentityFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.path.iterdir()}


def test_an_enrolled_folder_says_who_the_site_is(folder):
    key = folder.ensure_key()
    enroll(folder, issued(key))

    identity = folder.load()

    assert (identity.federation, identity.participant) == ("north", "bank")
    assert identity.coordinator_address == "127.0.0.1:8443"
    assert identity.private_key.public_key() == key.public_key() == identity.chain[0].public_key()
    assert "PRIVATE" not in repr(identity)


def test_a_key_is_made_once_and_for_its_owner_alone(folder):
    first, second = folder.ensure_key(), folder.ensure_key()

    assert first.public_key() == second.public_key()
    assert folder.key_file.stat().st_mode & 0o777 == 0o600


def test_a_folder_with_a_key_alone_is_not_enrolled(folder):
    folder.ensure_key()

    assert not folder.is_there
    with pytest.raises(NotFound, match="accord-participant enroll"):
        folder.load()


@pytest.mark.parametrize(
    ("chain", "why"),
    [
        (lambda key: issued(ec.generate_private_key(ec.SECP256R1())), "not for the key"),
        (lambda key: issued(key, "clinic"), "is for accord://north/participants/clinic"),
        (lambda key: AUTHORITY.issue_server(["localhost"], now=START_OF_TIME).chain_pem, "not for the key"),
    ],
    ids=["other key", "other name", "server"],
)
def test_a_certificate_that_is_not_this_sites_is_not_kept(folder, chain, why):
    key = folder.ensure_key()
    before = files(folder)

    with pytest.raises(Unauthenticated, match=why):
        enroll(folder, chain(key))

    assert files(folder) == before


@pytest.mark.parametrize("now", [START_OF_TIME - timedelta(hours=1), START_OF_TIME + timedelta(days=31)])
def test_a_certificate_that_is_not_valid_by_this_machines_clock_is_not_kept(folder, now):
    key = folder.ensure_key()

    with pytest.raises(ClockWrong, match="set this machine's clock"):
        enroll(folder, issued(key), now=now)
    assert not folder.is_there


@pytest.mark.parametrize("trust", ["", "garbage"])
def test_a_certificate_without_a_trust_bundle_is_not_kept(folder, trust):
    key = folder.ensure_key()

    with pytest.raises(InvalidArgument, match="trust bundle"):
        enroll(folder, issued(key), trust=trust)
    assert not folder.is_there


def test_a_refused_renewal_leaves_the_present_certificate(folder):
    key = folder.ensure_key()
    enroll(folder, issued(key))
    before = files(folder)

    with pytest.raises(Unauthenticated):
        folder.renew(certificate_chain=issued(key, "clinic"), trust_bundle=TRUST, now=START_OF_TIME)

    assert files(folder) == before


def test_a_renewal_that_finds_the_disk_full_says_so_and_leaves_the_present_certificate(folder, monkeypatch):
    key = folder.ensure_key()
    enroll(folder, issued(key))
    before, later = files(folder), START_OF_TIME + timedelta(days=15)

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("participant.identity.write_durably", full)
    with pytest.raises(StorageFailed, match="No space left"):
        folder.renew(certificate_chain=issued(key, now=later), trust_bundle=TRUST, now=later)
    assert files(folder) == before


def test_a_renewal_replaces_certificate_and_trust_and_keeps_the_key(folder):
    key = folder.ensure_key()
    enroll(folder, issued(key))
    later = START_OF_TIME + timedelta(days=15)
    trust = TRUST + to_pem([new_authority(NORTH, now=later).certificate])

    identity = folder.renew(certificate_chain=issued(key, now=later), trust_bundle=trust, now=later)

    assert identity.expires_at == later + timedelta(days=30)
    assert identity.trust_bundle == trust
    assert identity.private_key.public_key() == key.public_key()


def test_renewal_is_due_at_half_of_the_life_well_before_two_thirds(folder):
    identity = enroll(folder, issued(folder.ensure_key()))
    begin, end = identity.certificate.not_valid_before_utc, identity.expires_at
    due = begin + (end - begin) * RENEW_AT

    assert not identity.needs_renewal(due - timedelta(seconds=1))
    assert identity.needs_renewal(due)
    assert due < begin + (end - begin) * 2 / 3 - timedelta(days=4)


def test_a_certificate_of_an_organisations_own_pki_is_not_renewed_here(folder):
    identity = enroll(folder, issued(folder.ensure_key()))
    own = replace(identity, enrollment=replace(ENROLLMENT, is_renewed_by_coordinator=False))

    assert not own.needs_renewal(identity.expires_at)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("identity.key", key_pem(ec.generate_private_key(ec.SECP256R1()))),
        ("identity.key", b"garbage"),
        ("certificate.pem", b"garbage"),
        ("certificate.pem", b"\xff\xff"),
        ("trust.pem", b"\xff\xff"),
        ("trust.pem", b""),
        ("enrollment.json", b"{}"),
        ("enrollment.json", b"\xff"),
        ("enrollment.json", json.dumps({"federation": "NORTH"}).encode()),
    ],
)
def test_files_that_do_not_belong_together_are_a_mistake_with_a_name(folder, name, content):
    enroll(folder, issued(folder.ensure_key()))
    (folder.path / name).write_bytes(content)

    with pytest.raises(ConfigInvalid, match=r"identity|enrollment\.json|key"):
        folder.load()


@pytest.mark.parametrize("name", ["identity.key", "certificate.pem", "trust.pem"])
def test_a_missing_file_is_named(folder, name):
    enroll(folder, issued(folder.ensure_key()))
    (folder.path / name).unlink()

    with pytest.raises(NotFound, match=name):
        folder.load()
