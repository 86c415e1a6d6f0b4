"""A run's plan is what a site joined it with, for good: a coordinator that shows another one later is refused.

Masking keys are bound to the plan that they were made under, and so is nothing that a site does beside masking: with
another weight cap or another clip for one site alone, that site's update would be most of the sum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from accord.v1 import resources_pb2, round_pb2
from benchmarks.lying_coordinator import World
from common.errors import DigestMismatch, ProtocolViolation
from participant.journal import RoundPhase
from tests.rpc.federation import Site
from tests.rpc.lying_coordinator import (
    NAMES,
    VICTIM,
    LyingFederation,
    assert_refuses,
    copy_of,
    instead_of_tasks,
    lying_federation_in,
)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[LyingFederation]:
    with lying_federation_in(tmp_path) as made:
        made.add_sites(len(NAMES))
        made.create_run(rounds=3)
        yield made


def joined_plan(site: Site) -> tuple[str, str]:
    journal = site.journal()
    try:
        entry = journal.run("run")
    finally:
        journal.close()
    assert entry is not None
    return entry.plan_digest, entry.standing.value


def test_another_plan_for_a_run_that_a_site_has_joined_is_refused_and_the_coordinator_told_why(
    federation: LyingFederation,
) -> None:
    assert federation.play(1)["state"] == "succeeded"
    liar, site, plan = federation.liar, federation.sites[VICTIM], federation.plan()
    before = joined_plan(site)
    joined = len(liar.heard("JoinRun", VICTIM))
    swapped = replace(plan, masking=replace(plan.masking, weight_cap=1)).to_bytes()
    task = copy_of(liar.assigned[VICTIM, "review_run"])
    task.review_run.plan_digest = hashlib.sha256(swapped).hexdigest()
    liar.tell("GetAssignment", instead_of_tasks(task), to=[VICTIM])
    liar.tell("GetPlan", lambda call, truth: type(truth)(plan=swapped), to=[VICTIM])
    liar.keep("DeclineRun", lambda call: round_pb2.DeclineRunResponse(), of=[VICTIM])
    liar.keep("JoinRun", lambda call: round_pb2.JoinRunResponse(), of=[VICTIM])

    assert_refuses(site, DigestMismatch, "the plan of a run never changes")

    assert joined_plan(site) == before
    assert liar.heard("DeclineRun", VICTIM)[-1].reason == DigestMismatch.reason
    assert len(liar.heard("JoinRun", VICTIM)) == joined
    liar.be_honest()
    assert federation.play(2)["state"] == "succeeded"


def test_a_plan_that_is_shown_again_is_joined_again(federation: LyingFederation) -> None:
    assert federation.play(1)["state"] == "succeeded"
    liar, site = federation.liar, federation.sites[VICTIM]
    before = joined_plan(site)
    liar.tell("GetAssignment", instead_of_tasks(copy_of(liar.assigned[VICTIM, "review_run"])), to=[VICTIM])
    site.turn()
    assert joined_plan(site) == before
    liar.be_honest()
    assert federation.play(2)["state"] == "succeeded"


@pytest.mark.parametrize("field", ["instruction_set_json", "kind"])
def test_a_round_that_a_site_has_begun_is_not_gone_on_with_from_anything_else(
    federation: LyingFederation, field: str
) -> None:
    """After a restart in the midst of training it would be trained from what is said then, and masked as the other."""
    liar, site = federation.liar, federation.sites[VICTIM]
    federation.turn_until(lambda: site.phase(1) is RoundPhase.PREPARED)
    task = copy_of(liar.assigned[VICTIM, "prepare_update"])
    if field == "kind":
        task.prepare_update.kind = resources_pb2.ROUND_KIND_EVALUATE
    else:
        changed = json.loads(task.prepare_update.instruction_set_json)
        changed["templates"][0]["prompt"] += " Name the patient."
        task.prepare_update.instruction_set_json = json.dumps(changed)
    liar.tell("GetAssignment", instead_of_tasks(task), to=[VICTIM])
    assert_refuses(site, DigestMismatch, "round 1 was begun")
    liar.be_honest()
    assert federation.play(1)["state"] == "succeeded"


def test_a_site_masks_nothing_by_another_plan_than_its_keys_were_made_under(tmp_path: Path) -> None:
    world = World(tmp_path, ("alpha", "bravo", "charlie", "delta"), seed=0)
    try:
        roster = world.set_up()
        world.prepare()
        start = world.context(roster).start
        plan = replace(world.plan, masking=replace(world.plan.masking, weight_cap=1))
        digest = hashlib.sha256(plan.to_bytes()).digest()
        world.terms = replace(world.terms, plan=plan, plan_digest=digest)
        with pytest.raises(ProtocolViolation, match="another plan than its keys"):
            world.upload(start, ["alpha"])
        assert world.heard.uploads == {}
        assert world.members["alpha"].phase() is RoundPhase.MASKING
    finally:
        world.close()
