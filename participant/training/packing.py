"""A batch as a tree of tokens: what several records begin with alike is computed once, and nothing is padded.

A causal model's state at a token follows from that token and those before it. Records that share a template share their
first tokens, and with them every state up to where they part; loss and gradients are those of the records apart.
Pure: numbers in, numbers out; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenTree:
    """The different beginnings of some rows, one node each.

    ids, positions: int64[nodes], a node's token and its place in its rows, from 0. nodes: int64[rows, longest], a
    row's token as its node; places beyond a row's end repeat its last node. first: int64[nodes], a place in `nodes`
    (flattened) where the node occurs.
    """

    ids: Indices
    positions: Indices
    nodes: Indices
    first: Indices


def token_tree(rows: Sequence[Sequence[int]]) -> TokenTree:
    """The tree of `rows`, each of at least one token. Nodes come in the sorted order of the rows."""
    longest = max(len(row) for row in rows)
    nodes = np.zeros((len(rows), longest), dtype=np.int64)
    ids: list[int] = []
    positions: list[int] = []
    first: list[int] = []
    # Sorted, a row has most in common with the one before it; no earlier one shares more.
    previous: int | None = None
    for index in sorted(range(len(rows)), key=lambda index: tuple(rows[index])):
        row = rows[index]
        shared = 0
        if previous is not None:
            shared = _shared(rows[previous], row)
            nodes[index, :shared] = nodes[previous, :shared]
        count = len(row) - shared
        nodes[index, shared : len(row)] = np.arange(len(ids), len(ids) + count)
        nodes[index, len(row) :] = nodes[index, len(row) - 1]
        ids.extend(row[shared:])
        positions.extend(range(shared, len(row)))
        first.extend(range(index * longest + shared, index * longest + len(row)))
        previous = index
    return TokenTree(np.array(ids), np.array(positions), nodes, np.array(first))


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count
