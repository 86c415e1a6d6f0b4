"""What the coordinator holds in memory for one member's call does not grow with the number of members."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from accord.v1 import secure_aggregation_pb2 as pb
from common.clock import SystemClock
from common.secagg import KeyEpoch, Members, Ready, RoundContext, RoundKind, SealedShare, Signed, Start, settle_epoch
from coordinator.masked import commitments_to
from coordinator.rounds.model import EpochState, RunMember, ShareEnvelope
from coordinator.services.key_epochs import ENVELOPES_AT_ONCE, KeyEpochs
from coordinator.store.interface import Store
from coordinator.store.opening import open_store
from coordinator.store.schema import migrate
from tests.conformance import samples
from tests.memory import peak_memory
from tests.unit.secagg.federation import make_plan

FEW, MANY = 40, 160
NEIGHBOURS = 36
ROUNDS = 4
BOX = bytes(8 << 10)  # Larger than a real one, so that it outweighs what a call holds besides.
HOLDER = 7


def name_of(index: int) -> str:
    return f"site-{index:03}"


def envelope(owner: int, holder: int) -> ShareEnvelope:
    sealed = SealedShare(bytes(32), owner, holder, tuple(bytes([owner]) * 32 for _ in range(ROUNDS)), BOX)
    signed = Signed(sealed.encode(), bytes(64)).encode()
    return ShareEnvelope("run-1", 2, name_of(holder), name_of(owner), signed)


def holders(owner: int, members: int) -> list[int]:
    """Itself and its neighbours on a ring."""
    return sorted((owner + step) % members for step in range(-NEIGHBOURS // 2, NEIGHBOURS // 2 + 1))


@contextmanager
def store_of(folder: Path, members: int) -> Iterator[Store]:
    """After everybody has dealt its shares."""
    url = f"sqlite:///{folder}/{members}.db"
    migrate(url)
    names = tuple(map(name_of, range(members)))
    with closing(open_store(url)) as store:
        with store.write() as writer:
            writer.add_run(samples.run())
            for name in names:
                writer.put_run_member(RunMember("run-1", name, joined=True, updated_at=samples.NOW))
            writer.add_epoch(replace(samples.EPOCH, state=EpochState.CONFIRMING, members=names))
            for owner in range(members):
                writer.add_share_envelopes(envelope(owner, holder) for holder in holders(owner, members))
        yield store


def owners_of_shares(store: Store) -> list[str]:
    """As GetShares does it: what was sent is let go."""
    epochs, request = KeyEpochs(store=store, clock=SystemClock()), pb.GetSharesRequest(run="run-1", epoch=2)
    owners: list[str] = []
    while found := epochs.shares(request, name_of(HOLDER), after=owners[-1] if owners else ""):
        assert len(found) <= ENVELOPES_AT_ONCE
        owners += [one.owner for one in found]
    return owners


def neighbours_of_holder(members: int) -> list[int]:
    return [owner for owner in range(members) if HOLDER in holders(owner, members)]


def test_a_member_gets_the_shares_of_its_neighbours_in_memory_that_does_not_grow_with_the_members(
    tmp_path: Path,
) -> None:
    peaks = {}
    for members in (FEW, MANY):
        with store_of(tmp_path, members) as store:
            expected = [name_of(owner) for owner in neighbours_of_holder(members) if owner != HOLDER]
            assert owners_of_shares(store) == expected  # and everything that is made once is there
            with peak_memory() as peak:
                owners_of_shares(store)
        peaks[members] = peak.bytes
    assert peaks[MANY] < 1.2 * peaks[FEW]
    assert peaks[MANY] < 3 * ENVELOPES_AT_ONCE * len(BOX)


def test_a_reveal_is_checked_in_memory_that_does_not_grow_with_the_members(tmp_path: Path) -> None:
    peaks = {}
    for members in (FEW, MANY):
        round_ = replace(samples.ROUND, epoch=2)
        with store_of(tmp_path, members) as store, store.read() as reader:
            context = context_of(members)
            found = commitments_to(reader, context, round_, name_of(HOLDER))
            assert found == {(owner, HOLDER): bytes([owner]) * 32 for owner in neighbours_of_holder(members)}
            with peak_memory() as peak:
                commitments_to(reader, context, round_, name_of(HOLDER))
        peaks[members] = peak.bytes
    assert peaks[MANY] < 1.2 * peaks[FEW]
    assert peaks[MANY] < 24 * len(BOX)


def context_of(members: int) -> RoundContext:
    epoch = KeyEpoch(make_plan(members=members, rounds=ROUNDS), 2, 5)
    start = Start(epoch.hash, bytes(32), 7, RoundKind.TRAINING, tuple(range(members)), members, bytes(32))
    return RoundContext(epoch, roster_of(members), start, bytes(32))


def roster_of(members: int) -> Members:
    names = tuple(map(name_of, range(members)))
    return Members(bytes(32), names, (bytes(32),) * members, ((),) * members)


def readies(members: int, rounds: int, liar: int) -> Iterator[Ready]:
    """Everybody holds everybody; the liar commits to other keys in the last round."""
    for index in range(members):
        others = [other for other in range(members) if other != index]
        commitments = tuple(
            tuple(bytes([min(index, other), max(index, other), at]) + bytes(29) for other in others)
            for at in range(rounds)
        )
        if index == liar:
            commitments = (*commitments[:-1], (b"\xff" * 32,) * len(others))
        yield Ready(bytes(32), index, tuple(range(members)), members, (b"",) * rounds, commitments)


@pytest.mark.parametrize("liar", [0, 17])
def test_an_epoch_is_settled_in_memory_that_does_not_grow_with_its_rounds(liar: int) -> None:
    members, peaks = 40, {}
    for rounds in (2, 40):
        epoch = KeyEpoch(make_plan(members=members, rounds=rounds), 0, 1)
        roster = roster_of(members)
        with peak_memory() as peak:
            settled = settle_epoch(epoch, roster, readies(members, rounds, liar))
        assert settled.usable == tuple(index for index in range(members) if index != liar)
        assert len(settled.unequal_pairs) == members - 1
        peaks[rounds] = peak.bytes
    of_a_ready = 40 * members * 100
    assert peaks[40] < peaks[2] + 4 * of_a_ready
