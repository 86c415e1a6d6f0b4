"""Members that lie over their own certificate, and members that vanish in the middle of a slow close.

A lie that its sender has signed is kept as proof in the audit log, once; what the liar holds of others is never there.
Refusals of single messages are in test_refused_messages and test_refused_uploads, lies inside the masked vector in
test_bad_updates, losses and crashes at every other step in test_dropouts and test_restarts.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import pytest

from accord.v1 import secure_aggregation_pb2 as pb
from common.errors import (
    AlreadyExists,
    InvalidArgument,
    MalformedMessage,
    OutOfTurn,
    ProtocolViolation,
    TooLarge,
    UploadIncomplete,
    UploadMismatch,
)
from common.rpc.status import raised_as_errors
from common.rpc.tls import channel_credentials
from common.secagg import Masked, RoundContext, hashing, participant_epoch, sealing, upload_hash
from common.secagg.messages import Commit, OpenedShare, Receipt, Reveal, Signed
from coordinator.rounds.model import MessageKind
from coordinator.store.opening import open_store
from participant.journal import RoundPhase
from tests.rpc.federation import Federation, Site, federation_in
from tests.rpc.lab import Lab, lab_in, open_round
from tests.rpc.lying import HeldUpload, Part, held_upload, hold_upload, part

LIAR, LOST = "site-1", "site-0"
SITES = 7  # with c = 2 and t = T = 5: two may be missing


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab_in(tmp_path_factory, rounds_per_epoch=64) as made:
        yield made


@pytest.fixture
def federation(lab: Lab) -> Iterator[Federation]:
    federation = lab.of(SITES)
    for site in federation.sites.values():
        site.line.forget()
    yield federation
    for site in federation.sites.values():
        site.line.mend()
    federation.play(int(federation.run()["round"]))


def logged(federation: Federation, action: str, number: int, *, actor: str = LIAR) -> list[Mapping[str, Any]]:
    """Details of a member's lines of the audit log about one round."""
    return [
        json.loads(event["details_json"])
        for event in federation.audit(action)
        if event["subject"] == f"runs/run/rounds/{number}" and event["actor"] == f"participants/{actor}"
    ]


def whole_log(federation: Federation) -> str:
    return json.dumps(list(federation.admin.audit_events()), default=str)


def stored(federation: Federation, kind: MessageKind, number: int) -> dict[str, bytes]:
    with closing(open_store(federation.config.database_url)) as store, store.read() as reader:
        return {message.sender: message.body for message in reader.messages("run", kind, number)}


def assert_right(federation: Federation, number: int, survivors: Sequence[str]) -> None:
    found = federation.round(number)
    assert found["state"] == "succeeded", found["message"]
    assert found["survivors"] == [f"participants/{name}" for name in survivors]
    errors, bound = federation.errors(number, survivors)
    assert errors.max() <= bound


def own_message(masked: Masked, name: str, body: bytes) -> bytes:
    """Anything, signed by the liar's own key of the epoch."""
    return Signed.by_epoch_key(masked.signing_seed, name, body).encode()


# --- two uploads (21) -------------------------------------------------------------------------------------------


def second_upload(held: HeldUpload, flip: int = 1) -> list[Part]:
    """Another vector under the same masks, complete and well signed."""
    chunks = [bytes([chunk[0] ^ flip]) + chunk[1:] for chunk in held.chunks]
    digests = [hashlib.sha256(chunk).digest() for chunk in chunks]
    body = Receipt(held.masked.context.hash, held.masked.index, upload_hash(digests)).encode()
    receipt = own_message(held.masked, "upload", body)
    return [held.header(chunks), *map(part, chunks), Part(receipt=receipt)]


def check_both_signed(context: RoundContext, line: Mapping[str, Any]) -> None:
    """What the log has of both uploads proves by itself that one member signed two."""
    first, second = (context.check_receipt(bytes.fromhex(line[name])) for name in ("first_receipt", "receipt"))
    assert context.members.org_ids[first.index] == context.members.org_ids[second.index] == LIAR
    assert first.upload_hash != second.upload_hash


