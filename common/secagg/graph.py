"""Who masks with whom, and who holds whose shares: the complete graph, and above 128 members a sparse one.

The sparse graph is k-regular (Bell et al., CCS 2020): members stand in a ring in an order that the roster's hash
draws, and each has the k/2 nearest on either side as neighbours. `parameters` finds k and its thresholds. Every other
module asks here. Knows nothing of keys, messages and rounds.

What the numbers must give, for c members that collude and were chosen before the ring was drawn:

* no secret opens twice over: of the k + 1 holders of one member's shares those who collude may give both kinds and the
  others one, so 2t > k + 1 + colluding neighbours, for every member;
* nobody is cut out of the sum: the coordinator may choose whom it calls dropped after it has seen the ring, and call
  all honest neighbours of one member so. A ring falls apart only where k/2 places in a row hold no honest survivor,
  and that in two places at least. So participants refuse a cohort or a survivor set that leaves fewer than `cover`
  members in any k/2 places in a row, and no two such stretches hold `cover` colluding ones;
* a round survives a tenth of the roster being away.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from common.errors import TooFewMembers
from common.secagg.prg import keystream_by_counter

DRAW_BYTES: Final = 4
DRAWS_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True)
class GraphRule:
    """What the search for a graph is asked for; every member computes with the same one.

    complete_up_to: most members of a complete graph. dropped_percent: members of the roster that may be missing when a
    sum is opened. safety_bits: each of the two bad events of the module's docstring has at most the probability
    2**-safety_bits, both together 2**-80: 2**-40 is left to somebody who tries 2**40 rosters. abort_bits: a round
    fails with at most 2**-abort_bits because of either cause while no more than dropped_percent are missing.
    """

    complete_up_to: int = 128
    dropped_percent: int = 10
    safety_bits: int = 81
    abort_bits: int = 20


RULE: Final = GraphRule()


@dataclass(frozen=True, slots=True)
class Sparse:
    """A sparse graph's numbers. degree (k): neighbours of a member, even. threshold (t): shares that open a secret.

    cover: least members of a cohort, or a survivor set, in any k/2 places in a row. spare: holders beyond t that a
    member needs to take part in an epoch, so that the first dropout does not end a round.
    """

    degree: int
    threshold: int
    cover: int

    @property
    def spare(self) -> int:
        return -(-self.threshold // 20)


# --- the search -------------------------------------------------------------------------------------------------


def parameters(members: int, colluders: int) -> Sparse | None:
    """The sparse graph with fewest neighbours for so many members and colluders; None: the graph is complete."""
    return find_parameters(members, colluders, RULE)


@lru_cache(maxsize=256)
def find_parameters(members: int, colluders: int, rule: GraphRule) -> Sparse | None:
    """`parameters` under a given rule. None also where no sparse graph would do: too many collude."""
    if members <= rule.complete_up_to:
        return None
    dropped = members * rule.dropped_percent // 100
    for degree, threshold in sharing_parameters(members, colluders, dropped, rule):
        cover = least_cover(members, colluders, degree, rule)
        kept = cover is not None and _is_rare(members, dropped, degree // 2, degree // 2 - cover + 1, rule.abort_bits)
        if cover is not None and kept:
            return Sparse(degree, threshold, cover)
    return None


def sharing_parameters(members: int, colluders: int, dropped: int, rule: GraphRule) -> Iterator[tuple[int, int]]:
    """(k, t) for which sharing alone is safe and live, k ascending.

    t is the least with 2t > k + 1 + X for the colluding neighbours X of all members, up to 2**-safety_bits; k - Y >= t
    for the missing neighbours Y of all, up to 2**-abort_bits (k and not k + 1, as one that dropped out does not
    answer for itself). Both X and Y are hypergeometric; the tails are exact, a union bound goes over the members.
    """
    others = members - 1
    for degree in range(2, members, 2):
        tails = _tails(others, min(colluders, others), degree)
        for threshold in range(degree // 2 + 1, degree + 1):
            too_many = 2 * threshold - degree - 1
            if _at_most(members * tails[too_many], math.comb(others, degree), rule.safety_bits):
                missing = degree - threshold + 1
                if _is_rare(others, min(dropped, others), degree, missing, rule.abort_bits, of=members):
                    yield degree, threshold
                break


def least_cover(members: int, colluders: int, degree: int, rule: GraphRule) -> int | None:
    """Least number that colluders reach in no two separate stretches of k/2 places, up to 2**-safety_bits.

    Numbers of colluders in separate stretches are negatively associated, so two stretches of all pairs hold so many
    with at most (members * tail)**2 / 2. None: not even whole stretches are out of their reach.
    """
    half = degree // 2
    tails, whole = _tails(members, colluders, half), math.comb(members, half)
    for cover in range(1, half + 1):
        if _at_most((members * tails[cover]) ** 2, 2 * whole**2, rule.safety_bits):
            return cover
    return None


def _tails(population: int, marked: int, drawn: int) -> list[int]:
    """At place x the ways to draw at least x marked ones, out of comb(population, drawn); one more place, for none."""
    ways = [math.comb(marked, x) * math.comb(population - marked, drawn - x) for x in range(drawn + 1)]
    tails = [0] * (drawn + 2)
    for x in range(drawn, -1, -1):
        tails[x] = tails[x + 1] + ways[x]
    return tails


def _is_rare(population: int, marked: int, drawn: int, count: int, bits: int, *, of: int | None = None) -> bool:
    """Whether `count` marked ones or more are drawn in any of `of` (else `population`) draws with at most 2**-bits."""
    ways = _tails(population, marked, drawn)[count]
    return _at_most((population if of is None else of) * ways, math.comb(population, drawn), bits)


def _at_most(ways: int, whole: int, bits: int) -> bool:
    return ways << bits <= whole


# --- the graph --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Graph:
    """Who is whose neighbour in one roster. Make it with `complete` or `drawn`.

    around: by index, its neighbours, ascending; symmetric. ring: a sparse graph's members in their order.
    """

    around: tuple[tuple[int, ...], ...] = field(repr=False)
    ring: tuple[int, ...] = field(default=(), repr=False)
    sparse: Sparse | None = None

    def neighbours(self, index: int) -> tuple[int, ...]:
        """Indices that share a pairwise mask with `index`, ascending: j in N(i) if and only if i in N(j)."""
        return self.around[index]

    def holders(self, index: int) -> tuple[int, ...]:
        """Indices that hold shares of `index`'s secrets, ascending: its neighbours and itself."""
        return tuple(sorted((*self.around[index], index)))

    def check_cover(self, present: Collection[int]) -> None:
        """Raises TooFewMembers when honest members of `present` might be cut off from each other.

        That is when some k/2 places in a row of a sparse graph's ring hold fewer than `cover` of them. Never raises
        for a complete graph, where everyone is everyone's neighbour.
        """
        if self.sparse is None:
            return
        there, half = set(present), self.sparse.degree // 2
        marks = [index in there for index in self.ring]
        marks += marks[: half - 1]
        count = least = sum(marks[:half])
        for at in range(half, len(marks)):
            count += marks[at] - marks[at - half]
            least = min(least, count)
        if least < self.sparse.cover:
            raise TooFewMembers(
                f"only {least} members are left in {half} places in a row of the ring, {self.sparse.cover} must be: "
                "with fewer, some could be cut off from the sum and opened alone"
            )


