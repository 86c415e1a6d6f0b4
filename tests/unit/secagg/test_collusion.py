"""The coordinator with c members that hand it everything they have: whatever it tells whom, one sum opens, or none.

Misbehaviour 34. First over counts, exhaustively: what an owner's shares amount to depends only on which of the sets
that members were told it is in. Then over the real phases, with real shares and commitments.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import pytest

from common.errors import AggregationFailed, PlanInvalid, ProtocolViolation
from common.secagg import hashing, shamir
from common.secagg.messages import Commit, Reveal, Signed
from common.secagg.participant_round import Masked
from common.secagg.shamir import SHARE_BYTES
from tests.unit.secagg.federation import Round, make_plan, random_chunks, set_up

MOST_MEMBERS = 11
FEDERATIONS = [(members, colluders) for members in range(3, MOST_MEMBERS + 1) for colluders in range(members - 1)]


def possible(members: int, colluders: int) -> bool:
    try:
        make_plan(members, colluders=colluders).thresholds(members)
    except PlanInvalid:
        return False
    return True


def splits(honest: int) -> Iterator[tuple[int, int, int]]:
    """How many honest members were told the whole cohort, a first and a second smaller set; the rest were told none."""
    for fast, first in itertools.product(range(honest + 1), repeat=2):
        for second in range(honest - fast - first + 1):
            yield fast, first, second


@cache
def sums_that_open(opened_self: int, opened_escrow: int, honest: int) -> tuple[int, ...]:
    """Every non-empty set of honest members whose uploads' sum comes out from under its masks, as bits.

    opened_self, opened_escrow: owners whose b[r], or whose K[r], is open. Of each upload in the set the self mask must
    be open; of each of its pairs with a honest member outside, one of the two escrows must be.
    """
    everyone, found = (1 << honest) - 1, []
    for inside in range(1, everyone + 1):
        outside = everyone & ~inside
        if inside & ~opened_self:
            continue
        if inside & ~opened_escrow and outside & ~opened_escrow:
            continue
        found.append(inside)
    return tuple(found)


@pytest.mark.parametrize(("members", "colluders"), [pair for pair in FEDERATIONS if possible(*pair)])
def test_whatever_members_are_told_no_owner_opens_twice_and_no_second_sum_opens(members: int, colluders: int) -> None:
    thresholds = make_plan(members, colluders=colluders).thresholds(members)
    honest = members - colluders
    opened: set[int] = set()
    for fast, *told in splits(honest):
        # The colluders sign whatever is asked; a set short of commits reveals nothing.
        revealing = [voters if voters + colluders >= thresholds.commits else 0 for voters in told]
        assert 0 in revealing, "two sets have a quorum"
        # A third and further sets would need members of these two; none of them has a quorum while another one has.
        voters = max(revealing)
        for least in range(thresholds.survivors, members + 1):
            dropped_honest = range(min(members - least, honest) + 1)
            for dropped in dropped_honest:
                in_set, out_of_set = (colluders + fast + voters, colluders), (colluders + fast, colluders + voters)
                for self_shares, escrow_shares in (in_set, out_of_set):
                    assert min(self_shares, escrow_shares) < thresholds.shares
                    # Less than t shares say nothing of a secret, and t of both kinds were needed.
                opened_self = opened_escrow = 0
                for owner in range(honest):
                    self_shares, escrow_shares = out_of_set if owner < dropped else in_set
                    opened_self |= (self_shares >= thresholds.shares) << owner
                    opened_escrow |= (escrow_shares >= thresholds.shares) << owner
                sums = sums_that_open(opened_self, opened_escrow, honest)
                assert len(sums) <= 1
                for one in sums:
                    assert one.bit_count() >= thresholds.survivors - colluders >= 2
                    opened.add(one)
    assert opened, "an adversary that opens nothing at all shows nothing"


@dataclass(frozen=True)
class Adversary:
    """A real round of which the coordinator and the first `colluders` members are one."""

    round: Round
    colluders: int

    @property
    def honest(self) -> range:
        return range(self.colluders, len(self.round.context.cohort))

    def phase(self, index: int) -> Masked:
        return self.round.masked(index)

    def told_fast(self, index: int) -> bytes:
        return self.phase(index).accept_fast_close(self.round.receipts_of(self.round.context.cohort)).message

    def told(self, survivors: tuple[int, ...], voters: tuple[int, ...]) -> Mapping[int, bytes]:
        """What honest voters reveal for one set, on their commits and all that the colluders sign."""
        context = self.round.context
        bound = {i: self.phase(i).bind(survivors, self.round.receipts_of(survivors)) for i in voters}
        commits = [phase.message for phase in bound.values()]
        for index in range(self.colluders):
            body = Commit(context.hash, index, survivors, len(context.members)).encode()
            commits.append(Signed.by_epoch_key(self.phase(index).signing_seed, "commit", body).encode())
        revealed = {}
        for index, phase in bound.items():
            try:
                revealed[index] = phase.accept(commits).message
            except ProtocolViolation:
                return {}
        return revealed

    def opens(self, reveals: Mapping[int, bytes]) -> tuple[set[int], set[int]]:
        """The owners whose b[r], and whose K[r], follows from the reveals and the colluders' own shares."""
        context, threshold = self.round.context, self.round.context.thresholds.shares
        self_shares: dict[int, dict[int, bytes]] = {owner: {} for owner in context.cohort}
        escrow_shares: dict[int, dict[int, bytes]] = {owner: {} for owner in context.cohort}
        for holder in range(self.colluders):
            for owner, both in self.phase(holder).shares.items():
                escrow_shares[owner][holder], self_shares[owner][holder] = both[:SHARE_BYTES], both[SHARE_BYTES:]
        for holder, message in reveals.items():
            reveal = Reveal.decode(Signed.decode(message).body)
            for owner, opened in zip(context.cohort, reveal.shares, strict=True):
                (self_shares if owner in reveal.survivors else escrow_shares)[owner][holder] = opened.share

        def is_open(owner: int, shares: Mapping[int, bytes], *, escrow: bool) -> bool:
            """Tries what there is, also where it is too little."""
            found = dict(itertools.islice(shares.items(), threshold))
            if not found:
                return False
            try:
                secret = shamir.combine(tuple(holder + 1 for holder in found), list(found.values()))
            except AggregationFailed:
                return False
            advertised = self.round.epoch.roster.advertisements[owner]
            place = (advertised.epoch_hash, advertised.org_id, context.start.round)
            if escrow:
                return hashing.commit_escrow_key(*place, secret) == advertised.escrow_commitments[context.round_offset]
            return hashing.commit_self_key(*place, secret) == advertised.self_commitments[context.round_offset]

        return (
            {owner for owner in self.honest if is_open(owner, self_shares[owner], escrow=False)},
            {owner for owner in self.honest if is_open(owner, escrow_shares[owner], escrow=True)},
        )