def test_of_two_uploads_the_first_complete_one_counts_and_both_signed_receipts_are_logged(
    federation: Federation,
) -> None:
    held = hold_upload(federation, open_round(federation), LIAR)
    held.send(held.honest())

    for flip in (1, 2):  # a liar that goes on lying writes no more lines
        with pytest.raises(AlreadyExists, match=f"another masked update of {LIAR}"):
            held.send(second_upload(held, flip))

    (received,) = logged(federation, "update_received", held.round)
    assert bytes.fromhex(received["receipt"]) == held.receipt
    (line,) = logged(federation, "second_receipt", held.round)
    assert bytes.fromhex(line["first_receipt"]) == held.receipt
    assert bytes.fromhex(line["receipt"]) == second_upload(held)[-1].receipt
    check_both_signed(held.masked.context, line)
    assert "another masked update" in line["message"]
    held.site.line.mend()
    federation.play(held.round)
    assert_right(federation, held.round, sorted(federation.sites))


def test_a_second_upload_while_the_first_is_on_its_way_changes_nothing_of_it(federation: Federation) -> None:
    held = hold_upload(federation, open_round(federation), LIAR)
    with pytest.raises(UploadIncomplete):
        held.send([held.header(), part(held.chunks[0])])

    with pytest.raises(AlreadyExists, match="has begun to arrive"):
        held.send(second_upload(held))

    assert held.durable_chunks() == 1
    (line,) = logged(federation, "second_receipt", held.round)
    assert line["first_receipt"] == ""  # not there yet; it is in its own line once it is
    held.site.line.mend()
    federation.play(held.round)
    (received,) = logged(federation, "update_received", held.round)
    check_both_signed(held.masked.context, {**line, "first_receipt": received["receipt"]})
    assert_right(federation, held.round, sorted(federation.sites))


def test_a_receipt_for_chunks_that_did_not_come_is_logged_and_the_upload_does_not_count_with_it(
    federation: Federation,
) -> None:
    held = hold_upload(federation, open_round(federation), LIAR)
    lie = second_upload(held)[-1]

    with pytest.raises(UploadMismatch, match="another upload than the one that arrived"):
        held.send([*held.honest()[:-1], lie])

    assert federation.participations(held.round)[LIAR][0] == "prepared"
    assert [line["receipt"] for line in logged(federation, "second_receipt", held.round)] == [lie.receipt.hex()]
    found = federation.play(held.round, sites=[name for name in federation.sites if name != LIAR])
    assert found["state"] == "succeeded"
    assert federation.participations(held.round)[LIAR] == ("dropped", "WINDOW_PASSED")
    assert f"participants/{LIAR}" not in found["survivors"]


def test_what_nobody_signed_is_no_proof_against_anybody(federation: Federation) -> None:
    held = hold_upload(federation, open_round(federation), LIAR)
    forged = Part(receipt=Signed(Signed.decode(second_upload(held)[-1].receipt).body, bytes(64)).encode())
    other = Part(receipt=held_upload(federation.sites["site-2"], held.round).receipt)
    held.send(held.honest())

    for receipt in (forged, other, Part(receipt=b"garbage"), Part(receipt=b"")):
        with pytest.raises(AlreadyExists):
            held.send([*second_upload(held)[:-1], receipt])

    assert [event for event in federation.audit("second_receipt") if event["subject"].endswith(f"/{held.round}")] == []


# --- two survivor sets (22), wrong shares (20) --------------------------------------------------------------------


def slow_close(federation: Federation, *, cut: Mapping[str, str]) -> tuple[int, Masked]:
    """A round that closes without LOST. cut: the call before which each of these sites is stopped.

    Returns its number, and the liar's state before it has committed to anything.
    """
    number = open_round(federation)
    federation.sites[LOST].line.cut(before="upload")

    def all_but_one() -> bool:
        return [state for state, _ in federation.participations(number).values()].count("uploaded") == SITES - 1

    federation.turn_until(all_but_one)
    masked = held_upload(federation.sites[LIAR], number).masked
    for name, call in cut.items():
        federation.sites[name].line.cut(before=call)
    federation.advance(10.5)
    assert federation.round(number)["state"] == "unmasking"
    return number, masked


def commit_of(masked: Masked, survivors: tuple[int, ...]) -> bytes:
    body = Commit(masked.context.hash, masked.index, survivors, len(masked.context.members)).encode()
    return own_message(masked, "commit", body)


