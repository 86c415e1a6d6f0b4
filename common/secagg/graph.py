"""Who masks with whom, and who holds whose shares.

The graph is complete. A k-regular graph (Bell et al. 2020, for more than about 128 members) replaces `neighbours`
and nothing else: every other module asks here.
"""

from __future__ import annotations


def neighbours(index: int, members: int) -> tuple[int, ...]:
    """Indices that share a pairwise mask with `index`, ascending. Symmetric: j in N(i) if and only if i in N(j)."""
    return tuple(other for other in range(members) if other != index)


def holders(index: int, members: int) -> tuple[int, ...]:
    """Indices that hold shares of `index`'s secrets, ascending: its neighbours and itself."""
    return tuple(sorted((*neighbours(index, members), index)))


def pair(one: int, other: int) -> tuple[int, int]:
    """A pair as (smaller, larger): the order in which it enters every derivation."""
    return (one, other) if one < other else (other, one)
