"""Coordinators that lie while keys are made, against real sites: other keys in the roster, shares that are not theirs.

Numbers are those of the table in common/secagg/README.md. Where a lie needs a member that conspires, the test plays it
with the member's own key. A lie that was refused costs nothing: told the truth afterwards, the site goes on.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.testing import capture_logs

from accord.v1 import secure_aggregation_pb2 as pb
from common.errors import (
    AccordError,
    MemberRejected,
    PlanInvalid,
    ProtocolViolation,
    SignatureInvalid,
)
from common.identifiers import FederationId, ParticipantId
from common.secagg import EpochKeys, identity_signer, sealing
from common.secagg.hashing import digest
from common.secagg.messages import Advertisement, Deposit, SealedShare, Signed
from common.secagg.roster import _encode, sign_advertisement
from coordinator.keystore import PkiFolder
from coordinator.pki import CertificateAuthority, new_authority
from participant.journal import EpochPhase
from tests.rpc.federation import FEDERATION, Site
from tests.rpc.lab import Lab, open_round
from tests.rpc.lying_coordinator import (
    LATE,
    NAMES,
    VICTIM,
    Call,
    LyingFederation,
    assert_refuses,
    honest_afterwards,
    honest_end,
    honest_round,
    lying_lab,
)

key_lab = lying_lab(rounds_per_epoch=1)


@pytest.fixture
def keyless(key_lab: Lab) -> Iterator[LyingFederation]:
    """Four sites that make new keys for every round."""
    yield from honest_afterwards(key_lab.of(4))


def epoch_phase(site: Site, epoch: int) -> EpochPhase:
    journal = site.journal()
    try:
        entry = journal.epoch("run", epoch)
    finally:
        journal.close()
    assert entry is not None
    return entry.phase


def index_of(name: str) -> int:
    return NAMES.index(name)


# --- the roster: 7 to 9 and 18 ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def at_the_roster(key_lab: Lab) -> Iterator[LyingFederation]:
    """Five sites, the first of which is about to ask for the roster; in the end the true one is good enough for it."""
    federation = key_lab.of(5)
    assert isinstance(federation, LyingFederation)
    site = federation.sites[VICTIM]
    open_round(federation)
    site.line.cut(before="roster")
    federation.turn_until(lambda: site.line.is_cut)
    site.line.mend()
    yield federation
    assert honest_end(federation) == "succeeded"


@dataclass
class Forger:
    """What a coordinator has at hand: true advertisements, its own authority, and members that conspire with it."""

    federation: LyingFederation
    messages: list[bytes]

    def body(self, name: str) -> Advertisement:
        return Advertisement.decode(self.signed(name).body)

    def signed(self, name: str) -> Signed:
        return Signed.decode(self.messages[index_of(name)])

    def roster(self, **instead: bytes) -> bytes:
        """The roster with other advertisements for these members; names without their hyphen."""
        changed = {index_of(name.replace("_", "-")): message for name, message in instead.items()}
        return self.of([changed.get(index, message) for index, message in enumerate(self.messages)])

    def of(self, messages: Sequence[bytes]) -> bytes:
        return _encode(self.body(VICTIM).epoch_hash, messages)

    def key(self, name: str) -> Any:
        return self.federation.sites[name].connection.identity.private_key

    def conspired(self, name: str, **changes: Any) -> bytes:
        """An advertisement that the member itself has signed anew."""
        return sign_advertisement(replace(self.body(name), **changes), identity_signer(self.key(name))).encode()

    def certified(self, name: str, *, key: Any = None, subject: str = "", **authority: Any) -> bytes:
        """One with a fresh certificate for `subject`, on a key of the coordinator's where no member lends its own."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        issuer = authority.pop("by", self.authority)
        issued = issuer.issue_participant(
            key.public_key(), ParticipantId(subject or name), **{"now": self.federation.clock.now(), **authority}
        )
        body = replace(
            self.body(name if name in NAMES else LATE),
            org_id=name,
            certificate_chain=(issued.certificate.public_bytes(Encoding.DER),),
        )
        return sign_advertisement(body, identity_signer(key)).encode()

    @property
    def authority(self) -> CertificateAuthority:
        return PkiFolder(self.federation.config.pki_folder).load_authority(FederationId(FEDERATION))


