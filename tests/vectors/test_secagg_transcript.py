"""The recorded round of five again: by the library, byte for byte, and by a second implementation of its arithmetic."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.secagg import (
    Advertisement,
    Advertising,
    ClipSlot,
    Deposit,
    EpochKeys,
    IdentitySigner,
    KeyEpoch,
    Masked,
    Masking,
    MetricGroup,
    Packer,
    PinnedMember,
    PinnedMembers,
    RandomBytes,
    RoundContext,
    SealedShare,
    SecaggPlan,
    Signed,
    Start,
    begin_epoch,
    check_deposit,
    check_ready,
    check_roster,
    choose_close,
    decode_chunk,
    envelopes_for,
    fixed_weight,
    open_masks,
    settle_epoch,
    shamir,
    share_commitments,
    upload_hash,
    verify_commit,
    verify_reveal,
)
from tests.vectors import second
from tests.vectors.hpke import AES_256_GCM, KemSeed, open_box

RECORD: dict[str, Any] = json.loads(Path(__file__).with_name("transcript.json").read_text())
SET_UP: list[dict[str, Any]] = RECORD["set_up"]
ROUND: dict[str, Any] = RECORD["round"]
UPLOADS: list[dict[str, Any]] = ROUND["uploads"]
MEMBERS = range(len(SET_UP))
SURVIVORS = tuple(ROUND["survivors"])
SCHEDULE: list[int] = RECORD["plan"]["schedule"]
SLOTS: list[dict[str, Any]] = RECORD["plan"]["vectors"][SCHEDULE[(ROUND["number"] - 1) % len(SCHEDULE)]]
(DROPPED,) = set(MEMBERS) - set(SURVIVORS)


def h(text: str) -> bytes:
    return bytes.fromhex(text)


def bytes_by_index(values: dict[str, str]) -> dict[int, bytes]:
    return {int(index): h(value) for index, value in values.items()}


def as_words(text: str) -> np.ndarray:
    return np.frombuffer(h(text), dtype="<u8").astype(np.uint64)


def as_floats(text: str) -> np.ndarray:
    return np.frombuffer(h(text), dtype="<f4")


# --- the library ------------------------------------------------------------------------------------------------


def plan() -> SecaggPlan:
    fields = {name: value for name, value in RECORD["plan"].items() if name not in ("encoded", "lane_limit")}
    fields |= {name: h(fields[name]) for name in ("plan_hash", "run_id")}
    fields["vectors"] = tuple(tuple(ClipSlot(**slot) for slot in vector) for vector in fields["vectors"])
    fields["schedule"] = tuple(fields["schedule"])
    fields["metrics"] = tuple(fields["metrics"])
    fields["metric_groups"] = tuple(MetricGroup(one["name"], tuple(one["words"])) for one in fields["metric_groups"])
    return SecaggPlan(**fields)


EPOCH = KeyEpoch(plan(), RECORD["epoch"]["number"], RECORD["epoch"]["first_round"])
ROSTER_MESSAGE = h(RECORD["roster"])


def verifier() -> PinnedMembers:
    ca = RECORD["ca"].encode()
    pinned = {one["org_id"]: PinnedMember(one["uri"], ca) for one in SET_UP}
    return PinnedMembers(pinned, datetime.fromisoformat(RECORD["checked_at"]))


@pytest.fixture(scope="module")
def roster():
    return check_roster(EPOCH, ROSTER_MESSAGE, verifier())


@pytest.fixture(scope="module")
def deposits(roster):
    return [check_deposit(EPOCH, roster.members, h(one["deposit"]), sender=index) for index, one in enumerate(SET_UP)]


def replayed_signature(signature: bytes) -> IdentitySigner:
    return lambda name, digest: signature


def replayed_random(drawn: Iterable[str]) -> RandomBytes:
    values = [h(value) for value in drawn]

    def draw(size: int) -> bytes:
        value = values.pop(0)
        assert len(value) == size
        return value

    return draw


@pytest.fixture(scope="module")
def advertising() -> list[Advertising]:
    """From the recorded randomness; the identity signature is the recorded one, as it is randomised."""
    found = []
    for one in SET_UP:
        recorded = Signed.decode(h(one["advertise"]))
        phase = begin_epoch(
            EPOCH,
            org_id=one["org_id"],
            certificate_chain=Advertisement.decode(recorded.body).certificate_chain,
            identity_signer=replayed_signature(recorded.signature),
            metric_groups=one["metric_groups"],
            random_bytes=replayed_random(one["random"].values()),
        )
        found.append(phase)
    return found


@pytest.fixture(scope="module")
def keys(advertising, deposits, roster) -> list[EpochKeys]:
    """What each member makes of the recorded deposits, its own among them."""
    found = []
    for index, phase in enumerate(advertising):
        dealt = replace(phase.deal(ROSTER_MESSAGE, verifier()), message=h(SET_UP[index]["deposit"]))
        confirmed, refusals = dealt.confirm(envelopes_for(roster.members, deposits, index))
        assert refusals == ()
        found.append(confirmed)
    return found


@pytest.fixture(scope="module")
def context(roster) -> RoundContext:
    return RoundContext.of(EPOCH, roster.members, Start.decode(h(ROUND["start"])))


@pytest.fixture(scope="module")
def masking(keys) -> list[Masking]:
    return [phase.start(h(ROUND["start"]), model_hash=h(ROUND["model_hash"]))[1] for phase in keys]


@pytest.fixture(scope="module")
def masked(masking) -> list[Masked]:
    return [
        phase.abandon() if index == DROPPED else phase.seal(h(UPLOADS[index]["upload_hash"]))
        for index, phase in enumerate(masking)
    ]


def test_plan_and_epoch_are_encoded_and_named_as_recorded():
    assert plan().encode().hex() == RECORD["plan"]["encoded"]
    assert plan().lane_limit == RECORD["plan"]["lane_limit"]
    assert (EPOCH.encode().hex(), EPOCH.hash.hex()) == (RECORD["epoch"]["encoded"], RECORD["epoch"]["hash"])


def test_the_recorded_randomness_gives_the_recorded_keys_and_roster(advertising, roster):
    assert [phase.message.hex() for phase in advertising] == [one["advertise"] for one in SET_UP]
    assert roster.members.roster_hash.hex() == RECORD["roster_hash"]
    assert roster.members.org_ids == tuple(one["org_id"] for one in SET_UP)


def test_dealing_again_commits_to_the_same_shares(advertising, deposits):
    """Only the HPKE boxes differ."""
    for phase, recorded in zip(advertising, deposits, strict=True):
        again = Deposit.decode(phase.deal(ROSTER_MESSAGE, verifier()).message)
        for one, other in zip(again.envelopes, recorded.envelopes, strict=True):
            fresh, old = (SealedShare.decode(Signed.decode(envelope).body) for envelope in (one, other))
            assert (fresh.owner, fresh.holder, fresh.commitments) == (old.owner, old.holder, old.commitments)
            assert len(fresh.box) == len(old.box)
            assert fresh.box != old.box


def test_the_recorded_boxes_give_the_recorded_epoch_keys_and_ready_messages(keys, roster):
    for phase, one in zip(keys, SET_UP, strict=True):
        assert phase.chain.hex() == one["chain"]
        assert dict(phase.pair_chains) == bytes_by_index(one["pair_chains"])
        assert dict(phase.shares) == bytes_by_index(one["shares"])
        assert phase.message.hex() == one["ready"]
    readies = [check_ready(EPOCH, roster.members, phase.message, sender=i) for i, phase in enumerate(keys)]
    assert settle_epoch(EPOCH, roster.members, readies).usable == tuple(RECORD["usable"])


def test_the_start_gives_the_recorded_context_and_mask_seeds(context, masking):
    assert context.hash.hex() == ROUND["context"]
    assert (context.cohort, context.open_groups) == (tuple(ROUND["cohort"]), tuple(ROUND["open_groups"]))
    for phase, recorded in zip(masking, UPLOADS, strict=True):
        assert phase.self_seed.hex() == recorded["self_mask_seed"]
        assert dict(phase.pair_seeds) == bytes_by_index(recorded["pair_mask_seeds"])


@pytest.mark.parametrize("index", MEMBERS)
def test_the_recorded_update_is_packed_and_masked_to_the_recorded_chunks(index, masking, context):
    recorded, layout = UPLOADS[index], context.layout
    values = as_floats(recorded["update"])
    packer = Packer(plan(), round_=ROUND["number"], alpha=recorded["alpha"], rounding_key=h(recorded["rounding_key"]))
    chunks = [packer.pack_chunk(at, values[slice(*layout.parameters_in(at))])[0] for at in range(layout.lane_chunks)]
    fixed_alpha = fixed_weight(recorded["alpha"])
    chunks.append(masking[index].pack_tail(fixed_alpha=fixed_alpha, metrics=recorded["metrics"]))
    masker = masking[index].masker()
    for at, words in enumerate(chunks):
        np.testing.assert_array_equal(words, as_words(recorded["packed_chunks"][at]))
        masker.add_into(at, words)
        np.testing.assert_array_equal(words, as_words(recorded["masked_chunks"][at]))
    digests = [hashlib.sha256(words.astype("<u8").tobytes()).digest() for words in chunks]
    assert upload_hash(digests).hex() == recorded["upload_hash"]


def test_receipts_commits_and_reveals_are_the_recorded_ones(context, masked):
    assert [phase.message.hex() for phase in masked] == ROUND["receipts"]
    assert choose_close(context, SURVIVORS)[1] == SURVIVORS
    receipts = [masked[index].message for index in SURVIVORS]
    bound = [phase.bind(SURVIVORS, receipts) for phase in masked]
    assert [phase.message.hex() for phase in bound] == ROUND["commits"]
    for index, phase in enumerate(bound):
        verify_commit(context, SURVIVORS, phase.message, sender=index)
    assert [phase.accept(map(h, ROUND["commits"])).message.hex() for phase in bound] == ROUND["reveals"]


def test_any_quorum_of_the_recorded_reveals_opens_the_recorded_sum(context, roster, deposits, keys):
    readies = {i: check_ready(EPOCH, roster.members, phase.message, sender=i) for i, phase in enumerate(keys)}
    commitments = share_commitments(context, (envelope for deposit in deposits for envelope in deposit.envelopes))
    checked = [
        verify_reveal(context, SURVIVORS, h(message), sender=index, commitments=commitments)
        for index, message in enumerate(ROUND["reveals"])
    ]
    for holders in combinations(checked, context.thresholds.shares):
        unmasking = open_masks(context, roster, SURVIVORS, holders, readies)
        totals = [as_words(words) for words in ROUND["masked_sum"]]
        for at, words in enumerate(totals):
            unmasking.unmasker().add_into(at, words)
            np.testing.assert_array_equal(words, as_words(ROUND["sum"][at]))
        tail = unmasking.check_tail(totals[-1])
        assert tail.count == ROUND["tail"]["count"] == len(SURVIVORS)
        assert tail.weight == ROUND["tail"]["weight"]
        assert dict(tail.metrics) == ROUND["tail"]["metrics"]
        mean = np.concatenate(
            [decode_chunk(plan(), at, words, tail, round_=ROUND["number"]) for at, words in enumerate(totals[:-1])]
        )
        np.testing.assert_array_equal(mean, as_floats(ROUND["mean"]))


def test_the_recorded_mean_is_the_weighted_mean_of_the_recorded_updates():
    clips = np.concatenate([np.full(slot["size"], slot["clip"]) for slot in SLOTS])
    weights = {index: UPLOADS[index]["alpha"] for index in SURVIVORS}
    exact = sum(
        weight * np.clip(as_floats(UPLOADS[index]["update"]).astype(float), -clips, clips)
        for index, weight in weights.items()
    )
    bound = len(SURVIVORS) * clips / (RECORD["plan"]["lane_limit"] * sum(weights.values()))
    assert np.all(np.abs(as_floats(ROUND["mean"]) - exact / sum(weights.values())) <= bound + 1e-6)
    assert np.any(np.abs(as_floats(UPLOADS[0]["update"])) > clips)


# --- the second implementation ----------------------------------------------------------------------------------

RUN_ID = h(RECORD["plan"]["run_id"])
EPOCH_HASH = h(RECORD["epoch"]["hash"])
ROSTER_HASH = h(RECORD["roster_hash"])
CONTEXT = h(ROUND["context"])
ROUNDS = range(EPOCH.first_round, EPOCH.first_round + RECORD["plan"]["rounds_per_epoch"])
NUMBER: int = ROUND["number"]
THRESHOLD = (len(SET_UP) + (len(SET_UP) - 1) // 3) // 2 + 1


def chains(index: int) -> dict[int, bytes]:
    link, found = second.derive(h(SET_UP[index]["random"]["master"]), EPOCH_HASH, "chain"), {}
    for number in ROUNDS:
        found[number], link = link, second.derive(link, RUN_ID, "ratchet")
    return found


def secret(index: int, label: str, number: int = NUMBER) -> bytes:
    return second.derive(chains(index)[number], RUN_ID, label, number)


def pair_key(low: int, high: int) -> bytes:
    seed = second.derive(h(SET_UP[low]["random"]["master"]), ROSTER_HASH, "pair-seed", low, high)
    link = second.derive(seed, ROSTER_HASH, "pair-chain", low, high)
    for _ in range(NUMBER - ROUNDS[0]):
        link = second.derive(link, RUN_ID, "ratchet")
    return second.derive(link, RUN_ID, "pair-key", NUMBER)


def pair_mask_seed(one: int, other: int) -> bytes:
    low, high = sorted((one, other))
    return second.derive(pair_key(low, high), CONTEXT, "pair", low, high)


def test_second_epoch_roster_and_context_hashes():
    assert second.digest("epoch", h(RECORD["epoch"]["encoded"])) == EPOCH_HASH
    bodies = [second.signed_body(h(one["advertise"])) for one in SET_UP]
    assert second.digest("roster", EPOCH_HASH, *(second.digest("body", body) for body in bodies)) == ROSTER_HASH
    cohort = bytes([sum(0x80 >> index for index in ROUND["cohort"])])
    parts = (ROSTER_HASH, EPOCH_HASH, second.u32(NUMBER), bytes([ROUND["kind"]]), cohort, h(ROUND["model_hash"]))
    assert second.digest("round", *parts) == CONTEXT


def test_second_commitments_of_the_advertisements():
    for index, one in enumerate(SET_UP):
        commitments = b"".join(
            second.digest(name, EPOCH_HASH, one["org_id"].encode(), second.u32(number), secret(index, label, number))
            for number in ROUNDS
            for name, label in (("commit-b", "round-b"), ("commit-k", "round-k"))
        )
        assert commitments in second.signed_body(h(one["advertise"]))


@pytest.mark.parametrize("owner", MEMBERS)
def test_second_shares_and_what_lies_in_the_boxes(owner):
    points = [holder + 1 for holder in MEMBERS]
    dealt = dict.fromkeys(MEMBERS, b"")
    for number, chain in chains(owner).items():
        rows = []
        for label, polynomial in (("round-k", "poly-k"), ("round-b", "poly-b")):
            key = second.derive(chain, ROSTER_HASH, polynomial, number)
            coefficients = second.stream(key, 0, 48 * (THRESHOLD - 1))
            rows.append(second.split(secret(owner, label, number), points, coefficients))
        for holder in MEMBERS:
            dealt[holder] += rows[0][holder] + rows[1][holder]
    deposit = second.Fields(h(SET_UP[owner]["deposit"]), 7)
    assert (deposit.take(32), deposit.u32(), deposit.u32()) == (ROSTER_HASH, owner, len(SET_UP))
    for holder in MEMBERS:
        sealed = second.Fields(second.signed_body(deposit.blob()), 6)
        assert (sealed.take(32), sealed.u32(), sealed.u32()) == (ROSTER_HASH, owner, holder)
        committed = [sealed.take(32) for _ in range(sealed.u32())]
        info = b"xsa1/share\0" + ROSTER_HASH + second.u32(owner) + second.u32(holder)
        plaintext = open_box(KemSeed(h(SET_UP[holder]["random"]["kem_seed"])), sealed.blob(), info, AES_256_GCM)
        seed = b""
        if owner < holder:
            master = h(SET_UP[owner]["random"]["master"])
            seed = second.derive(master, ROSTER_HASH, "pair-seed", owner, holder)
        assert plaintext == seed + dealt[holder]
        for at, number in enumerate(ROUNDS):
            place = (ROSTER_HASH, second.u32(owner), second.u32(holder), second.u32(number))
            both = dealt[holder][66 * at : 66 * (at + 1)]
            leaves = second.digest("share-k", *place, both[:33]), second.digest("share-b", *place, both[33:])
            assert second.digest("shares", *leaves) == committed[at]


@pytest.mark.parametrize("index", MEMBERS)
def test_second_escrow_of_the_round_in_the_ready_message(index):
    partners = [other for other in MEMBERS if other != index]
    keys = b"".join(pair_key(*sorted((index, other))) for other in partners)
    ready = second.Fields(second.signed_body(h(SET_UP[index]["ready"])), 8)
    assert (ready.take(32), ready.u32(), ready.u32()) == (ROSTER_HASH, index, len(SET_UP))
    assert ready.take(1) == b"\xf8"
    assert ready.u32() == len(ROUNDS)
    for number in ROUNDS:
        escrow = ready.blob()
        commitments = [ready.take(32) for _ in partners]
        if number == NUMBER:
            cipher = AES_256_GCM.cipher(secret(index, "round-k"))
            data = ROSTER_HASH + second.u32(index) + second.u32(number)
            assert cipher.decrypt(number.to_bytes(12, "big"), escrow, data) == keys
            assert commitments == [
                second.digest(
                    "pair-commit",
                    ROSTER_HASH,
                    second.u32(low),
                    second.u32(high),
                    second.u32(number),
                    pair_key(low, high),
                )
                for low, high in (sorted((index, other)) for other in partners)
            ]


@pytest.mark.parametrize("index", MEMBERS)
def test_second_masks_and_lanes_of_each_upload(index):
    recorded = UPLOADS[index]
    self_seed = second.derive(secret(index, "round-b"), CONTEXT, "self", index)
    assert self_seed.hex() == recorded["self_mask_seed"]
    seeds = {other: pair_mask_seed(index, other) for other in MEMBERS if other != index}
    assert seeds == bytes_by_index(recorded["pair_mask_seeds"])
    plus = [self_seed, *(seed for other, seed in seeds.items() if index < other)]
    minus = [seed for other, seed in seeds.items() if index > other]
    packed = []
    for at, masked in enumerate(recorded["masked_chunks"]):
        bare = second.without_streams(at, second.words(h(masked)), plus=plus, minus=minus)
        assert bare == second.words(h(recorded["packed_chunks"][at]))
        packed.append(bare)

    lanes = second.Lanes(RECORD["plan"]["lanes"], RECORD["plan"]["lane_limit"], RECORD["plan"]["chunk_words"])
    values = as_floats(recorded["update"])
    clips = [slot["clip"] for slot in SLOTS for _ in range(slot["size"])]
    for at, elements in enumerate(lanes.chunks(len(values))):
        found = lanes.unpacked(packed[at])
        width = len(packed[at])
        draws = np.concatenate(
            [
                np.frombuffer(second.stream(h(recorded["rounding_key"]), at * lanes.count + lane, 2 * width), "<u2")
                for lane in range(lanes.count)
            ]
        )
        for element, lane, draw in zip(elements, found, draws, strict=False):
            expected = lanes.rounded(
                float(values[element]), clip=clips[element], fixed_alpha=packed[-1][0], draw=int(draw)
            )
            assert lane - lanes.limit == expected
        assert all(lane == lanes.limit for lane in found[len(elements) :])
    assert packed[-1][0] == round(recorded["alpha"] * 2**30)
    loss, tokens = (round(recorded["metrics"][name] * 2**20) for name in ("loss", "tokens"))
    assert packed[-1][1:] == [1, loss, tokens, 0, 0]  # too few members have figures of "ner"


def test_second_opening_from_the_reveals_alone():
    """What the coordinator learns: seeds from shares, and the sum from seeds."""
    shares: dict[int, dict[int, bytes]] = {owner: {} for owner in MEMBERS}
    for holder, message in enumerate(ROUND["reveals"]):
        reveal = second.Fields(second.signed_body(h(message)), 12)
        assert (reveal.take(32), reveal.u32(), reveal.u32()) == (CONTEXT, holder, len(SET_UP))
        assert reveal.take(1) == bytes([sum(0x80 >> index for index in SURVIVORS)])
        for owner in range(reveal.u32()):
            shares[owner][holder + 1] = reveal.take(33)
            reveal.take(32)
    opened = {
        owner: second.combine(dict(list(held.items())[-THRESHOLD:])).to_bytes(32, "big")
        for owner, held in shares.items()
    }
    assert opened == {owner: secret(owner, "round-b" if owner in SURVIVORS else "round-k") for owner in MEMBERS}
    subtract = [second.derive(opened[owner], CONTEXT, "self", owner) for owner in SURVIVORS]
    subtract += [pair_mask_seed(owner, DROPPED) for owner in SURVIVORS if owner < DROPPED]
    add = [pair_mask_seed(owner, DROPPED) for owner in SURVIVORS if owner > DROPPED]
    assert sorted(seed.hex() for seed in subtract) == ROUND["mask_seeds_to_subtract"]
    assert sorted(seed.hex() for seed in add) == ROUND["mask_seeds_to_add"]
    for at, recorded in enumerate(ROUND["masked_sum"]):
        total = [0] * (len(h(recorded)) // 8)
        for index in SURVIVORS:
            total = second.added(total, second.words(h(UPLOADS[index]["masked_chunks"][at])))
        assert total == second.words(h(recorded))
        bare = second.without_streams(at, total, plus=subtract, minus=add)
        assert bare == second.words(h(ROUND["sum"][at]))
        packed = [second.words(h(UPLOADS[index]["packed_chunks"][at])) for index in SURVIVORS]
        assert bare == [sum(column) % second.WORD for column in zip(*packed, strict=True)]


# --- shares, both implementations -------------------------------------------------------------------------------

EDGES = {
    "zero": bytes(32),
    "one": bytes(31) + b"\1",
    "2**256 - 1, the greatest secret": b"\xff" * 32,
    "2**255": b"\x80" + bytes(31),
    "2**256 - 297": (2**256 - 297).to_bytes(32, "big"),
}


@pytest.mark.parametrize("value", EDGES.values(), ids=EDGES.keys())
@pytest.mark.parametrize(
    ("threshold", "points"), [(1, (1, 2)), (2, (1, 2, 3)), (3, (5, 1, 4, 2)), (7, (*range(1, 11),))]
)
def test_second_shares_of_edge_values(value, threshold, points):
    for coefficients in (
        bytes(48 * (threshold - 1)),
        b"\xff" * (48 * (threshold - 1)),
        (second.P - 1).to_bytes(48, "big") * (threshold - 1),
        hashlib.shake_256(value + bytes([threshold])).digest(48 * (threshold - 1)),
    ):
        shares = shamir.split(value, points, coefficients)
        assert list(shares) == second.split(value, points, coefficients)
        for chosen in (range(threshold), range(len(points) - threshold, len(points))):
            held = {points[at]: shares[at] for at in chosen}
            assert shamir.combine(tuple(held), list(held.values())) == value
            assert second.combine(held) == int.from_bytes(value, "big")


def test_second_greatest_share():
    """A share may be p - 1, which has 33 bytes: 0 + 1 * (p - 1)."""
    coefficient = (second.P - 1).to_bytes(48, "big")
    (share,) = shamir.split(bytes(32), (1,), coefficient)
    assert int.from_bytes(share, "big") == second.P - 1
    shamir.check_share(share)
    both = shamir.split(bytes(32), (1, 2), coefficient)
    assert shamir.combine((1, 2), both) == bytes(32)
