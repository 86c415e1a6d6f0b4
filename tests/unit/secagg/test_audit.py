"""Chunk audits: of an honest round every chunk passes, and whatever is shown wrong is refused and named."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import AuditFailed
from common.secagg import (
    ChunkAudit,
    OpenedKeys,
    OwnUpload,
    RoundKind,
    ShownRound,
    ShownUpload,
    chance_to_catch,
    graph,
    open_keys,
    upload_hash,
)
from tests.unit.secagg.federation import Round, make_plan, org_name, plain_sum, random_chunks, set_up

MEMBERS = 5


def digests_of(chunks):
    return tuple(hashlib.sha256(words.tobytes()).digest() for words in chunks)


@dataclass(frozen=True)
class Finished:
    """A round that is over, the plain updates of its survivors, and what an honest coordinator shows of it."""

    round: Round
    survivors: tuple[int, ...]
    plain: Mapping[int, list[np.ndarray]]
    shown: ShownRound

    def audit(self, shown: ShownRound | None = None, **own: OwnUpload | None) -> ChunkAudit:
        roster = self.round.epoch.roster
        return ChunkAudit.of(self.round.context, roster, shown or self.shown, own=own.get("own"))

    def chunks(self, at: int) -> list[tuple[int, bytes]]:
        return [(index, self.round.uploads[index][at].tobytes()) for index in self.survivors]


def finished(*, dropped=(), members=MEMBERS, kind=RoundKind.TRAINING, **plan) -> Finished:
    epoch = set_up(make_plan(members, **plan), members)
    round_ = Round.start(epoch, kind=kind)
    survivors = tuple(index for index in round_.context.cohort if index not in dropped)
    plain = {index: random_chunks(round_.context, index) for index in survivors}
    for index in survivors:
        round_.mask(index, plain[index])
        round_.hand_in(index)
    if dropped:
        reveals = round_.slow_close(survivors, commit=survivors, reveal=survivors)
    else:
        reveals = round_.fast_close(survivors)
    checked = round_.check_reveals(survivors, reveals)
    keys = open_keys(round_.context, epoch.roster, survivors, checked, epoch.readies)
    uploads = {i: ShownUpload(round_.receipts[i], digests_of(round_.uploads[i])) for i in survivors}
    readies = {index: epoch.keys[index].message for index in round_.context.cohort} if dropped else {}
    return Finished(round_, survivors, plain, ShownRound(uploads, tuple(round_.commits.values()), keys, readies))


@lru_cache(maxsize=2)
def one_dropped() -> Finished:
    """Nobody changes it: what is shown wrong is made with `replace`."""
    return finished(dropped=(1,))


@pytest.mark.parametrize("dropped", [(), (0,), (2,), (1, 4)])
def test_every_chunk_of_an_honest_round_opens_to_the_sum_of_what_was_masked(dropped):
    done = finished(dropped=dropped, members=7 if len(dropped) > 1 else MEMBERS)
    audit = done.audit(own=OwnUpload(3, digests_of(done.round.uploads[3])))
    expected = plain_sum(done.plain.values())
    layout = done.round.context.layout
    assert layout.lane_chunks > 2
    for at in range(layout.chunks):
        assert np.array_equal(audit.sum_of(at, iter(done.chunks(at))), expected[at]), at
    tail = audit.tail(audit.sum_of(layout.tail_chunk, done.chunks(layout.tail_chunk)))
    assert (tail.count, tail.weight) == (len(done.survivors), len(done.survivors))


def test_in_a_sparse_graph_pair_keys_are_due_of_neighbours_alone(monkeypatch):
    rule = graph.GraphRule(complete_up_to=16, dropped_percent=10, safety_bits=4, abort_bits=1)
    monkeypatch.setattr(graph, "RULE", rule)
    done = finished(dropped=(4, 17), members=24, colluders=2, lanes=3)
    neighbours = done.round.context.graph.neighbours
    assert {one for one, _ in done.shown.keys.pair_keys} == {4, 17}
    assert all(other in neighbours(one) for one, other in done.shown.keys.pair_keys)
    readies = {index: done.shown.readies[index] for index in (4, 17, *neighbours(4), *neighbours(17))}
    assert len(readies) < 24
    audit = done.audit(replace(done.shown, readies=readies))
    expected = plain_sum(done.plain.values())
    for at in range(done.round.context.layout.chunks):
        assert np.array_equal(audit.sum_of(at, done.chunks(at)), expected[at]), at


def test_an_evaluation_round_is_audited_by_its_tail_alone():
    done = finished(kind=RoundKind.EVALUATION)
    assert done.round.context.layout.chunks == 1
    assert done.audit().tail(done.audit().sum_of(0, done.chunks(0))).count == MEMBERS


# --- what is shown wrong --------------------------------------------------------------------------------------------

Lie = Callable[[Finished], ShownRound]


def other_upload(done: Finished, index: int, **changes) -> ShownRound:
    uploads = dict(done.shown.uploads)
    uploads[index] = replace(uploads[index], **changes)
    return replace(done.shown, uploads=uploads)


def forged_receipt(done: Finished) -> ShownRound:
    receipt = bytearray(done.shown.uploads[2].receipt)
    receipt[-1] ^= 1
    return other_upload(done, 2, receipt=bytes(receipt))


def receipt_of_another(done: Finished) -> ShownRound:
    return other_upload(done, 2, receipt=done.shown.uploads[3].receipt)


def receipt_of_another_round(done: Finished) -> ShownRound:
    second = Round.start(done.round.epoch, number=2)
    second.mask(2, random_chunks(second.context, 2))
    return other_upload(done, 2, receipt=second.masked(2).message)


def other_digests(done: Finished) -> ShownRound:
    digests = done.shown.uploads[2].chunk_digests
    return other_upload(done, 2, chunk_digests=(bytes(32), *digests[1:]))


def fewer_digests(done: Finished) -> ShownRound:
    return other_upload(done, 2, chunk_digests=done.shown.uploads[2].chunk_digests[:-1])


def unsigned_survivor_set(done: Finished) -> ShownRound:
    return replace(done.shown, commits=done.shown.commits[:1])


def too_small_a_set(done: Finished) -> ShownRound:
    return replace(done.shown, uploads={index: done.shown.uploads[index] for index in (0, 2)})


def smaller_set_than_committed_to(done: Finished) -> ShownRound:
    shown = {index: upload for index, upload in done.shown.uploads.items() if index != 4}
    return replace(done.shown, uploads=shown)


def wrong_self_key(done: Finished) -> ShownRound:
    keys = done.shown.keys
    return replace(done.shown, keys=OpenedKeys({**keys.self_keys, 2: bytes(32)}, keys.pair_keys))


def swapped_self_keys(done: Finished) -> ShownRound:
    keys = done.shown.keys
    swapped = {**keys.self_keys, 2: keys.self_keys[3], 3: keys.self_keys[2]}
    return replace(done.shown, keys=OpenedKeys(swapped, keys.pair_keys))


def missing_self_key(done: Finished) -> ShownRound:
    keys = done.shown.keys
    rest = {index: key for index, key in keys.self_keys.items() if index != 2}
    return replace(done.shown, keys=OpenedKeys(rest, keys.pair_keys))


def wrong_pair_key(done: Finished) -> ShownRound:
    keys = done.shown.keys
    return replace(done.shown, keys=OpenedKeys(keys.self_keys, {**keys.pair_keys, (1, 2): bytes(32)}))


def missing_pair_key(done: Finished) -> ShownRound:
    keys = done.shown.keys
    rest = {ends: key for ends, key in keys.pair_keys.items() if ends != (1, 2)}
    return replace(done.shown, keys=OpenedKeys(keys.self_keys, rest))


def missing_ready(done: Finished) -> ShownRound:
    return replace(done.shown, readies={index: ready for index, ready in done.shown.readies.items() if index != 2})


def forged_ready(done: Finished) -> ShownRound:
    ready = bytearray(done.shown.readies[1])
    ready[len(ready) // 2] ^= 1
    return replace(done.shown, readies={**done.shown.readies, 1: bytes(ready)})


LIES: dict[Lie, str] = {
    forged_receipt: f"the receipt of {org_name(2)}: the signature on upload is not that of {org_name(2)}",
    receipt_of_another: f"the receipt of {org_name(2)} is in the name of {org_name(3)}",
    receipt_of_another_round: f"the receipt of {org_name(2)}: .* another round or context",
    other_digests: f"the receipt of {org_name(2)} is for another upload",
    fewer_digests: f"chunk digests of {org_name(2)} are shown, not",
    unsigned_survivor_set: "the commits to the survivor set: 1 members committed",
    too_small_a_set: "the survivor set: 2 survivors are below the floor",
    smaller_set_than_committed_to: "the (commits to the survivor set: .* another survivor set|survivor set: .* floor)",
    wrong_self_key: f"the opened self key of {org_name(2)} is not the one that it committed to",
    swapped_self_keys: f"the opened self key of {org_name(2)} is not the one that it committed to",
    missing_self_key: "the opened self keys are not one for each survivor",
    wrong_pair_key: f"the opened pair key of {org_name(1)} and {org_name(2)} is not the one that {org_name(1)}",
    missing_pair_key: "the opened pair keys are not one for each mask",
    missing_ready: f"the commitments of {org_name(2)} to its pair keys are not shown",
    forged_ready: f"the commitments of {org_name(1)} to its pair keys: ",
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_what_is_shown_wrong_is_refused_and_the_one_it_is_said_of_is_named(lie):
    done = one_dropped()
    with pytest.raises(AuditFailed) as caught:
        done.audit(lie(done))
    assert re.search(LIES[lie], caught.value.message)


def test_another_upload_in_the_auditors_own_name_is_refused_even_with_its_own_signature():
    done = one_dropped()
    own = OwnUpload(3, (bytes(32), *digests_of(done.round.uploads[3])[1:]))
    with pytest.raises(AuditFailed, match="in this site's name is not the one that it sent"):
        done.audit(own=own)


def test_a_roster_of_another_set_up_is_refused():
    done = one_dropped()
    other = set_up(make_plan(MEMBERS), MEMBERS, seed=9)
    with pytest.raises(AuditFailed, match="the key roster is not the one"):
        ChunkAudit.of(done.round.context, other.roster, done.shown, own=None)


def test_an_auditor_that_was_told_another_model_refuses_every_receipt():
    done = one_dropped()
    start = replace(done.round.context.start, model_hash=bytes(32))
    context = type(done.round.context).of(done.round.context.epoch, done.round.context.members, start)
    with pytest.raises(AuditFailed, match=f"the receipt of {org_name(0)}: .* another round or context"):
        ChunkAudit.of(context, done.round.epoch.roster, done.shown, own=None)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_one_flipped_bit_in_any_chunk_of_any_member_is_found_and_the_member_named(data):
    done = one_dropped()
    audit = done.audit()
    at = data.draw(st.integers(0, done.round.context.layout.chunks - 1))
    chunks = done.chunks(at)
    victim = data.draw(st.integers(0, len(chunks) - 1))
    index, content = chunks[victim]
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    chunks[victim] = (index, bytes(changed))
    with pytest.raises(AuditFailed, match=f"chunk {at} of {org_name(index)} is not the one that its receipt is for"):
        audit.sum_of(at, chunks)


def test_each_survivors_chunk_is_wanted_once_and_nobody_elses():
    done, audit = one_dropped(), one_dropped().audit()
    with pytest.raises(AuditFailed, match=f"chunk 0 of {org_name(4)} is not shown"):
        audit.sum_of(0, done.chunks(0)[:-1])
    with pytest.raises(AuditFailed, match="shown twice"):
        audit.sum_of(0, [*done.chunks(0), done.chunks(0)[0]])
    with pytest.raises(AuditFailed, match="did not survive"):
        audit.sum_of(0, [(1, b""), *done.chunks(0)])


def test_a_chunk_of_another_length_is_refused_even_under_a_receipt_for_it():
    done = one_dropped()
    short = done.round.uploads[2][0][:-1]
    round_ = done.round
    second = Round.start(set_up(make_plan(MEMBERS), MEMBERS))
    for index in second.context.cohort:
        second.mask(index, random_chunks(second.context, index))
    digests = (hashlib.sha256(short.tobytes()).digest(), *digests_of(round_.uploads[2])[1:])
    uploads = {**done.shown.uploads, 2: ShownUpload(_sealed_anew(done, digests), digests)}
    audit = done.audit(replace(done.shown, uploads=uploads))
    chunks = [(index, short.tobytes() if index == 2 else content) for index, content in done.chunks(0)]
    with pytest.raises(AuditFailed, match=f"chunk 0 of {org_name(2)} has {short.nbytes} bytes"):
        audit.sum_of(0, chunks)


def _sealed_anew(done: Finished, digests: tuple[bytes, ...]) -> bytes:
    """What member 2 would have signed for another upload: the same set-up again, as its random bytes are seeded."""
    again = Round.start(set_up(make_plan(MEMBERS), MEMBERS))
    return again.masking(2).seal(upload_hash(digests)).message


def test_a_count_that_is_not_the_survivors_is_refused():
    done, audit = one_dropped(), one_dropped().audit()
    at = done.round.context.layout.tail_chunk
    words = audit.sum_of(at, done.chunks(at))
    words[1] += np.uint64(1)
    with pytest.raises(AuditFailed, match="the tail chunk's sum is impossible: the count word"):
        audit.tail(words)


# --- how likely a wrong chunk is found ------------------------------------------------------------------------------


@given(st.integers(1, 200), st.data())
def test_the_chance_to_catch_is_that_of_drawing_without_putting_back(chunks, data):
    wrong, audited = data.draw(st.integers(0, chunks)), data.draw(st.integers(0, chunks))
    missed = 1.0
    for drawn in range(audited):
        missed *= max(0, chunks - wrong - drawn) / (chunks - drawn)
    assert chance_to_catch(wrong=wrong, chunks=chunks, audited=audited) == pytest.approx(1 - missed, abs=1e-9)


def test_all_chunks_catch_any_wrong_one_and_a_drawn_one_is_caught_as_often_as_it_is_wrong():
    assert chance_to_catch(wrong=1, chunks=50, audited=50) == 1.0
    draws = random.Random(3)
    caught = sum(draws.randrange(50) < 10 for _ in range(20_000)) / 20_000
    assert chance_to_catch(wrong=10, chunks=50, audited=1) == pytest.approx(caught, abs=0.02)