def own_kem_key() -> bytes:
    return sealing.public_key(secrets.token_bytes(sealing.SEED_BYTES))


def unsigned_change(forger: Forger, name: str, **changes: Any) -> bytes:
    """A member's advertisement with the coordinator's keys in it and the member's signature under it."""
    signed = forger.signed(name)
    return replace(signed, body=replace(forger.body(name), **changes).encode()).encode()


def with_a_handshakes_signature(forger: Forger, name: str) -> bytes:
    """What the member's key signs in TLS 1.3 when it shows its certificate, over a hash that the other end chose."""
    body = replace(forger.body(name), kem_key=own_kem_key()).encode()
    wanted = digest("advertise", forger.body(name).epoch_hash, body)
    proof = forger.key(name).sign(
        b" " * 64 + b"TLS 1.3, client CertificateVerify\x00" + wanted, ec.ECDSA(hashes.SHA256())
    )
    return Signed(body, proof).encode()


ROSTERS: dict[str, tuple[Callable[[Forger], bytes], type[AccordError], str]] = {
    "7 a KEM key replaced": (
        lambda forger: forger.roster(site_1=unsigned_change(forger, "site-1", kem_key=own_kem_key())),
        SignatureInvalid,
        "identity signature on advertise",
    ),
    "7 a signing key replaced": (
        lambda forger: forger.roster(site_1=unsigned_change(forger, "site-1", signing_key=bytes(range(32)))),
        SignatureInvalid,
        "identity signature on advertise",
    ),
    "7 a commitment replaced": (
        lambda forger: forger.roster(site_1=unsigned_change(forger, "site-1", self_commitments=(bytes(32),))),
        SignatureInvalid,
        "identity signature on advertise",
    ),
    "8 an organisation that the charter does not name": (
        lambda forger: forger.of([*forger.messages[:4], forger.certified("site-9")]),
        MemberRejected,
        "site-9 is not a member",
    ),
    "8 a member's name on a key of the coordinator's, certified by its own CA": (
        lambda forger: forger.roster(site_1=forger.certified("site-1")),
        MemberRejected,
        "does not have the identity key that the charter pins",
    ),
    "8 another CA": (
        lambda forger: forger.roster(
            site_1=forger.certified(
                "site-1",
                key=forger.key("site-1"),
                by=new_authority(FederationId(FEDERATION), now=forger.federation.clock.now()),
            )
        ),
        MemberRejected,
        "does not chain to its pinned CA",
    ),
    "8 a certificate that has expired": (
        lambda forger: forger.roster(
            site_1=forger.certified(
                "site-1",
                key=forger.key("site-1"),
                now=forger.federation.clock.now() - timedelta(minutes=2),
                life=timedelta(minutes=1),
            )
        ),
        MemberRejected,
        "does not chain to its pinned CA as of",
    ),
    "8 a certificate of another name": (
        lambda forger: forger.roster(site_1=forger.certified("site-1", key=forger.key("site-2"), subject="site-2")),
        MemberRejected,
        "the charter says",
    ),
    "8 a handshake's signature replayed": (
        lambda forger: forger.roster(site_1=with_a_handshakes_signature(forger, "site-1")),
        SignatureInvalid,
        "identity signature on advertise",
    ),
    "9 an organisation twice": (
        lambda forger: forger.of([*forger.messages[:2], *forger.messages[1:4]]),
        ProtocolViolation,
        "names one twice",
    ),
    "9 one KEM key under two names": (
        lambda forger: forger.roster(site_2=forger.conspired("site-2", kem_key=forger.body("site-1").kem_key)),
        ProtocolViolation,
        "site-1, site-2 advertise the same kem_key",
    ),
    "9 one signing key under two names": (
        lambda forger: forger.roster(site_2=forger.conspired("site-2", signing_key=forger.body("site-1").signing_key)),
        ProtocolViolation,
        "site-1, site-2 advertise the same signing_key",
    ),
    "18 an X25519 key of low order": (
        lambda forger: forger.roster(
            site_2=forger.conspired("site-2", kem_key=forger.body("site-2").kem_key[:-32] + b"\x01" + bytes(31))
        ),
        ProtocolViolation,
        "malformed or of low order",
    ),
    "18 an X25519 key of zeros": (
        lambda forger: forger.roster(
            site_2=forger.conspired("site-2", kem_key=forger.body("site-2").kem_key[:-32] + bytes(32))
        ),
        ProtocolViolation,
        "malformed or of low order",
    ),
    "18 an ML-KEM key that is not reduced": (
        lambda forger: forger.roster(
            site_2=forger.conspired("site-2", kem_key=b"\xff" * 1184 + forger.body("site-2").kem_key[-32:])
        ),
        ProtocolViolation,
        "malformed or of low order",
    ),
    "11 keys for another plan": (
        lambda forger: forger.roster(site_2=forger.conspired("site-2", epoch_hash=bytes(32))),
        ProtocolViolation,
        "site-2 advertises for another plan or key epoch",
    ),
    "11 a roster for another plan": (
        lambda forger: _encode(bytes(32), forger.messages),
        ProtocolViolation,
        "the key roster is for another plan or key epoch",
    ),
    "29 a roster of the site and one more": (
        lambda forger: forger.of(forger.messages[:2]),
        PlanInvalid,
        "2 members, the plan asks for 3 to 5",
    ),
    "29 a roster with one more than there are members": (
        lambda forger: forger.of([*forger.messages, forger.certified("site-9")]),
        PlanInvalid,
        "6 members, the plan asks for 3 to 5",
    ),
}