def test_a_commit_to_a_second_set_is_kept_as_signed_proof_and_counts_for_nothing(federation: Federation) -> None:
    number, masked = slow_close(federation, cut={LIAR: "commit_survivors"})
    liar = federation.sites[LIAR]
    bound = tuple(range(1, SITES))
    other = tuple(range(SITES - 1))

    for lie in (commit_of(masked, other), commit_of(masked, (*other[:-1], SITES - 1))):
        with pytest.raises(ProtocolViolation, match="committed to another survivor set"):
            liar.client.commit_survivors("run", number, lie)

    assert LIAR not in stored(federation, MessageKind.COMMIT, number)
    assert stored(federation, MessageKind.SECOND_COMMIT, number) == {LIAR: commit_of(masked, other)}
    (line,) = logged(federation, "second_commit", number)
    proof = masked.context.check_commit(bytes.fromhex(line["commit"]))
    assert (masked.context.members.org_ids[proof.index], proof.survivors) == (LIAR, other)
    assert line["committed"] == [f"site-{index}" for index in other]
    assert line["survivors"] == [f"site-{index}" for index in bound]
    assert federation.participations(number)[LIAR][0] == "uploaded"
    # It helps nobody: the others have a quorum without it, and its upload stays in the sum.
    found = federation.play(number, sites=[name for name in federation.sites if name not in (LIAR, LOST)])
    assert LIAR not in stored(federation, MessageKind.COMMIT, number)
    assert_right(federation, number, [f"site-{index}" for index in bound])
    assert found["metrics"]


def test_a_member_that_commits_to_the_rounds_set_and_then_to_another_has_signed_both_in_the_log(
    federation: Federation,
) -> None:
    number, masked = slow_close(federation, cut={LIAR: "commit_survivors"})
    bound, other = tuple(range(1, SITES)), tuple(range(SITES - 1))
    liar = federation.sites[LIAR]
    liar.client.commit_survivors("run", number, commit_of(masked, bound))

    with pytest.raises(ProtocolViolation, match="committed to another survivor set"):
        liar.client.commit_survivors("run", number, commit_of(masked, other))

    (line,) = logged(federation, "second_commit", number)
    signed = [masked.context.check_commit(bytes.fromhex(line[name])) for name in ("first_commit", "commit")]
    assert [(commit.index, commit.survivors) for commit in signed] == [(1, bound), (1, other)]
    # Others are shown commits to the round's set alone, whatever else was sent.
    others = [name for name in federation.sites if name not in (LIAR, LOST)]
    for name in others:
        federation.sites[name].line.cut(before="reveal_shares")
    federation.turn_until(lambda: all(federation.sites[name].line.is_cut for name in others))
    evidence = federation.sites["site-2"].client.evidence("run", number, for_reveal=False, wait_seconds=0)
    shown = [masked.context.check_commit(commit) for commit in evidence.commits]
    indices = [commit.index for commit in shown]
    assert indices == list(bound[: masked.context.thresholds.commits])  # no more than a reveal takes
    assert {commit.survivors for commit in shown} == {bound}


def lying_reveals(masked: Masked, honest: Reveal) -> dict[str, bytes]:
    """Reveals that are wrong in one place each, signed by the liar: by what the coordinator says of them."""

    def signed(reveal: Reveal) -> bytes:
        return own_message(masked, "reveal", reveal.encode())

    def with_share(place: int, share: bytes, sibling: bytes) -> bytes:
        shares = (*honest.shares[:place], OpenedShare(share, sibling), *honest.shares[place + 1 :])
        return signed(replace(honest, shares=shares))

    survivor, dropped = honest.shares[2], honest.shares[0]
    place = (masked.context.members.roster_hash, 2, masked.index, masked.context.start.round)
    other_kind = masked.shares[2][: len(survivor.share)]
    self_leaf = hashing.commit_self_share(*place, masked.shares[2][len(survivor.share) :])
    return {
        "a share of site-2 that was not dealt": with_share(
            2, survivor.share[:-1] + bytes([survivor.share[-1] ^ 1]), survivor.sibling
        ),
        "a share of site-0 that was not dealt": with_share(
            0, dropped.share[:-1] + bytes([dropped.share[-1] ^ 1]), dropped.sibling
        ),
        # The escrow share of a survivor, true as it is: the sum must never hold both kinds of one owner.
        "a share of site-2 that was": with_share(2, other_kind, self_leaf),
        "for another survivor set": signed(replace(honest, survivors=tuple(range(SITES - 1)))),
        "6 shares, 7 are due": signed(replace(honest, shares=honest.shares[:-1])),
    }


