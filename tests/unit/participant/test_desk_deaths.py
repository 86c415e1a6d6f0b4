"""The masking desk against a coordinator in memory: what leaves is in the journal first, wherever the process dies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.assignments import CloseRound
from common.errors import SecondSurvivorSet, UpdateLost
from participant.client import Evidence
from tests.unit.participant.desks import EPOCH, PLAN, ROUND, RUN, SITES, Fate, Hub, delta_of, play

FAST, SLOW = range(SITES), (0, 1, 2)


def assert_one_story(hub: Hub) -> None:
    """Every message that a site has sent more than once was the same, and the sum is that of the uploads."""
    for (site, call), messages in hub.sent.items():
        assert len(set(messages)) == 1, f"site {site} sent {len(set(messages))} different messages by {call}"
    survivors = list(hub.uploading)
    weights = {site: 20 * (site + 1) / PLAN.masking.weight_cap for site in survivors}
    exact = sum(weight * delta_of(site) for site, weight in weights.items()) / sum(weights.values())
    limit = hub.epoch.plan.lane_limit
    bound = len(survivors) * PLAN.masking.element_clip / (limit * sum(weights.values()))
    assert np.max(np.abs(hub.mean() - exact)) <= bound + 1e-6


@pytest.fixture(scope="module", params=[FAST, SLOW], ids=["fast", "slow"])
def moments(request, tmp_path_factory) -> tuple[tuple[int, ...], list[str]]:
    """Every moment at which a process can die, by name, from a round in which none does."""
    fate = Fate()
    hub, _ = play(tmp_path_factory.mktemp("undisturbed"), fate, uploading=request.param)
    assert_one_story(hub)
    return tuple(request.param), fate.moments


def test_every_message_is_journalled_before_it_is_sent(moments):
    """The desks' client refuses any other; here is what it saw, in order."""
    uploading, names = moments
    sent = [name.removeprefix("before ") for name in names if name.startswith("before ") and "journal" not in name]
    commits = ["commit_survivors"] if tuple(uploading) == SLOW else []
    # The first time, its commit is not enough; it is asked again once the others have committed.
    assert sent == [
        "advertise_keys",
        "deposit_shares",
        "confirm_shares",
        "receipt",
        *commits * 2,
        "reveal_shares",
    ]


def test_a_death_at_any_moment_changes_nothing_of_what_a_site_says(moments, tmp_path):
    uploading, names = moments
    for moment, name in enumerate(names):
        # Before a write or a call all is as after the one before it; but the spool is written between two.
        if name.startswith("before ") and name != "before journalling round masked":
            continue
        folder = tmp_path / str(moment)
        folder.mkdir()
        hub, desks = play(folder, Fate(moment), uploading=uploading)
        assert desks[0].deaths == 1, name
        assert_one_story(hub)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=2, max_size=6, unique=True), st.booleans())
def test_many_deaths_change_nothing_either(deaths, is_fast):
    with TemporaryDirectory() as folder:
        hub, _ = play(Path(folder), Fate(*deaths), uploading=FAST if is_fast else SLOW)
        assert_one_story(hub)


def test_a_lost_spool_puts_the_site_out_and_masks_no_second_vector(tmp_path):
    fate = Fate()
    play(tmp_path, fate)
    moment = fate.moments.index("after journalling round masked")
    again = tmp_path / "again"
    again.mkdir()

    class Losing(Fate):
        def moment(self, name: str) -> None:
            if len(self.moments) == moment:
                (again / "org-00" / "spool" / f"{RUN}-{ROUND}.masked").unlink()
            super().moment(name)

    with pytest.raises(UpdateLost):
        play(again, Losing(moment))


@pytest.mark.parametrize("path", ["slow", "fast"])
def test_a_site_that_has_revealed_says_the_same_again_whatever_set_is_named_now(tmp_path, path):
    hub, desks = play(tmp_path, Fate(), uploading=SLOW)
    receipts = tuple(hub.latest("receipt").values())
    names = tuple(hub.roster.members.names((0, 1, 3))) if path == "slow" else hub.roster.members.org_ids
    hub.evidence = lambda: Evidence(names, path == "fast", receipts, ())  # type: ignore[method-assign]
    desk = desks[0]
    desk.journal.close()
    desk.open()
    task = CloseRound(RUN, ROUND, EPOCH, hub.context.start.encode())
    before = dict(hub.latest("reveal_shares"))
    assert desk.do(lambda one: one.close(task))
    assert hub.latest("reveal_shares") == before


@pytest.mark.parametrize("is_fast", [False, True])
def test_a_bound_site_answers_no_other_set(tmp_path, is_fast):
    fate = Fate()
    play(tmp_path, fate, uploading=SLOW)
    again = tmp_path / "again"
    again.mkdir()
    moment = fate.moments.index("after commit_survivors")

    hub = Hub(SLOW)

    class Turning(Fate):
        """Once the site is bound and dead, the coordinator names another set."""

        def moment(self, name: str) -> None:
            if len(self.moments) == moment:
                honest, names = hub.evidence(), hub.roster.members.names((0, 1, 3))
                lie = hub.roster.members.org_ids if is_fast else names
                hub.evidence = lambda: replace(honest, survivors=lie, is_fast=is_fast)  # type: ignore[method-assign]
            super().moment(name)

    with pytest.raises(SecondSurvivorSet):
        play(again, Turning(moment), uploading=SLOW, hub=hub)
    assert "reveal_shares" not in {call for site, call in hub.sent if site == 0}