@pytest.mark.parametrize("lie", ROSTERS)
def test_7_8_9_11_18_a_roster_that_is_not_the_members_own_gets_no_share_of_anything(
    at_the_roster: LyingFederation, lie: str
) -> None:
    liar, site = at_the_roster.liar, at_the_roster.sites[VICTIM]
    forge, kind, words = ROSTERS[lie]
    epoch = liar.heard("AdvertiseKeys", VICTIM)[-1].epoch
    forger = Forger(
        at_the_roster, [liar.heard("AdvertiseKeys", name)[-1].advertisement for name in at_the_roster.sites]
    )
    forged = forge(forger)
    liar.tell("GetRoster", lambda call, truth: [pb.GetRosterResponse(chunk=forged)], to=[VICTIM])

    assert_refuses(site, kind, words)

    assert liar.heard("DepositShares", VICTIM, epoch=epoch) == []
    assert epoch_phase(site, epoch) is EpochPhase.ADVERTISING


def test_a_roster_without_end_is_not_read_to_its_end(at_the_roster: LyingFederation) -> None:
    site = at_the_roster.sites[VICTIM]
    chunk = pb.GetRosterResponse(chunk=bytes(1 << 20))
    at_the_roster.liar.tell("GetRoster", lambda call, truth: [chunk] * 33, to=[VICTIM])
    assert_refuses(site, ProtocolViolation, "more than 32 MiB of roster")


# --- shares: 10 and 17 --------------------------------------------------------------------------------------------


def shares_refused(site: Site) -> dict[str | None, str]:
    """Owners whose shares the site refuses in its next turn, and why."""
    with capture_logs() as lines:
        site.turn()
    return {line["owner"]: line["why"] for line in lines if line["event"] == "share_refused"}


