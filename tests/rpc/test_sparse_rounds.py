"""Sixty-four members in a sparse graph, through the real coordinator's store and calls.

A real sparse graph begins at 129 members; here a looser rule makes one of 64, of which neither side knows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from common.secagg import EpochKeys, graph
from common.secagg.roster import graph_of
from coordinator.driver import rounds
from participant.journal import RoundPhase
from tests.rpc.federation import Federation
from tests.rpc.lab import lab_in, open_round

SITES = 64
RULE = graph.GraphRule(complete_up_to=16, dropped_percent=10, safety_bits=6, abort_bits=1)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """After one round over everybody, which has made the keys of the others."""
    with pytest.MonkeyPatch.context() as patch, lab_in(tmp_path_factory, rounds_per_epoch=8) as lab:
        patch.setattr(graph, "RULE", RULE)
        made = lab.of(SITES)
        found = made.play(open_round(made))
        assert found["state"] == "succeeded", found["message"]
        yield made


def drawn_graph(federation: Federation) -> tuple[graph.Graph, tuple[str, ...]]:
    """The graph as a site has it, and the names of its indices."""
    journal = federation.sites["site-0"].journal()
    try:
        entry = journal.epoch("run", 1)
    finally:
        journal.close()
    assert entry is not None
    keys = EpochKeys.from_bytes(entry.state)
    return graph_of(keys.epoch, keys.members), keys.members.org_ids


def play_without(federation: Federation, *places: int, before: str = "upload") -> tuple[int, list[str]]:
    """A round in which those who stand at these places of the ring are lost before a call; the others' names."""
    drawn, names = drawn_graph(federation)
    lost = {names[drawn.ring[place]] for place in places}
    number = open_round(federation)
    for name in lost:
        federation.sites[name].line.cut(before=before)
    federation.play(number)
    for name in lost:
        federation.sites[name].line.mend()
    return number, sorted(set(names) - lost)


@pytest.mark.slow
def test_a_sparse_round_with_a_tenth_lost_publishes_the_sum_over_the_survivors(federation: Federation) -> None:
    drawn, _ = drawn_graph(federation)
    assert drawn.sparse == graph.Sparse(degree=28, threshold=23, cover=10)
    assert all(len(drawn.neighbours(index)) == 28 for index in range(SITES))

    number, survivors = play_without(federation, 0, 11, 22, 33, 44, 55)

    found = federation.round(number)
    assert found["state"] == "succeeded", found["message"]
    assert found["survivors"] == [f"participants/{name}" for name in survivors]
    errors, bound = federation.errors(number, survivors)
    assert errors.max() <= bound
    assert np.count_nonzero(errors) > 0


@pytest.mark.slow
def test_a_round_whose_dropouts_could_cut_members_off_fails_and_nobody_reveals(federation: Federation) -> None:
    """Five places in a row: 59 survivors are far above the floor of 43, yet 14 places in a row hold only nine."""
    number, survivors = play_without(federation, 20, 21, 22, 23, 24)

    found = federation.round(number)
    assert (found["state"], found["reason"]) == ("failed", "TOO_FEW_MEMBERS")
    assert "only 9 members are left in 14 places in a row" in found["message"]
    assert {federation.sites[name].phase(number) for name in survivors}.isdisjoint(
        {RoundPhase.BOUND, RoundPhase.REVEALED}
    )


@pytest.mark.slow
def test_without_another_key_set_up_a_round_that_lost_neighbours_in_training_fails_with_the_reason(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "MOST_TRIES", 0)
    number, _ = play_without(federation, 20, 21, 22, 23, 24, before="report_prepared")

    found = federation.round(number)
    assert (found["state"], found["reason"]) == ("failed", "TOO_FEW_MEMBERS")
    assert "only 9 members are left in 14 places in a row" in found["message"]
    assert found["message"].endswith("0 key set-ups were made for this round")


@pytest.mark.slow
def test_keys_are_made_again_for_those_who_are_left_where_the_lost_ones_stood_together(federation: Federation) -> None:
    """The last in this file: the epoch that it makes is the federation's from then on."""
    number, left = play_without(federation, 20, 21, 22, 23, 24, before="report_prepared")

    found = federation.round(number)
    assert found["state"] == "succeeded", found["message"]
    assert found["epoch"] == 2
    assert found["survivors"] == [f"participants/{name}" for name in left]
    errors, bound = federation.errors(number, left)
    assert errors.max() <= bound