@pytest.mark.parametrize("lie", range(5))
def test_a_member_that_reveals_wrong_shares_is_named_and_the_others_open_the_sum(
    federation: Federation, lie: int
) -> None:
    number, masked = slow_close(federation, cut={LIAR: "reveal_shares"})
    liar = federation.sites[LIAR]
    # One honest member waits as well, so that the quorum is not there before the lie.
    federation.sites["site-6"].line.cut(before="reveal_shares")
    federation.turn_until(lambda: liar.line.is_cut and federation.sites["site-6"].line.is_cut)
    ((_, _, message), _) = liar.line.attempts["reveal_shares"][-1]
    honest = Reveal.decode(Signed.decode(message).body)
    said, wrong = list(lying_reveals(masked, honest).items())[lie]

    for _ in range(2):
        with pytest.raises(ProtocolViolation, match=f"{LIAR} reveals {said}"):
            liar.client.reveal_shares("run", number, wrong)

    assert LIAR not in stored(federation, MessageKind.REVEAL, number)
    (line,) = logged(federation, "false_reveal", number)
    assert f"{LIAR} reveals {said}" in line["message"]
    log = whole_log(federation)
    for both in masked.shares.values():
        assert both[:33].hex() not in log
        assert both[33:].hex() not in log
    federation.sites["site-6"].line.mend()
    federation.play(number, sites=[name for name in federation.sites if name not in (LIAR, LOST)])
    assert_right(federation, number, [f"site-{index}" for index in range(1, SITES)])
    assert LIAR not in json.loads(federation.audit("shares_revealed")[-1]["details_json"])["holders"]


# --- lies when the keys are made (19) -----------------------------------------------------------------------------


def while_it_acts(federation: Federation, call: str, *, before: str, lie: Any) -> None:
    """The liar's daemon, with a lie in place of one function, does what ends with this call."""
    liar = federation.sites[LIAR]
    liar.line.cut(before=before)
    federation.turn_until(lambda: liar.line.is_cut)
    liar.line.mend()
    with lie:
        liar.line.cut(after=call)
        federation.turn_until(lambda: liar.line.is_cut, sites=[LIAR])
    liar.line.mend()


HONEST_DEAL, HONEST_BOX = participant_epoch._deal_shares, sealing.seal_share


def bent(share: bytes) -> bytes:
    return share[:-1] + bytes([share[-1] ^ 1])


def dealing_wrong(kind: str) -> Any:
    """Shares for the smallest holder that are on no one polynomial with the rest, and well committed to."""

    def deal(*args: Any) -> Mapping[int, tuple[bytes, ...]]:
        dealt = dict(HONEST_DEAL(*args))
        pairs = [(row[:33], row[33:]) for row in dealt[0]]
        dealt[0] = tuple(bent(k) + b if kind == "escrow" else k + bent(b) for k, b in pairs)
        return dealt

    return patch.object(participant_epoch, "_deal_shares", deal)


@pytest.mark.parametrize("kind", ["self", "escrow"])
def test_a_member_that_dealt_shares_of_no_one_secret_is_found_when_they_open_named_and_put_out(
    tmp_path: Path, kind: str
) -> None:
    with federation_in(tmp_path) as federation:
        names = federation.add_sites(5)
        federation.create_run(rounds=2)
        while_it_acts(federation, "deposit_shares", before="roster", lie=dealing_wrong(kind))
        if kind == "escrow":  # its shares of K open when it is dropped
            federation.sites[LIAR].line.cut(before="upload")

        found = federation.play(1)

        assert (found["state"], found["reason"]) == ("failed", "MEMBER_AT_FAULT")
        assert f"{LIAR} dealt shares of another {kind}" in found["message"]
        assert [name for name in names if name in found["message"]] == [LIAR]
        assert found["adapter_digest"] == ""
        assert [adapter["round"] for adapter in federation.adapters()] == [0]
        (line,) = federation.audit("member_expelled")
        assert line["subject"] == f"participants/{LIAR}"
        assert [event["subject"] for event in federation.audit("round_failed")] == [found["name"]]
        federation.sites[LIAR].line.mend()
        federation.play(2)
        assert_right(federation, 2, [name for name in names if name != LIAR])


