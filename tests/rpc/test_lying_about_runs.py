"""Coordinators that lie about what a run is, against real sites: its plan, its name, its models and its deadlines.

Numbers are those of the table in common/secagg/README.md. What a site refuses is in its journal, its metrics and what
it tells the coordinator.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from accord.v1 import resources_pb2, round_pb2
from accord.v1 import secure_aggregation_pb2 as pb
from common.errors import DigestMismatch, InvalidArgument, ProtocolViolation
from common.secagg.messages import Advertisement, Signed
from common.secagg.roster import _encode
from participant.journal import RoundPhase
from tests.rpc.federation import Site
from tests.rpc.lab import Lab, open_round
from tests.rpc.lying_coordinator import (
    NAMES,
    VICTIM,
    Liar,
    LyingFederation,
    assert_refuses,
    honest_afterwards,
    honest_end,
    honest_round,
    instead_of_tasks,
    lying_federation_in,
    lying_lab,
    with_task,
)

lab = lying_lab(rounds_per_epoch=64)


@pytest.fixture
def federation(lab: Lab) -> Iterator[LyingFederation]:
    """Four sites whose keys are made already."""
    yield from honest_afterwards(lab.of(4))


def standing(site: Site, run: str = "run") -> tuple[str, str] | None:
    """A site's standing in a run and the digest of the plan that it goes by."""
    journal = site.journal()
    try:
        entry = journal.run(run)
    finally:
        journal.close()
    return None if entry is None else (entry.standing.value, entry.plan_digest)


def refusals(site: Site) -> float:
    samples = (sample for metric in site.daemon._metrics.refusals.collect() for sample in metric.samples)
    return sum(sample.value for sample in samples if sample.name.endswith("_total"))


def offer(liar: Liar, plan: bytes, *, run: str = "run") -> str:
    """Show the victim this plan, consistently, and keep what it answers; the plan's digest."""
    digest = hashlib.sha256(plan).hexdigest()
    review = round_pb2.Assignment(review_run=round_pb2.ReviewRun(run=run, plan_digest=digest))
    liar.tell("GetAssignment", instead_of_tasks(review), to=[VICTIM])
    liar.keep("GetPlan", lambda call: round_pb2.GetPlanResponse(plan=plan, digest=digest), of=[VICTIM])
    liar.keep("JoinRun", lambda call: round_pb2.JoinRunResponse(), of=[VICTIM])
    liar.keep("DeclineRun", lambda call: round_pb2.DeclineRunResponse(), of=[VICTIM])
    return digest


def test_11_a_site_that_was_given_another_plan_declines_it_or_has_keys_with_nobody(tmp_path: Path) -> None:
    with lying_federation_in(tmp_path) as federation:
        federation.add_sites(4)
        federation.create_run(is_started=False)
        liar, site = federation.liar, federation.sites[VICTIM]
        plan = site.client.plan("run")
        # What a third of three of these four would be: the site counts its charter's members, whoever is in a roster.
        weaker = offer(liar, plan.replace(b'"colluders":1', b'"colluders":0'))
        site.turn()
        assert standing(site) == ("declined", weaker)
        assert refusals(site) == 1
        (declined,) = liar.heard("DeclineRun", VICTIM)
        assert declined.reason == "POLICY_REFUSAL"
        assert "colluders is 0, the charter assumes 1" in declined.message

        other = offer(liar, plan.replace(b'"element_clip":1.0', b'"element_clip":2.0'))
        site.turn()
        assert standing(site) == ("joined", other)
        liar.be_honest()
        site.client.join_run(
            "run", plan_digest=hashlib.sha256(plan).hexdigest(), base_model_digest=federation.model.digest
        )
        federation.join_all()
        liar.keep("AdvertiseKeys", lambda call: pb.AdvertiseKeysResponse(), of=[VICTIM])
        federation.start_run()
        for name in NAMES[1:]:
            federation.sites[name].line.cut(before="roster")
        federation.turn_until(lambda: len(liar.heard("AdvertiseKeys")) >= 4)
        federation.advance(10.5)
        federation.turn_until(lambda: all(federation.sites[name].line.is_cut for name in NAMES[1:]))

        own = liar.heard("AdvertiseKeys", VICTIM)[0].advertisement
        theirs = [liar.heard("AdvertiseKeys", name)[0].advertisement for name in NAMES[1:]]
        epoch_hash = Advertisement.decode(Signed.decode(theirs[0]).body).epoch_hash
        roster = [pb.GetRosterResponse(chunk=_encode(epoch_hash, [own, *theirs]))]
        deposit = round_pb2.Assignment(deposit_shares=round_pb2.DepositShares(run="run", epoch=1))
        liar.keep("GetRoster", lambda call: roster, of=NAMES)
        liar.tell("GetAssignment", instead_of_tasks(deposit), to=NAMES)
        for name in NAMES[1:]:
            federation.sites[name].line.mend()
            assert_refuses(federation.sites[name], ProtocolViolation, "site-0 advertises for another plan or key epoch")
        assert_refuses(site, ProtocolViolation, "the key roster is for another plan or key epoch")
        assert liar.heard("DepositShares") == []

        liar.be_honest()
        found = federation.play(1)
        assert found["state"] == "succeeded"
        assert found["survivors"] == [f"participants/{name}" for name in NAMES[1:]]