def test_10_sites_that_were_shown_different_rosters_hold_nothing_of_each_other(keyless: LyingFederation) -> None:
    liar, site = keyless.liar, keyless.sites[VICTIM]
    number = open_round(keyless)
    site.line.cut(before="roster")
    keyless.turn_until(lambda: site.line.is_cut)
    site.line.mend()
    forger = Forger(keyless, [liar.heard("AdvertiseKeys", name)[-1].advertisement for name in NAMES])
    # Both of site-2's advertisements are its own: it conspires, and no site can tell by itself.
    other = forger.roster(site_2=forger.conspired("site-2", nonce=bytes(range(32))))
    liar.tell("GetRoster", lambda call, truth: [pb.GetRosterResponse(chunk=other)], to=[VICTIM])
    liar.keep("DepositShares", lambda call: pb.DepositSharesResponse(), of=[VICTIM])
    liar.keep("ConfirmShares", lambda call: pb.ConfirmSharesResponse(), of=[VICTIM])
    site.turn()
    (deposit,) = {request.deposit for request in liar.heard("DepositShares", VICTIM)[-1:]}
    envelopes = Deposit.decode(deposit).envelopes

    def passed_on(call: Call, truth: Any) -> Any:
        return [*truth, pb.GetSharesResponse(sealed_share=envelopes[index_of(call.caller)])]

    liar.tell("GetShares", passed_on, to=NAMES[1:])
    for name in NAMES[1:]:
        keyless.sites[name].line.cut(before="shares")
    keyless.turn(NAMES[1:])
    keyless.advance(10.5)
    keyless.turn(NAMES[1:])
    for name in NAMES[1:]:
        keyless.sites[name].line.mend()
        assert shares_refused(keyless.sites[name]) == {None: "a sealed share is for another roster or another holder"}
    refused = shares_refused(site)

    assert refused == {None: "a sealed share is for another roster or another holder"}
    assert held(site) == {0}
    for name in NAMES[1:]:
        assert held(keyless.sites[name]) == {1, 2, 3}
    assert honest_end(keyless) == "succeeded"
    assert keyless.round(number)["survivors"] == [f"participants/{name}" for name in NAMES[1:]]


def held(site: Site) -> set[int]:
    """Indices of the owners whose shares a site has."""
    journal = site.journal()
    try:
        (run,) = journal.runs()
        epoch = max(e for e in range(1, 200) if journal.epoch(run.run, e) is not None)
        entry = journal.epoch(run.run, epoch)
    finally:
        journal.close()
    assert entry is not None
    assert entry.phase is EpochPhase.KEYS
    return set(EpochKeys.from_bytes(entry.state).shares)


def test_17_shares_that_are_bent_swapped_old_or_forged_are_refused_and_their_owners_not_held(
    keyless: LyingFederation,
) -> None:
    liar, site = keyless.liar, keyless.sites[VICTIM]
    assert honest_round(keyless) == "succeeded"
    old = {name: Deposit.decode(liar.heard("DepositShares", name)[-1].deposit).envelopes for name in NAMES}
    number = open_round(keyless)
    site.line.cut(before="shares")
    keyless.turn_until(lambda: site.line.is_cut)
    site.line.mend()
    new = {name: Deposit.decode(liar.heard("DepositShares", name)[-1].deposit).envelopes for name in NAMES}
    signed = Signed.decode(new["site-1"][0])
    sealed = SealedShare.decode(signed.body)
    bent = replace(sealed, box=bytes([sealed.box[0] ^ 1]) + sealed.box[1:])
    own_box = sealing.seal_share(
        Advertisement.decode(Signed.decode(liar.heard("AdvertiseKeys", VICTIM)[-1].advertisement).body).kem_key,
        secrets.token_bytes(32 + 66),
        roster_hash=sealed.roster_hash,
        owner=1,
        holder=0,
    )
    bad = [
        replace(signed, body=bent.encode()).encode(),
        Signed.by_epoch_key(bytes(32), "share", replace(sealed, box=own_box).encode()).encode(),
        new["site-2"][1],
        new["site-2"][3],
        old["site-3"][0],
        b"junk",
    ]
    liar.tell("GetShares", lambda call, truth: [pb.GetSharesResponse(sealed_share=one) for one in bad], to=[VICTIM])
    with capture_logs() as lines:
        site.turn()
    said = [line["why"] for line in lines if line["event"] == "share_refused"]

    assert len(said) == len(bad)
    assert said[:2] == ["the signature on share is not that of site-1"] * 2
    assert said[2:5] == ["a sealed share is for another roster or another holder"] * 3
    assert held(site) == {0}
    assert honest_end(keyless) == "succeeded"
    assert keyless.round(number)["survivors"] == [f"participants/{name}" for name in NAMES[1:]]
    line = keyless.audit("key_epoch_ready")[-1]
    assert json.loads(line["details_json"])["left_out"].keys() == {VICTIM}