def sealing_wrong(box: Callable[[bytes], bytes], holders: frozenset[int]) -> Any:
    def seal(key: bytes, content: bytes, **place: Any) -> bytes:
        honest = HONEST_BOX(key, content, **place)
        return box(honest) if place["holder"] in holders else honest

    return patch.object(sealing, "seal_share", seal)


def sealing_other(holders: frozenset[int]) -> Any:
    """Boxes that open, with other shares in them than the liar has committed to."""

    def seal(key: bytes, content: bytes, **place: Any) -> bytes:
        return HONEST_BOX(key, bent(content) if place["holder"] in holders else content, **place)

    return patch.object(sealing, "seal_share", seal)


EVERYBODY = frozenset(range(SITES)) - {1}  # but itself: it means to confirm
BOXES: dict[str, tuple[Any, set[str]]] = {
    "a KEM ciphertext with a bit flipped, to all": (
        lambda: sealing_wrong(lambda box: bytes([box[0] ^ 1]) + box[1:], EVERYBODY),
        {LIAR},
    ),
    "an empty box, to all": (lambda: sealing_wrong(lambda box: b"", EVERYBODY), {LIAR}),
    "noise as long as a box, to all": (lambda: sealing_wrong(lambda box: b"\x5a" * len(box), EVERYBODY), {LIAR}),
    "other shares than committed to, to all": (lambda: sealing_other(EVERYBODY), {LIAR}),
    # Of one bad pair nobody can tell who lied: c liars put out c honest members, and no more.
    "a KEM ciphertext with a bit flipped, to one": (
        lambda: sealing_wrong(lambda box: box[:40] + bytes([box[40] ^ 1]) + box[41:], frozenset({3})),
        {LIAR, "site-3"},
    ),
}