def test_a_run_whose_name_is_a_path_is_not_joined_and_nothing_outside_is_deleted(
    federation: LyingFederation,
) -> None:
    """Shown consistently, down to a signed final adapter, "the run is over" would delete the folder of that name."""
    liar, site = federation.liar, federation.sites[VICTIM]
    kept = site.state / "kept"
    kept.mkdir()
    (kept / "file").write_text("of this site")
    for run in ("../kept", str(kept)):
        offer(liar, site.client.plan("run"), run=run)
        with pytest.raises(InvalidArgument, match="is not an id"):
            site.turn()
        over = round_pb2.FinishRun(run=run, state=resources_pb2.RUN_STATE_CANCELLED, adapter_digest="aa" * 32)
        liar.tell("GetAssignment", instead_of_tasks(round_pb2.Assignment(finish_run=over)), to=[VICTIM])
        with pytest.raises(InvalidArgument, match="is not an id"):
            site.turn()
        assert standing(site, run) is None
    assert (kept / "file").read_text() == "of this site"
    liar.be_honest()
    assert honest_round(federation) == "succeeded"


def test_a_plan_of_another_run_than_is_named_is_declined(federation: LyingFederation) -> None:
    liar, site = federation.liar, federation.sites[VICTIM]
    digest = offer(liar, site.client.plan("run"), run="other")
    site.turn()
    assert standing(site, "other") == ("declined", digest)
    assert "is of run 'run'" in liar.heard("DeclineRun", VICTIM)[-1].message
    liar.be_honest()
    assert honest_round(federation) == "succeeded"


def test_13_no_fourth_sum_on_one_model_however_often_the_run_goes_back_to_it(lab: Lab) -> None:
    federation = lab.of(3)
    assert isinstance(federation, LyingFederation)
    assert honest_round(federation) == "succeeded"
    model = federation.run()["accepted_adapter_digest"]
    states = []
    for _ in range(4):
        states.append(honest_round(federation))
        federation.admin.roll_back_run("runs/run", adapter_digest=model)

    assert states == ["succeeded", "succeeded", "succeeded", "failed"]
    number = int(federation.run()["round"])
    # The round is over once too few are left for a sum, whether or not the last one has been asked by then.
    refusing = [name for name, said in federation.participations(number).items() if said != ("prepared", "")]
    assert {federation.participations(number)[name] for name in refusing} == {("failed", "PROTOCOL_VIOLATION")}
    for name in refusing:
        heard = federation.liar.heard("ReportFailure", name, round=number)[-1]
        assert "a second one could single a member out" in heard.message
    assert all(federation.liar.uploads(name, number) == [] for name in federation.sites)