@lru_cache(maxsize=8)
def complete(members: int) -> Graph:
    """Everyone is everyone's neighbour."""
    return Graph(tuple(tuple(other for other in range(members) if other != index) for index in range(members)))


@lru_cache(maxsize=8)
def drawn(members: int, sparse: Sparse, key: bytes) -> Graph:
    """The sparse graph that a key of 32 bytes draws: neighbours stand at most k/2 places apart in the ring."""
    ring = permutation(members, key)
    half = sparse.degree // 2
    steps = (*range(-half, 0), *range(1, half + 1))
    around: list[tuple[int, ...]] = [()] * members
    for place, index in enumerate(ring):
        around[index] = tuple(sorted(ring[(place + step) % members] for step in steps))
    return Graph(tuple(around), ring, sparse)


def permutation(count: int, key: bytes) -> tuple[int, ...]:
    """0 .. count - 1 in an order drawn by `key`, every order with the same probability (Fisher and Yates).

    For i from count - 1 down to 1 the places i and j <= i are exchanged. j is a 32-bit big-endian number of the key's
    AES-256-CTR stream modulo i + 1; numbers from the last multiple of i + 1 on are passed over.
    """
    order, numbers = list(range(count)), _numbers(key)
    for last in range(count - 1, 0, -1):
        bound = last + 1
        limit = (1 << 8 * DRAW_BYTES) // bound * bound
        number = next(number for number in numbers if number < limit)
        order[last], order[number % bound] = order[number % bound], order[last]
    return tuple(order)


def _numbers(key: bytes) -> Iterator[int]:
    chunk = 0
    while True:
        stream = keystream_by_counter(key, chunk, DRAW_BYTES * DRAWS_AT_ONCE)
        yield from (number for (number,) in struct.iter_unpack(">I", stream))
        chunk += 1


def pair(one: int, other: int) -> tuple[int, int]:
    """A pair as (smaller, larger): the order in which it enters every derivation."""
    return (one, other) if one < other else (other, one)