@pytest.fixture(scope="module")
def fresh_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Every round has keys of its own, so that each case can lie when they are made."""
    with lab_in(tmp_path_factory, rounds_per_epoch=1) as made:
        yield made


@pytest.mark.parametrize("lie", BOXES)
def test_a_member_whose_boxes_do_not_hold_what_it_committed_to_is_left_out_by_name(fresh_keys: Lab, lie: str) -> None:
    federation = fresh_keys.of(SITES)
    making, out = BOXES[lie]
    number = open_round(federation)
    while_it_acts(federation, "deposit_shares", before="roster", lie=making())

    federation.play(number)

    told = json.loads(federation.audit("key_epoch_ready")[-1]["details_json"])
    assert told["left_out"].keys() == out
    for name in out:
        assert told["left_out"][name].startswith("has no common pair key with")
        assert federation.participations(number)[name] == ("dropped", "NO_MASKING_KEYS")
    assert_right(federation, number, [name for name in sorted(federation.sites) if name not in out])


# --- vanishing in a slow close (24, 25) ---------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["before commit", "after commit", "commit's answer lost", "before reveal"])
def test_a_member_lost_in_a_slow_close_stays_in_the_sum_and_the_others_open_it(
    federation: Federation, where: str
) -> None:
    number, _ = slow_close(federation, cut={})
    cuts = {
        "before commit": {"before": "commit_survivors"},
        "after commit": {"after": "commit_survivors"},
        "commit's answer lost": {"losing_answer_to": "commit_survivors"},
        "before reveal": {"before": "reveal_shares"},
    }
    gone = federation.sites["site-6"]
    gone.line.cut(**cuts[where])

    federation.play(number)

    assert gone.line.is_cut
    assert ("site-6" in stored(federation, MessageKind.COMMIT, number)) == (where != "before commit")
    assert "site-6" not in stored(federation, MessageKind.REVEAL, number)
    assert_right(federation, number, [f"site-{index}" for index in range(1, SITES)])
    assert federation.participations(number)[LOST] == ("dropped", "WINDOW_PASSED")


def test_when_more_vanish_after_the_commit_than_may_the_round_is_over_without_any_sum(federation: Federation) -> None:
    adapters = len(federation.adapters())
    gone = ["site-4", "site-5"]
    number, masked = slow_close(federation, cut=dict.fromkeys(gone, "reveal_shares"))
    assert masked.context.thresholds.shares == SITES - len(gone) == 5

    found = federation.play(number)

    assert (found["state"], found["adapter_digest"]) == ("failed", "")
    assert found["reason"] == "TOO_FEW_MEMBERS"
    assert all(name in found["message"] for name in (LOST, *gone))
    assert stored(federation, MessageKind.COMMIT, number).keys() == federation.sites.keys() - {LOST}
    reveals = stored(federation, MessageKind.REVEAL, number)
    # Every owner's shares, of either kind, are fewer than open them.
    assert len(reveals) == masked.context.thresholds.shares - 1
    assert len(federation.adapters()) == adapters
    assert federation.audit("round_failed")[-1]["subject"] == found["name"]
    for name in gone:
        site = federation.sites[name]
        (_, _, late), _ = site.line.attempts["reveal_shares"][-1]
        with pytest.raises(OutOfTurn, match="is failed"):
            site.client.reveal_shares("run", number, late)
        site.line.mend()
    assert len(stored(federation, MessageKind.REVEAL, number)) == len(reveals)
    federation.sites[LOST].line.mend()
    after = open_round(federation)
    federation.play(after)
    assert_right(federation, after, sorted(federation.sites))
    assert {site.phase(number) for site in federation.sites.values()} == {RoundPhase.OVER}


# --- beyond the limits (15, 33) -----------------------------------------------------------------------------------


HUGE: dict[str, Mapping[str, Any]] = {
    "as many chunks as a number holds": {"chunk_count": 2**32 - 1},
    "as many bytes as a number holds": {"total_bytes": 2**64 - 1},
    "three mebibytes of digests": {"chunk_digests": bytes(3 * 2**20)},
    "a first chunk far beyond the end": {"first_chunk": 2**32 - 1},
    "a first chunk right beyond the end": {"first_chunk": 3},
}


@pytest.mark.parametrize("lie", HUGE)
def test_an_upload_of_another_size_than_the_plans_ends_with_its_header(federation: Federation, lie: str) -> None:
    held = hold_upload(federation, open_round(federation), LIAR)
    endless = itertools.chain([held.header(**HUGE[lie])], map(part, itertools.cycle(held.chunks)))

    with pytest.raises(UploadMismatch):
        held.send(endless)

    assert held.durable_chunks() == 0
    assert not [key for key in federation.blobs(f"uploads/run/{held.round}") if f"/{LIAR}/" in key]
    assert federation.participations(held.round)[LIAR][0] == "prepared"


def test_a_stream_without_an_end_is_closed_at_the_first_chunk_too_many(federation: Federation) -> None:
    held = hold_upload(federation, open_round(federation), LIAR)
    chunks = itertools.chain(held.chunks, itertools.repeat(held.chunks[-1]))

    with pytest.raises(UploadMismatch, match="more than 2 chunks"):
        held.send(itertools.chain([held.header()], map(part, chunks)))

    # What was right of it is kept, and is all that there is.
    assert held.durable_chunks() == 2
    held.site.line.mend()
    federation.play(held.round)
    assert_right(federation, held.round, sorted(federation.sites))


def test_a_second_upload_without_an_end_is_closed_as_well(federation: Federation) -> None:
    held = hold_upload(federation, open_round(federation), LIAR)
    held.send(held.honest())
    header, chunk, *_ = second_upload(held)

    with pytest.raises(AlreadyExists):
        held.send(itertools.chain([header], itertools.repeat(chunk)))

    assert logged(federation, "second_receipt", held.round) == []


def test_a_part_of_an_adapter_beyond_its_end_is_refused(federation: Federation) -> None:
    liar, digest = federation.sites[LIAR], federation.run()["adapter_digest"]
    size = federation.adapters()[0]["size_bytes"]

    assert b"".join(liar.client.adapter_chunks(digest, offset=int(size))) == b""
    for offset in (int(size) + 1, 2**63 - 1):
        with pytest.raises(InvalidArgument, match="behind the adapter"):
            list(liar.client.adapter_chunks(digest, offset=offset))


def test_a_site_that_is_asked_for_chunks_beyond_its_last_sends_none_and_says_that_it_is_out(
    federation: Federation,
) -> None:
    number = open_round(federation)
    site = federation.sites[LIAR]
    site.line.doctor("upload_state", lambda state: replace(state, durable_chunks=2**32 - 1))

    found = federation.play(number)

    site.line.doctor("upload_state", lambda state: state)
    assert federation.participations(number)[LIAR] == ("failed", "UPLOAD_MISMATCH")
    assert f"participants/{LIAR}" not in found["survivors"]
    assert not [key for key in federation.blobs(f"uploads/run/{number}") if f"/{LIAR}/" in key]
    assert found["state"] == "succeeded"


# For each message its method, the number of its field, and what it is stored as.
CALLS = {
    "advertise_keys": ("AdvertiseKeys", MessageKind.ADVERTISEMENT),
    "deposit_shares": ("DepositShares", MessageKind.DEPOSIT),
    "confirm_shares": ("ConfirmShares", MessageKind.CONFIRMATION),
    "reveal_shares": ("RevealShares", MessageKind.REVEAL),
}
UNKNOWN_FIELD = b"\x98\x06\x01"  # number 99, varint


def malformed(message: bytes) -> dict[str, bytes]:
    return {
        "cut short": message[: len(message) // 2],
        "without its last byte": message[:-1],
        "with a field more": message + bytes(4),
        "of another suite": message[:4] + bytes([message[4] ^ 1]) + message[5:],
        "of another version of the protocol": b"XSA2" + message[4:],
    }


def raw_call(site: Site, method: str, number: int, message: bytes, *, after: bytes = b"") -> None:
    """One call as bytes, over a channel that has no limits of its own."""
    identity, addresses = site.connection.identity, site._federation.addresses
    assert addresses is not None
    credentials = channel_credentials(
        trust_bundle=identity.trust_bundle.encode(),
        certificate_chain=identity.certificate_chain.encode(),
        key=identity.key_pem,
    )
    # Fields 1, 2 and 3 of all four requests have the same types.
    request = pb.AdvertiseKeysRequest(run="run", epoch=number, advertisement=message).SerializeToString() + after
    options = [("grpc.max_send_message_length", -1)]
    with (
        grpc.secure_channel(addresses.participants, credentials, options=options) as channel,
        raised_as_errors(),
    ):
        call: Callable[..., bytes] = channel.unary_unary(f"/accord.v1.SecureAggregationService/{method}")
        call(request, timeout=30)


@pytest.mark.parametrize("name", CALLS)
def test_a_message_that_is_malformed_or_too_large_has_an_error_of_its_own_and_leaves_nothing(
    fresh_keys: Lab, name: str
) -> None:
    federation, (method, kind) = fresh_keys.of(SITES), CALLS[name]
    number = open_round(federation)
    liar = federation.sites[LIAR]
    # A reveal is looked at as long as others are missing.
    held = [liar, *(federation.sites[f"site-{index}"] for index in (2, 3))]
    for site in held:
        site.line.forget()
        site.line.cut(before=name)
    federation.turn_until(lambda: all(site.line.is_cut for site in held))
    (_, at, message), _ = liar.line.attempts[name][-1]

    for what, bad in malformed(message).items():
        with pytest.raises(ProtocolViolation) as refused:
            getattr(liar.client, name)("run", at, bad)
        assert type(refused.value) is MalformedMessage, what
    with pytest.raises(TooLarge):
        raw_call(liar, method, at, message + bytes(5 * 2**20))
    with pytest.raises(InvalidArgument, match="bytes are no message of this call"):
        raw_call(liar, method, at, message, after=b"\x98")  # an envelope that ends in the middle of a field

    assert LIAR not in stored(federation, kind, at)
    # A field that this version does not know is ignored in the envelope, as protobuf has it, and not kept.
    raw_call(liar, method, at, message, after=UNKNOWN_FIELD)
    kept = hashlib.sha256(message).digest() if kind is MessageKind.DEPOSIT else message
    assert stored(federation, kind, at)[LIAR] == kept
    for site in held:
        site.line.mend()
    federation.play(number)
    assert_right(federation, number, sorted(federation.sites))