@pytest.mark.parametrize("restored", ["the journal", "the whole folder"])
def test_28_a_journal_from_a_backup_has_lost_its_keys_and_masks_no_second_update(tmp_path: Path, restored: str) -> None:
    with lying_federation_in(tmp_path) as federation:
        federation.add_sites(4)
        federation.create_run(rounds=3, rounds_per_epoch=2)
        liar, site = federation.liar, federation.sites[VICTIM]
        site.line.cut(after="report_prepared")
        federation.turn_until(lambda: site.line.is_cut)
        site.close()
        backup = tmp_path / "backup"
        shutil.copytree(site.state, backup)
        site = federation.open_site(VICTIM, site.trainer)
        federation.turn_until(lambda: len(liar.uploads(VICTIM, 1)) == 1)
        upload = liar.assigned[VICTIM, "upload_update"]
        site.close()
        for path in site.state.glob("journal.sqlite*"):
            path.unlink()
        if restored == "the whole folder":
            shutil.rmtree(site.state)
            shutil.copytree(backup, site.state)
        else:
            shutil.copy(backup / "journal.sqlite", site.state)

        with capture_logs() as lines:
            site = federation.open_site(VICTIM, site.trainer)
        assert [line["log_level"] for line in lines if line["event"] == "journal_went_back"] == ["error"]
        liar.tell("GetAssignment", instead_of_tasks(upload), to=[VICTIM])
        liar.keep("GetUpload", lambda call: pb.GetUploadResponse(), of=[VICTIM])
        site.turn()
        assert len(liar.uploads(VICTIM, 1)) == 1
        assert site.phase(1) is RoundPhase.FAILED
        liar.be_honest()

        assert federation.play(1)["state"] == "succeeded"
        assert federation.play(2)["state"] == "succeeded"
        assert federation.participations(2)[VICTIM] == ("failed", "UPDATE_LOST")
        assert federation.play(3)["state"] == "succeeded"
        assert f"participants/{VICTIM}" in federation.round(3)["survivors"]


def test_30_a_runs_name_or_id_is_not_taken_for_another_run(federation: LyingFederation) -> None:
    liar, site = federation.liar, federation.sites[VICTIM]
    before, refused = standing(site), refusals(site)
    plan = site.client.plan("run")
    assert before == ("joined", hashlib.sha256(plan).hexdigest())

    offer(liar, plan.replace(b'"element_clip":1.0', b'"element_clip":2.0'))
    assert_refuses(site, DigestMismatch, "the plan of a run never changes")
    twin = plan.replace(b'"run":"run"', b'"run":"twin"')
    assert twin != plan
    offer(liar, twin, run="twin")
    site.turn()

    first, second = liar.heard("DeclineRun", VICTIM)[-2:]
    assert (first.reason, second.reason) == ("DIGEST_MISMATCH", "PROTOCOL_VIOLATION")
    assert first.message.startswith("this site has joined run run with plan")
    assert "run twin has the id of run run" in second.message
    assert refusals(site) == refused + 1
    assert standing(site) == before
    assert standing(site, "twin") == ("declined", hashlib.sha256(twin).hexdigest())
    liar.be_honest()
    assert honest_round(federation) == "succeeded"


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        (timedelta(hours=-1), "it has passed; compare the clocks"),
        (timedelta(days=365), "the plan's training window is 200 s; compare the clocks"),
    ],
    ids=["passed", "in a year"],
)
def test_32_a_deadline_that_has_passed_or_is_absurdly_far_is_refused(
    federation: LyingFederation, offset: timedelta, words: str
) -> None:
    liar, site = federation.liar, federation.sites[VICTIM]
    refused = refusals(site)
    wrong = with_task(lambda task: task.deadline_time.FromDatetime(federation.clock.now() + offset), "prepare_update")
    liar.tell("GetAssignment", wrong, to=[VICTIM])
    number = open_round(federation)
    federation.turn_until(lambda: federation.participations(number).get(VICTIM, ("", ""))[0] == "failed")

    assert refusals(site) == refused + 1
    assert federation.participations(number)[VICTIM] == ("failed", "CLOCK_WRONG")
    assert words in liar.heard("ReportFailure", VICTIM, round=number)[-1].message
    assert number not in site.trainer.prepared
    assert site.phase(number) is RoundPhase.FAILED
    assert honest_end(federation) == "succeeded"
    assert [event["subject"] for event in federation.audit("participant_failed")][-1] == federation.round(number)[
        "name"
    ]