def adversary(members: int, colluders: int) -> Adversary:
    round_ = Round.start(set_up(make_plan(members, parameters=0, colluders=colluders, rounds=1), members))
    for index in round_.context.cohort:
        round_.mask(index, random_chunks(round_.context, index))
        round_.hand_in(index)
    return Adversary(round_, colluders)


def bits(owners: set[int], first: int) -> int:
    return sum(1 << (owner - first) for owner in owners)


@pytest.mark.parametrize("members", range(4, MOST_MEMBERS + 1))
def test_real_members_who_are_told_different_sets_open_one_sum_at_most(members: int) -> None:
    colluders = (members - 1) // 3
    cheat = adversary(members, colluders)
    honest, everyone = cheat.honest, cheat.round.context.cohort
    floor = cheat.round.context.thresholds.survivors
    assert floor < members
    # Two sets that differ in one member: their difference would be one update.
    first, second = everyone[:-1], everyone[:-2] + everyone[-1:]
    told_fast = {index: cheat.told_fast(index) for index in honest}
    told_first = {count: cheat.told(first, tuple(honest[:count])) for count in range(len(honest) + 1)}
    told_second = {count: cheat.told(second, tuple(honest[len(honest) - count :])) for count in range(len(honest) + 1)}
    opened: set[int] = set()
    for fast, one, other in splits(len(honest)):
        if fast + one + other < len(honest):
            continue  # one more answer never opens less
        between = honest[one : one + fast]
        reveals = {**told_first[one], **{index: told_fast[index] for index in between}, **told_second[other]}
        opened_self, opened_escrow = cheat.opens(reveals)
        assert not opened_self & opened_escrow
        sums = sums_that_open(bits(opened_self, colluders), bits(opened_escrow, colluders), len(honest))
        assert len(sums) <= 1
        assert all(found.bit_count() >= floor - colluders for found in sums)
        opened.update(sums)
    assert len(opened) == 3, "each of the three sets opens where it is the only one that is told"
