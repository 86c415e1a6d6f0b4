from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from participant.training.packing import token_tree

ROWS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=8)


@given(ROWS)
def test_every_row_reads_as_its_nodes(rows):
    tree = token_tree(rows)
    for index, row in enumerate(rows):
        own = tree.nodes[index, : len(row)]
        assert tree.ids[own].tolist() == row
        assert tree.positions[own].tolist() == list(range(len(row)))
        assert set(tree.nodes[index, len(row) :].tolist()) <= {int(own[-1])}


@given(ROWS)
def test_a_node_is_one_beginning_and_every_beginning_has_one_node(rows):
    tree = token_tree(rows)
    beginnings: dict[int, tuple[int, ...]] = {}
    for index, row in enumerate(rows):
        for place in range(len(row)):
            assert beginnings.setdefault(int(tree.nodes[index, place]), tuple(row[: place + 1])) == tuple(
                row[: place + 1]
            )
    assert sorted(beginnings) == list(range(len(tree.ids)))
    assert len(set(beginnings.values())) == len(beginnings)


@given(ROWS)
def test_first_names_a_place_where_the_node_is(rows):
    tree = token_tree(rows)
    assert tree.nodes.reshape(-1)[tree.first].tolist() == list(range(len(tree.ids)))
    lengths = [len(row) for row in rows]
    width = tree.nodes.shape[1]
    assert all(place % width < lengths[place // width] for place in tree.first.tolist())


def test_records_that_share_a_template_share_its_tokens():
    tree = token_tree([(1, 2, 3, 4), (1, 2, 3, 5), (9, 2, 3, 4)])
    assert len(tree.ids) == 4 + 1 + 4
