"""The sparse graph: its numbers, its form, and that neither choosing dropouts nor mixing both closes opens more."""

from __future__ import annotations

import math
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ProtocolViolation, TooFewMembers
from common.secagg import (
    CloseKind,
    RoundContext,
    RoundKind,
    Start,
    choose_close,
    graph,
    hashing,
    make_start,
    settle_epoch,
)
from common.secagg.graph import GraphRule, Sparse
from common.secagg.roster import graph_of
from tests.unit.secagg.federation import MODEL, Epoch, Round, make_plan, plain_sum, random_chunks, set_up

# --- numbers ----------------------------------------------------------------------------------------------------

SIZES = (128, 200, 300, 500, 1000)
TABLE = {
    (10, 10): ((38, 26), (56, 39), (76, 54), (102, 74), (124, 90)),
    (20, 5): ((40, 34), (62, 52), (82, 68), (100, 82), (120, 98)),
    (20, 10): ((52, 40), (80, 61), (112, 86), (142, 109), (180, 138)),
    (33, 5): ((56, 50), (84, 74), (110, 95), (144, 123), (180, 153)),
}
"""(colluding %, dropped %) -> (k, t) by size, where only sharing has to be safe and live."""


@pytest.mark.parametrize(("percent", "size"), [(percent, at) for percent in TABLE for at in range(len(SIZES))])
def test_sharing_alone_needs_the_degrees_and_thresholds_of_the_table(percent, size):
    colluding, dropped = percent
    members = SIZES[size]
    found = next(graph.sharing_parameters(members, members * colluding // 100, members * dropped // 100, graph.RULE))
    assert found == TABLE[percent][size]


@pytest.mark.parametrize(
    ("members", "colluders", "expected"),
    [
        (129, 25, Sparse(72, 50, 24)),
        (200, 40, Sparse(92, 67, 30)),
        (300, 60, Sparse(112, 86, 35)),
        (500, 100, Sparse(142, 109, 42)),
        (1000, 200, Sparse(180, 138, 51)),
        (1000, 333, Sparse(280, 225, 90)),
    ],
)
def test_frozen_parameters(members, colluders, expected):
    """Below 300 members more neighbours than in the table: chosen dropouts must cut nobody off."""
    assert graph.parameters(members, colluders) == expected


@pytest.mark.parametrize("members", [3, 10, 127, 128])
def test_up_to_128_members_the_graph_is_complete(members):
    assert graph.parameters(members, (members - 1) // 3) is None
    assert make_plan(members, lanes=2).thresholds(members).shares == (members + (members - 1) // 3) // 2 + 1


def test_where_half_the_members_collude_no_sparse_graph_will_do():
    assert graph.parameters(129, 64) is None


def hypergeometric_tail(population: int, marked: int, drawn: int, least: int) -> float:
    """A second implementation, by logarithms of factorials."""

    def log_comb(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    top = min(marked, drawn)
    return math.fsum(
        math.exp(log_comb(marked, x) + log_comb(population - marked, drawn - x) - log_comb(population, drawn))
        for x in range(max(least, drawn + marked - population), top + 1)
    )


@pytest.mark.parametrize("percent", [10, 20, 33])
@pytest.mark.parametrize("members", [129, 160, 250, 400, 700, 1024])
def test_parameters_hold_what_they_promise_at_any_size(members, percent):
    colluders = members * percent // 100
    sparse = graph.parameters(members, colluders)
    assert sparse is not None
    degree, threshold, cover, half = sparse.degree, sparse.threshold, sparse.cover, sparse.degree // 2
    dropped = members // 10
    both_kinds = members * hypergeometric_tail(members - 1, colluders, degree, 2 * threshold - degree - 1)
    assert both_kinds <= 2**-81
    assert members * hypergeometric_tail(members - 1, colluders, degree, 2 * threshold - degree - 3) > 2**-81
    assert (members * hypergeometric_tail(members, colluders, half, cover)) ** 2 / 2 <= 2**-81
    assert members * hypergeometric_tail(members - 1, dropped, degree, degree - threshold + 1) <= 2**-20
    assert members * hypergeometric_tail(members, dropped, half, half - cover + 1) <= 2**-20


def test_a_plan_counts_shares_by_the_graph_and_commits_by_the_roster():
    thresholds = make_plan(1000, colluders=200, lanes=2).thresholds(1000)
    assert (thresholds.shares, thresholds.commits, thresholds.survivors) == (138, 601, 601)


# --- form -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [129, 130, 257, 1000])
def test_every_member_has_k_neighbours_and_is_theirs(members):
    sparse = graph.parameters(members, members // 5)
    assert sparse is not None
    drawn = graph.drawn(members, sparse, bytes(32))
    for index in range(members):
        around = drawn.neighbours(index)
        assert len(set(around)) == len(around) == sparse.degree
        assert list(around) == sorted(around)
        assert index not in around
        assert all(index in drawn.neighbours(other) for other in around)
        assert set(drawn.holders(index)) == {*around, index}


def test_the_ring_follows_from_the_key_and_is_another_for_every_key():
    rings = [graph.permutation(200, bytes([at]) * 32) for at in range(20)]
    assert rings == [graph.permutation(200, bytes([at]) * 32) for at in range(20)]
    assert len(set(rings)) == 20
    assert all(sorted(ring) == list(range(200)) for ring in rings)
    assert graph.permutation(8, bytes(32)) == FROZEN_RING


FROZEN_RING = (3, 4, 7, 6, 0, 1, 2, 5)


def test_the_key_of_a_ring_is_bound_to_roster_and_epoch():
    one, other = bytes([0xA1]) * 32, bytes([0xB2]) * 32
    assert hashing.graph_key(one, other).hex() == FROZEN_KEY
    assert hashing.graph_key(other, one).hex() != FROZEN_KEY


FROZEN_KEY = "86437375b566ceb815667b5880d68a7e49d7d3cee2cbfa7d719b5029ebc23e0f"


@pytest.mark.parametrize(("members", "colluders"), [(129, 25), (200, 66), (300, 60)])
def test_in_drawn_rings_colluders_stay_below_what_the_thresholds_allow(members, colluders):
    """Twenty rings each; what the tails bound by 2**-81 must not be seen once."""
    sparse = graph.parameters(members, colluders)
    assert sparse is not None
    half, colluding = sparse.degree // 2, set(range(colluders))
    for at in range(20):
        drawn = graph.drawn(members, sparse, at.to_bytes(32, "big"))
        nearby = max(len(colluding.intersection(drawn.neighbours(index))) for index in range(members))
        assert 2 * sparse.threshold > sparse.degree + 1 + nearby
        ring = (*drawn.ring, *drawn.ring[: half - 1])
        heavy = max(len(colluding.intersection(ring[place : place + half])) for place in range(members))
        assert heavy < sparse.cover
        drawn.check_cover(set(range(members)) - set(range(colluders, colluders + members // 20)))


def test_every_order_of_the_ring_is_drawn_about_equally_often():
    counts: dict[tuple[int, ...], int] = {}
    for at in range(6000):
        order = graph.permutation(4, at.to_bytes(32, "big"))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    chi_square = sum((count - 250) ** 2 / 250 for count in counts.values())
    assert chi_square < 69, "23 degrees of freedom: above this with a probability of 1e-6"


@given(st.data())
def test_a_set_that_covers_the_ring_keeps_its_honest_members_connected(data):
    """As long as no two separate stretches of k/2 places hold `cover` colluding members, whoever is called dropped."""
    members, half = data.draw(st.integers(9, 24)), data.draw(st.integers(2, 4))
    cover = data.draw(st.integers(1, half))
    drawn = graph.drawn(members, Sparse(2 * half, 2 * half, cover), data.draw(st.binary(min_size=32, max_size=32)))
    colluding = data.draw(st.sets(st.integers(0, members - 1), max_size=members // 2))
    stretches = [{drawn.ring[(at + step) % members] for step in range(half)} for at in range(members)]
    heavy = [stretch for stretch in stretches if len(stretch & colluding) >= cover]
    present = data.draw(st.sets(st.integers(0, members - 1)))
    # Only a set that lacks few enough passes; what is drawn is what to take away.
    survivors = set(range(members)) - set(list(present)[: members // 3])
    least = min(len(stretch & survivors) for stretch in stretches)
    if least < cover:
        with pytest.raises(TooFewMembers, match="cut off"):
            drawn.check_cover(survivors)
        return
    drawn.check_cover(survivors)
    if all(one & other for one, other in combinations(heavy, 2)):
        assert len(components(drawn, survivors - colluding)) <= 1


def components(drawn: graph.Graph, present: set[int]) -> list[frozenset[int]]:
    left, found = set(present), []
    while left:
        reached, border = set(), {left.pop()}
        while border:
            reached |= border
            border = {other for one in border for other in drawn.neighbours(one)} & left
            left -= border
        found.append(frozenset(reached))
    return found


# --- what a coordinator can open --------------------------------------------------------------------------------

RING_OF_EIGHT = graph.drawn(8, Sparse(degree=4, threshold=4, cover=1), bytes(32))
"""t = 4 of 5 shares, so 2t > k + 1 + 1 colluding neighbour. One colludes, so no two separate stretches hold one."""
COLLUDING = {RING_OF_EIGHT.ring[0]}
HONEST = set(range(8)) - COLLUDING
QUORUM = (8 + 1) // 2 + 1
SURVIVOR_SETS = [set(one) for size in range(QUORUM, 9) for one in combinations(range(8), size)]


def opened_sums(survivors: set[int], slow: set[int], fast: set[int]) -> list[frozenset[int]]:
    """Whose honest updates open as one sum, from what slow and fast members reveal and the colluding one has.

    A part of the honest members is open when its pair keys to all outside are (K of the other end) and its b are.
    """

    def opens(owner: int, showing: set[int]) -> bool:
        return len(showing.intersection(RING_OF_EIGHT.holders(owner))) >= 4

    self_keys = {i for i in HONEST if opens(i, COLLUDING | fast | (slow if i in survivors else set()))}
    escrow_keys = {i for i in HONEST if opens(i, COLLUDING | (slow if i not in survivors else set()))}
    assert not self_keys & escrow_keys
    return [part for part in components(RING_OF_EIGHT, HONEST - escrow_keys) if part <= self_keys]


def covers(survivors: set[int]) -> bool:
    try:
        RING_OF_EIGHT.check_cover(survivors)
    except TooFewMembers:
        return False
    return True


def test_whatever_a_coordinator_tells_whom_at_most_one_sum_opens_and_it_holds_every_honest_survivor():
    """Every survivor set that members accept; every way to put honest members on the slow path, the fast or none."""
    opened = 0
    for survivors in filter(covers, SURVIVOR_SETS):
        for told in product("sfn", repeat=len(HONEST)):
            slow = {index for index, way in zip(HONEST, told, strict=True) if way == "s"}
            if 0 < len(slow) < QUORUM - len(COLLUDING):
                continue
            sums = opened_sums(survivors, slow, {i for i, way in zip(HONEST, told, strict=True) if way == "f"})
            assert len(sums) <= 1
            assert all(part >= (survivors if slow else HONEST) - COLLUDING for part in sums)
            opened += len(sums)
    assert opened > 100


def test_a_survivor_set_that_does_not_cover_the_ring_would_open_one_member_alone():
    """Why members look at the ring: a quorum's signatures alone do not stop a coordinator that picks the dropouts."""
    exposed = [one for one in SURVIVOR_SETS if any(len(part) == 1 for part in opened_sums(one, HONEST, set()))]
    assert exposed
    assert not any(covers(one) for one in exposed)


# --- a federation -----------------------------------------------------------------------------------------------

MEMBERS = 24
SMALL = GraphRule(complete_up_to=16, dropped_percent=10, safety_bits=4, abort_bits=1)
"""24 members are too few for 2**-80; the protocol does not know."""


@pytest.fixture
def small_rule(monkeypatch: pytest.MonkeyPatch) -> Sparse:
    monkeypatch.setattr(graph, "RULE", SMALL)
    sparse = graph.parameters(MEMBERS, 2)
    assert sparse == Sparse(degree=10, threshold=7, cover=3)
    return sparse


@pytest.fixture
def federation(small_rule: Sparse) -> Epoch:
    del small_rule
    return set_up(make_plan(MEMBERS, colluders=2, lanes=3), MEMBERS)


def without(epoch: Epoch, *places: int) -> list[int]:
    """Everyone but those who stand at these places of the ring."""
    ring = graph_of(epoch.epoch, epoch.members).ring
    return [index for index in range(MEMBERS) if index not in {ring[place % MEMBERS] for place in places}]


def run_round(epoch: Epoch, *, number: int, cohort: list[int], dropped: set[int], silent: set[int]) -> None:
    """`dropped` never upload; of the others `silent` do not reveal. The sum must be that of the plain vectors."""
    round_ = Round.start(epoch, number=number, cohort=cohort)
    chunks = {index: random_chunks(round_.context, seed=100 * number + index) for index in cohort}
    for index in cohort:
        if index not in dropped:
            round_.mask(index, chunks[index])
            round_.hand_in(index)
    kind, survivors = round_.close()
    assert kind is (CloseKind.SLOW if dropped else CloseKind.FAST)
    assert set(survivors) == set(cohort) - dropped
    online = [index for index in survivors if index not in silent]
    if kind is CloseKind.FAST:
        reveals = round_.fast_close(online)
    else:
        reveals = round_.slow_close(survivors, commit=survivors, reveal=online)
    total = round_.open(survivors, reveals)
    expected = plain_sum(chunks[index] for index in survivors)
    assert all((one == other).all() for one, other in zip(total, expected, strict=True))


def test_the_sum_of_a_sparse_round_is_the_plain_sum_with_and_without_dropouts(federation):
    ring = graph_of(federation.epoch, federation.members).ring
    run_round(federation, number=1, cohort=list(range(MEMBERS)), dropped=set(), silent={ring[3]})
    cohort = [index for index in range(MEMBERS) if index != ring[9]]
    run_round(federation, number=2, cohort=cohort, dropped={ring[0], ring[1]}, silent={ring[15]})


def test_members_of_a_sparse_graph_know_their_neighbours_alone(federation):
    drawn = graph_of(federation.epoch, federation.members)
    round_ = Round.start(federation)
    for index, keys in federation.keys.items():
        assert set(keys.shares) == {*drawn.neighbours(index), index}
        assert set(round_.masking(index).pair_seeds) == set(drawn.neighbours(index))
        assert len(federation.deposits[index].envelopes) == 11


def test_two_rosters_draw_two_rings(small_rule):
    plan = make_plan(MEMBERS, colluders=2, lanes=3)
    one, other = (set_up(plan, MEMBERS, seed=seed) for seed in (0, 1))
    assert graph_of(one.epoch, one.members).ring != graph_of(other.epoch, other.members).ring


def test_a_cohort_that_leaves_a_member_without_neighbours_is_refused_by_both_sides(federation):
    epoch, members = federation.epoch, federation.members
    lonely = without(federation, 7, 8, 9, 10, 11)
    with pytest.raises(TooFewMembers, match="cut off"):
        make_start(epoch, members, round_number=1, kind=RoundKind.TRAINING, cohort=lonely, model_hash=MODEL)
    start = Start(epoch.hash, members.roster_hash, 1, RoundKind.TRAINING, tuple(lonely), MEMBERS, MODEL)
    with pytest.raises(ProtocolViolation, match="cohort leaves members exposed"):
        federation.keys[lonely[0]].start(start.encode(), model_hash=MODEL)


def test_a_survivor_set_that_would_cut_a_member_off_is_refused_by_both_sides(federation):
    round_ = Round.start(federation)
    for index in range(MEMBERS):
        round_.mask(index, random_chunks(round_.context, seed=index))
        round_.hand_in(index)
    survivors = without(federation, 4, 5, 6)
    assert len(survivors) >= round_.context.thresholds.survivors
    with pytest.raises(TooFewMembers, match="only 2 members are left in 5 places"):
        choose_close(round_.context, survivors)
    with pytest.raises(ProtocolViolation, match="survivor set leaves members exposed"):
        round_.masked(survivors[0]).bind(survivors, round_.receipts_of(survivors))


def test_survivors_who_could_not_open_every_secret_are_refused_at_the_close(federation):
    """Two of every five places are left out: the ring is covered, but some secret has fewer than 7 of 11 holders."""
    context = Round.start(federation).context
    survivors = without(federation, 0, 2, 5, 7, 10)
    context.check_survivors(survivors)
    assert context.unopenable(survivors)
    with pytest.raises(TooFewMembers, match="could not open the sum"):
        choose_close(context, survivors)


def test_a_cohort_may_hold_members_whose_shares_a_site_lacks_if_they_are_not_its_neighbours(federation):
    drawn = graph_of(federation.epoch, federation.members)
    stranger = next(index for index in range(MEMBERS) if index not in drawn.holders(0))
    assert stranger not in federation.keys[0].shares
    epoch, members = federation.epoch, federation.members
    start = Start(epoch.hash, members.roster_hash, 1, RoundKind.TRAINING, tuple(range(MEMBERS)), MEMBERS, MODEL)
    context = RoundContext.of(epoch, members, start)
    _, masking = federation.keys[0].start(context.start.encode(), model_hash=MODEL)
    assert stranger in context.cohort
    assert stranger not in masking.pair_seeds


def settled(epoch: Epoch, silent_places: set[int]) -> tuple[int, ...]:
    silent = set(range(MEMBERS)) - set(without(epoch, *silent_places))
    readies = [ready for index, ready in epoch.readies.items() if index not in silent]
    return settle_epoch(epoch.epoch, epoch.members, readies).usable


def test_members_without_ready_are_left_out_and_their_neighbours_stay_while_enough_hold_their_shares(federation):
    """t + spare = 8 of 11 holders: three may be gone from any eleven places in a row."""
    assert settled(federation, {0, 4, 8, 16}) == tuple(without(federation, 0, 4, 8, 16))


def test_a_member_whose_shares_too_few_hold_is_left_out_and_so_are_those_who_then_lose_a_holder_too_many(federation):
    """Four are gone from around one place; who stands there goes, then the next, until the ring is not covered."""
    with pytest.raises(TooFewMembers, match="only 7 members hold its shares, 8 must"):
        settled(federation, {0, 3, 6, 9})
