"""Participants vanish at every point at which they can: the round goes on if the thresholds allow it, and names them.

Each case is one round of a run that the cases of a cohort's size share; between cases the run is paused. Every round
has keys of its own (one round an epoch), so a site can be lost at every step of the set-up too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from tests.rpc.federation import Federation, Site
from tests.rpc.lab import Lab, open_round


@dataclass(frozen=True)
class Vanishing:
    """Where a site is lost, and whether its update is in by then."""

    name: str
    vanish: Callable[[Site], None]
    has_uploaded: bool = False


POINTS = {
    point.name: point
    for point in (
        Vanishing("before forming", lambda site: site.line.cut()),
        Vanishing("in forming", lambda site: site.line.cut(after="assignments")),
        Vanishing("advertised", lambda site: site.line.cut(after="advertise_keys")),
        Vanishing("deposited", lambda site: site.line.cut(after="deposit_shares")),
        Vanishing("not confirmed", lambda site: site.line.cut(before="confirm_shares")),
        Vanishing("in training", lambda site: site.line.cut(before="report_prepared")),
        Vanishing("prepared", lambda site: site.line.cut(before="upload")),
        Vanishing("answer to upload lost", lambda site: site.line.cut(losing_answer_to="upload"), has_uploaded=True),
        Vanishing("uploaded", lambda site: site.line.cut(after="upload"), has_uploaded=True),
        Vanishing("before reveal", lambda site: site.line.cut(before="reveal_shares"), has_uploaded=True),
        Vanishing("revealed", lambda site: site.line.cut(after="reveal_shares"), has_uploaded=True),
    )
}


def play_with_losses(federation: Federation, point: Vanishing, lost: list[str]) -> int:
    """One round of the paused run, in which these sites vanish; returns its number."""
    number = open_round(federation)
    for name in lost:
        point.vanish(federation.sites[name])
    federation.play(number)
    for name in lost:
        federation.sites[name].line.mend()
    return number


def case(sites: int, name: str, losses: int) -> object:
    return pytest.param(sites, POINTS[name], losses, id=f"{sites} sites, {losses} lost {name}")


SUCCEEDING = [
    case(3, "prepared", 0),
    case(3, "uploaded", 1),
    case(3, "revealed", 1),
    *(case(4, name, 1) for name in POINTS),
    *(case(5, name, 1) for name in ("in forming", "in training", "prepared", "uploaded")),
    case(5, "before forming", 2),
    case(5, "advertised", 2),
    case(5, "deposited", 2),
    case(7, "before forming", 3),
    *(case(7, name, 2) for name in POINTS),
]


@pytest.mark.parametrize(("sites", "point", "losses"), SUCCEEDING)
def test_the_sum_over_the_survivors_is_published_and_the_lost_are_named(
    lab: Lab, sites: int, point: Vanishing, losses: int
) -> None:
    federation = lab.of(sites)
    names = sorted(federation.sites)
    # The smallest and the largest index of a pair have masks of different sign: both kinds are lost.
    lost = [names[0], *names[len(names) - losses + 1 :]][:losses]

    number = play_with_losses(federation, point, lost)

    found = federation.round(number)
    assert found["state"] == "succeeded", found["message"]
    survivors = names if point.has_uploaded else [name for name in names if name not in lost]
    assert found["survivors"] == [f"participants/{name}" for name in survivors]
    errors, bound = federation.errors(number, survivors)
    assert errors.max() <= bound
    assert np.count_nonzero(errors) > 0
    if not point.has_uploaded:
        said = federation.participations(number)
        for name in lost:
            state, reason = said[name]
            assert state == "dropped"
            assert reason in ("WINDOW_PASSED", "NO_MASKING_KEYS", "ABSENT")
            assert federation.metric("accord_participations_dropped_total", participant=name, reason=reason) >= 1
        dropped = [event for event in federation.audit("participant_dropped") if event["subject"] == found["name"]]
        assert len(dropped) == losses


FAILING = [
    case(3, "before forming", 1),
    case(3, "in training", 1),
    case(3, "prepared", 1),
    case(3, "before reveal", 2),
    case(4, "before forming", 2),
    case(4, "advertised", 2),
    case(4, "in training", 2),
    case(4, "prepared", 2),
    case(4, "before reveal", 2),
    case(5, "prepared", 2),
    # Two of seven may collude; of a roster of three they would be all but one.
    case(7, "before forming", 4),
    case(7, "prepared", 3),
    case(7, "before reveal", 3),
]


@pytest.mark.parametrize(("sites", "point", "losses"), FAILING)
def test_with_one_lost_too_many_the_round_fails_by_its_window_and_the_next_one_succeeds(
    lab: Lab, sites: int, point: Vanishing, losses: int
) -> None:
    federation = lab.of(sites)
    names = sorted(federation.sites)
    lost = names[:losses]
    adapters = len(federation.adapters())
    began = federation.clock.now()

    number = play_with_losses(federation, point, lost)

    found = federation.round(number)
    assert found["state"] == "failed"
    assert found["reason"] in ("QUORUM_MISSED", "TOO_FEW_MEMBERS", "KEYS_NOT_MADE")
    assert all(name in found["message"] for name in lost)
    assert (federation.clock.now() - began).total_seconds() <= 600
    assert len(federation.adapters()) == adapters
    assert [event["subject"] for event in federation.audit("round_failed")][-1] == found["name"]
    assert federation.metric("accord_rounds_ended_total", state="failed") >= 1

    after = play_with_losses(federation, POINTS["prepared"], [])

    assert federation.round(after)["state"] == "succeeded"
    errors, bound = federation.errors(after, names)
    assert errors.max() <= bound
