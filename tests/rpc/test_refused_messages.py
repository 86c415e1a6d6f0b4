"""Messages of the masking protocol that are doctored, replayed, out of turn or in another's name, and their senders."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from common.errors import (
    AlreadyExists,
    MalformedMessage,
    NotFound,
    NotInCohort,
    OutOfTurn,
    ProtocolViolation,
    SignatureInvalid,
)
from common.masking import key_epoch
from common.secagg import Bound, begin_epoch, hashing, sealing
from common.secagg.messages import Commit, Reveal, Signed
from participant.journal import RoundPhase
from tests.rpc.federation import Federation, Site, federation_in
from tests.rpc.lab import Lab, open_round

LIAR = "site-1"


@pytest.fixture
def federation(lab: Lab) -> Iterator[Federation]:
    federation = lab.of(4)
    yield federation
    for site in federation.sites.values():
        site.line.mend()
        site.line.forget()
    found = federation.play(int(federation.run()["round"]))
    assert found["state"] == "succeeded"


def stop_at(federation: Federation, name: str) -> tuple[Site, bytes, int]:
    """A round in which the liar's own message of that name is in the test's hands; its epoch's or round's number."""
    open_round(federation)
    liar = federation.sites[LIAR]
    liar.line.forget()
    liar.line.cut(before=name)
    federation.turn_until(lambda: liar.line.is_cut)
    (_, number, message), _ = liar.line.attempts[name][-1]
    return liar, message, number


def flipped(message: bytes, at: int) -> bytes:
    return message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]


def test_an_advertisement_is_its_senders_and_comes_once(federation: Federation) -> None:
    liar, message, epoch = stop_at(federation, "advertise_keys")
    _, other, theirs = federation.sites["site-2"].line.attempts["advertise_keys"][-1][0]
    assert other == epoch

    with pytest.raises(MalformedMessage):
        liar.client.advertise_keys("run", epoch, b"garbage")
    with pytest.raises(MalformedMessage):
        liar.client.advertise_keys("run", epoch, b"")
    with pytest.raises(SignatureInvalid):
        liar.client.advertise_keys("run", epoch, flipped(message, len(message) - 1))
    with pytest.raises(ProtocolViolation, match="in the name of site-2"):
        liar.client.advertise_keys("run", epoch, theirs)
    with pytest.raises(NotFound, match="epoch"):
        liar.client.advertise_keys("run", epoch + 1, message)
    liar.client.advertise_keys("run", epoch, message)
    liar.client.advertise_keys("run", epoch, message)


def test_another_advertisement_after_the_first_is_refused(federation: Federation) -> None:
    liar, message, epoch = stop_at(federation, "advertise_keys")
    liar.client.advertise_keys("run", epoch, message)
    second = another_advertisement(federation, liar, epoch)

    with pytest.raises(AlreadyExists):
        liar.client.advertise_keys("run", epoch, second)


def another_advertisement(federation: Federation, site: Site, number: int) -> bytes:
    """Well formed and well signed, with other keys: what a site with a new journal would make."""
    plan = federation.plan()
    digest = bytes.fromhex(federation.run()["plan_digest"])
    identity = site.daemon._desk._identity()
    epoch = key_epoch(plan, digest, number=number, first_round=int(federation.run()["round"]))
    return begin_epoch(
        epoch,
        org_id=identity.participant,
        certificate_chain=identity.certificate_chain,
        identity_signer=identity.signer,
        metric_groups=(),
        random_bytes=secrets.token_bytes,
    ).message


@pytest.mark.parametrize("name", ["deposit_shares", "confirm_shares"])
def test_a_message_of_the_key_set_up_with_any_bit_flipped_is_refused(federation: Federation, name: str) -> None:
    liar, message, epoch = stop_at(federation, name)
    send = getattr(liar.client, name)

    for at in (0, 5, len(message) // 2, len(message) - 1):
        with pytest.raises(ProtocolViolation):
            send("run", epoch, flipped(message, at))
    with pytest.raises(ProtocolViolation):
        send("run", epoch, message[:-1])
    with pytest.raises(ProtocolViolation):
        send("run", epoch, message + b"\x00")
    send("run", epoch, message)
    send("run", epoch, message)


def test_messages_of_another_step_are_out_of_turn(federation: Federation) -> None:
    liar, message, epoch = stop_at(federation, "deposit_shares")
    advertised = liar.line.attempts["advertise_keys"][-1][0][2]

    liar.client.advertise_keys("run", epoch, advertised)  # a replay of what is there changes nothing
    with pytest.raises(AlreadyExists):
        liar.client.advertise_keys("run", epoch, another_advertisement(federation, liar, epoch))
    with pytest.raises(OutOfTurn, match="not all dealt yet"):
        liar.client.shares("run", epoch)
    with pytest.raises(ProtocolViolation):
        liar.client.confirm_shares("run", epoch, message)
    with pytest.raises(OutOfTurn, match="its cohort is not chosen"):
        liar.client.reveal_shares("run", int(federation.run()["round"]), message)
    with pytest.raises(OutOfTurn, match="its cohort is not chosen"):
        liar.client.evidence("run", int(federation.run()["round"]), for_reveal=False, wait_seconds=0)


def slow_close(federation: Federation) -> tuple[Site, int, bytes]:
    """A round that closes without site-0, with the liar's commit in the test's hands."""
    number = open_round(federation)
    liar, lost = federation.sites[LIAR], federation.sites["site-0"]
    liar.line.forget()
    lost.line.cut(before="upload")
    liar.line.cut(before="commit_survivors")
    federation.turn_until(lambda: lost.line.is_cut and federation.participations(number)["site-3"][0] == "uploaded")
    federation.turn_until(lambda: federation.participations(number)[LIAR][0] == "uploaded")
    federation.advance(10.5)
    federation.turn_until(lambda: liar.line.is_cut, sites=[LIAR])
    assert liar.phase(number) is RoundPhase.BOUND
    return liar, number, liar.line.attempts["commit_survivors"][-1][0][2]


def bound(site: Site, number: int) -> Bound:
    journal = site.journal()
    try:
        entry = journal.round("run", number)
    finally:
        journal.close()
    assert entry is not None
    return Bound.from_bytes(entry.state)


def test_a_commit_to_another_survivor_set_or_in_anothers_name_is_refused(federation: Federation) -> None:
    liar, number, message = slow_close(federation)
    state = bound(liar, number)
    index, survivors = state.index, state.survivors

    def commit(sender: int, found: tuple[int, ...]) -> bytes:
        body = Commit(state.context.hash, sender, found, 4).encode()
        return Signed.by_epoch_key(state.signing_seed, "commit", body).encode()

    with pytest.raises(ProtocolViolation, match="another survivor set"):
        liar.client.commit_survivors("run", number, commit(index, (0, 1, 2, 3)))
    with pytest.raises(ProtocolViolation):
        liar.client.commit_survivors("run", number, commit((index + 1) % 4, survivors))
    with pytest.raises(SignatureInvalid):
        liar.client.commit_survivors("run", number, flipped(message, len(message) - 1))
    liar.client.commit_survivors("run", number, message)
    liar.client.commit_survivors("run", number, message)


def test_a_reveal_of_shares_that_were_not_dealt_is_refused_and_the_true_one_counts(federation: Federation) -> None:
    number = open_round(federation)
    liar = federation.sites[LIAR]
    liar.line.forget()
    for name in (LIAR, "site-2"):
        federation.sites[name].line.cut(before="reveal_shares")
    federation.turn_until(lambda: liar.line.is_cut and federation.sites["site-2"].line.is_cut)
    message = liar.line.attempts["reveal_shares"][-1][0][2]
    theirs = federation.sites["site-2"].line.attempts["reveal_shares"][-1][0][2]
    reveal = Reveal.decode(Signed.decode(message).body)

    with pytest.raises(ProtocolViolation):
        liar.client.reveal_shares("run", number, theirs)
    with pytest.raises(SignatureInvalid):
        liar.client.reveal_shares("run", number, flipped(message, len(message) - 1))
    assert reveal.survivors == (0, 1, 2, 3)
    liar.client.reveal_shares("run", number, message)


# --- a member that lied when the keys were made -----------------------------------------------------------------


def test_a_member_whose_escrow_was_a_lie_is_put_out_and_the_run_goes_on_without_it(tmp_path: Path) -> None:
    with federation_in(tmp_path) as federation:
        names = federation.add_sites(5)
        federation.create_run(rounds=2)
        liar, honest = federation.sites[LIAR], sealing.seal_escrow
        liar.line.cut(before="shares")
        federation.turn_until(lambda: liar.line.is_cut)
        liar.line.mend()

        def lying(key, content, **place):
            return honest(key, bytes(len(content)), **place)

        with patch.object(sealing, "seal_escrow", lying):
            liar.line.cut(after="confirm_shares")
            liar.turn()
        liar.line.mend()
        liar.line.cut(before="upload")
        found = federation.play(1)

        assert (found["state"], found["reason"]) == ("failed", "MEMBER_AT_FAULT")
        assert f"{LIAR} escrowed another pair key" in found["message"]
        assert federation.adapters()[0]["round"] == 0
        (line,) = federation.audit("member_expelled")
        assert line["subject"] == f"participants/{LIAR}"
        liar.line.mend()
        digest = federation.run()["plan_digest"]
        with pytest.raises(NotInCohort, match="put out"):
            liar.client.join_run("run", plan_digest=digest, base_model_digest=federation.model.digest)
        with pytest.raises(NotInCohort, match="put out"):
            liar.client.decline_run("run", reason="POLICY_REFUSAL", message="")
        assert [type(task).__name__ for task in liar.client.assignments("", wait_seconds=0).tasks] == []

        federation.play(2)
        assert federation.round(2)["state"] == "succeeded"
        errors, bound = federation.errors(2, [name for name in names if name != LIAR])
        assert errors.max() <= bound


def test_who_is_left_out_when_keys_are_made_is_in_the_audit_log_with_the_reason(tmp_path: Path) -> None:
    with federation_in(tmp_path) as federation:
        names = federation.add_sites(6)
        federation.create_run()
        liar, honest = federation.sites[LIAR], hashing.commit_pair_key
        federation.sites["site-5"].line.cut(before="confirm_shares")
        liar.line.cut(before="shares")
        federation.turn_until(lambda: liar.line.is_cut)
        liar.line.mend()

        def lying(roster_hash, low, high, round_, key):
            return honest(roster_hash, low, high, round_, bytes(len(key)))

        with patch.object(hashing, "commit_pair_key", lying):
            liar.line.cut(after="confirm_shares")
            liar.turn()
        liar.line.mend()
        found = federation.play(1)

        assert found["state"] == "succeeded"
        (line,) = federation.audit("key_epoch_ready")
        told = json.loads(line["details_json"])
        assert told["usable"] == [name for name in names if name not in (LIAR, "site-5")]
        assert told["left_out"].keys() == {LIAR, "site-5"}
        assert told["left_out"]["site-5"] == "sent no Ready"
        assert told["left_out"][LIAR].startswith("has no common pair key with site-0")
        assert sorted(told["unequal_pairs"]) == [["site-0", LIAR], *([LIAR, name] for name in names[2:5])]
