"""What operators do to a run while its sites work, and how a run goes on after failed rounds or ends by them."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from common.errors import NotInCohort, OutOfTurn, TransitionNotAllowed
from coordinator.config import BlobsConfig
from coordinator.rounds.model import MessageKind
from coordinator.store.opening import open_store
from tests.rpc.federation import Federation


def test_three_failed_rounds_in_a_row_fail_the_run_and_say_why(federation: Federation) -> None:
    federation.add_sites(3)
    federation.create_run(rounds=5)
    federation.turn_until(lambda: federation.round(1)["state"] == "training")
    for _ in range(3):
        federation.advance(201)

    run = federation.run()
    assert (run["state"], run["reason"]) == ("failed", "TOO_MANY_FAILED_ROUNDS")
    assert "3 rounds in a row" in run["message"]
    assert run["round"] == 3
    rounds = list(federation.admin.rounds("runs/run"))
    assert [found["reason"] for found in rounds] == ["QUORUM_MISSED"] * 3
    assert (
        "forming has 0 of at least 3 within 10 s; joined but not there: site-0, site-1, site-2" in rounds[0]["message"]
    )
    (line,) = federation.audit("run_failed")
    assert line["subject"] == "runs/run"

    # The sites learn of it, keep the accepted adapter, and forget their keys.
    federation.turn()
    journal = federation.sites["site-0"].journal()
    entry = journal.run("run")
    assert entry is not None
    assert (entry.standing.value, entry.reason) == ("over", "failed")
    assert journal.epoch("run", 1) is None
    assert all(round_.state == b"" for round_ in journal.rounds("run"))
    journal.close()


def test_a_success_in_between_begins_the_count_of_failed_rounds_anew(federation: Federation) -> None:
    names = federation.add_sites(3)
    federation.create_run(rounds=2)
    federation.turn_until(lambda: federation.round(1)["state"] == "training")
    federation.advance(201)
    federation.advance(11)
    assert federation.run()["round"] == 3
    federation.play(3)
    assert federation.round(3)["state"] == "succeeded"
    federation.advance(11)
    federation.advance(11)

    assert federation.state() == "running"
    federation.turn_until(lambda: federation.state() == "succeeded")
    errors, bound = federation.errors(6, names)
    assert errors.max() <= bound


def test_a_site_that_was_out_gets_keys_and_is_in_the_next_round(federation: Federation) -> None:
    names = federation.add_sites(4)
    federation.create_run(rounds=2, is_started=False)
    federation.join_all()
    federation.start_run()
    away = federation.sites["site-3"]
    away.line.cut()
    federation.play(1)
    assert len(federation.round(1)["survivors"]) == 3
    assert federation.participations(1)["site-3"] == ("dropped", "ABSENT")
    away.line.mend()

    federation.play(2)

    found = federation.round(2)
    assert len(found["survivors"]) == 4
    assert found["epoch"] > federation.round(1)["epoch"]
    errors, bound = federation.errors(2, names)
    assert errors.max() <= bound


def test_a_site_that_comes_while_the_others_train_has_keys_in_the_round_after(federation: Federation) -> None:
    federation.add_sites(4)
    federation.create_run(rounds=2, is_started=False)
    federation.join_all()
    federation.start_run()
    late, slow = federation.sites["site-3"], federation.sites["site-0"]
    late.line.cut()
    slow.line.refuse("report_prepared")
    federation.turn_until(lambda: len(federation.round(1)["participations"]) == 3)
    federation.advance(11)
    federation.turn_until(lambda: federation.round(1)["epoch_state"] == "ready")
    late.line.mend()
    federation.turn_until(lambda: federation.participations(1).get("site-3") == ("prepared", ""))
    slow.line.mend()

    federation.play(1)

    assert federation.round(1)["state"] == "succeeded"
    assert federation.participations(1)["site-3"] == ("dropped", "NO_MASKING_KEYS")
    federation.play(2)
    assert len(federation.round(2)["survivors"]) == 4


def test_keys_are_made_again_when_too_few_of_those_who_are_prepared_have_them(federation: Federation) -> None:
    federation.add_sites(4)
    federation.create_run(rounds=1, is_started=False)
    federation.join_all()
    federation.start_run()
    late, lost = federation.sites["site-3"], federation.sites["site-0"]
    late.line.cut(after="advertise_keys")
    for name in ("site-1", "site-2"):
        federation.sites[name].line.refuse("report_prepared")
    lost.line.refuse("report_prepared")
    federation.turn_until(lambda: late.line.is_cut)
    for _ in range(4):
        federation.turn()
        federation.advance(11)
    federation.turn_until(lambda: federation.round(1)["epoch_state"] == "ready")
    began = federation.clock.now()

    lost.client.report_failure("run", 1, reason="TRAINING_FAILED", message="out of memory")
    for site in federation.sites.values():
        site.line.mend()
    found = federation.play(1, sites=["site-1", "site-2", "site-3"])

    # Three are prepared, two of them with keys: the window of hours would end with the same.
    assert found["state"] == "succeeded", found["message"]
    assert found["survivors"] == ["participants/site-1", "participants/site-2", "participants/site-3"]
    assert (federation.clock.now() - began).total_seconds() < 60


def test_pause_lets_the_open_round_end_and_resume_opens_the_next(federation: Federation) -> None:
    federation.add_sites(3)
    federation.create_run(rounds=2)
    federation.turn_until(lambda: federation.round(1)["state"] == "training")
    federation.admin.pause_run("runs/run")
    federation.play(1)

    assert federation.round(1)["state"] == "succeeded"
    federation.advance(3600)
    federation.turn()
    assert (federation.state(), federation.run()["round"]) == ("paused", 1)
    federation.admin.resume_run("runs/run")
    federation.turn_until(lambda: federation.state() == "succeeded")


def test_pause_during_the_evaluation_round_lets_the_run_end(federation: Federation) -> None:
    federation.add_sites(3)
    federation.create_run(rounds=1)
    federation.play(1)
    federation.turn_until(lambda: federation.round(2)["state"] == "training")
    federation.admin.pause_run("runs/run")

    found = federation.play(2)

    assert (found["kind"], found["state"]) == ("evaluate", "succeeded"), found["message"]
    assert federation.state() == "succeeded"
    assert federation.run()["accepted_adapter_digest"] == federation.round(1)["adapter_digest"]


@pytest.mark.parametrize("state", ["forming", "training", "collecting", "unmasking"])
def test_cancel_ends_the_open_round_and_the_sites_forget_it(federation: Federation, state: str) -> None:
    federation.add_sites(3)
    held = federation.sites["site-0"]
    if state == "collecting":
        held.line.cut(before="upload")
    if state == "unmasking":
        for site in federation.sites.values():
            site.line.cut(before="evidence")
    federation.create_run(is_started=False)
    federation.join_all()
    federation.start_run()
    federation.turn_until(lambda: federation.round(1)["state"] == state)
    initial = federation.run()["accepted_adapter_digest"]

    federation.admin.cancel_run("runs/run", reason="wrong data")
    for site in federation.sites.values():
        site.line.mend()
    federation.turn()
    federation.advance(3600)

    assert (federation.state(), federation.run()["accepted_adapter_digest"]) == ("cancelled", initial)
    assert (federation.round(1)["state"], federation.round(1)["message"]) == ("cancelled", "wrong data")
    assert "wrong data" in federation.audit("run_cancelled")[0]["details_json"]
    journal = held.journal()
    assert all((entry.phase.value, entry.state) == ("over", b"") for entry in journal.rounds("run"))
    journal.close()
    assert not list((held.state / "spool").glob("*"))
    with pytest.raises(OutOfTurn, match="cancelled"):
        held.client.report_prepared("run", 1, adapter=initial)


def test_a_run_is_rolled_back_to_an_earlier_adapter_and_trains_on_from_it(federation: Federation) -> None:
    names = federation.add_sites(3)
    federation.create_run(rounds=4)
    federation.play(1)
    federation.play(2)
    federation.turn_until(lambda: federation.round(3)["state"] == "training")
    first = federation.round(1)["adapter_digest"]
    with pytest.raises(TransitionNotAllowed):
        federation.admin.roll_back_run("runs/run", adapter_digest=first)
    federation.admin.pause_run("runs/run")
    with pytest.raises(OutOfTurn, match="wait for its end"):
        federation.admin.roll_back_run("runs/run", adapter_digest=first)
    federation.play(3)

    federation.admin.roll_back_run("runs/run", adapter_digest=first)
    federation.admin.resume_run("runs/run")
    federation.play(4)

    found = federation.round(4)
    assert (found["state"], found["base_adapter_digest"]) == ("succeeded", first)
    errors, bound = federation.errors(4, names)
    assert errors.max() <= bound
    states = {row["round"]: row["state"] for row in federation.adapters()}
    assert (states[1], states[2], states[3]) == ("accepted", "accepted", "set_aside")


def test_a_revoked_site_is_not_waited_for(federation: Federation) -> None:
    federation.add_sites(4)
    federation.create_run()
    federation.sites["site-3"].line.cut(before="report_prepared")
    federation.turn_until(lambda: federation.sites["site-3"].line.is_cut)
    began = federation.clock.now()

    federation.admin.revoke_participant("participants/site-3", reason="left the federation")
    federation.play(1, sites=["site-0", "site-1", "site-2"])

    assert federation.clock.now() == began
    assert federation.round(1)["state"] == "succeeded"
    assert federation.participations(1)["site-3"] == ("dropped", "CERTIFICATE_REVOKED")


def test_a_site_that_leaves_the_run_is_not_waited_for_and_may_come_back(federation: Federation) -> None:
    federation.add_sites(4)
    federation.create_run()
    leaver = federation.sites["site-3"]
    leaver.line.cut(before="report_prepared")
    federation.turn_until(lambda: leaver.line.is_cut)
    began = federation.clock.now()

    leaver.client.decline_run("run", reason="POLICY_REFUSAL", message="not today")
    federation.play(1, sites=["site-0", "site-1", "site-2"])

    assert federation.clock.now() == began
    assert federation.participations(1)["site-3"] == ("dropped", "LEFT_RUN")
    leaver.line.mend()
    leaver.turn()
    federation.play(2)
    assert len(federation.round(2)["survivors"]) == 4


def rounds_with_uploads(federation: Federation) -> set[int]:
    return {int(key.split("/")[2]) for key in federation.blobs("uploads")}


def test_a_coordinator_that_is_to_keep_fewer_rounds_deletes_all_that_it_kept_before(federation: Federation) -> None:
    federation.add_sites(3)
    federation.create_run(rounds=4)
    federation.turn_until(lambda: federation.run()["round"] == 4, turns=200)
    assert rounds_with_uploads(federation) >= {2, 3}
    federation.stop()
    federation.config = federation.config.model_copy(update={"blobs": BlobsConfig(kept_rounds=2)})
    federation.start()
    federation.turn_until(lambda: federation.state() == "succeeded", turns=200)
    assert rounds_with_uploads(federation) == {4, 5}


def test_uploads_of_old_rounds_are_deleted_and_nothing_is_left_in_scratch(federation: Federation) -> None:
    federation.add_sites(3)
    federation.create_run(rounds=5)
    federation.turn_until(lambda: federation.state() == "succeeded", turns=200)
    federation.turn()

    assert rounds_with_uploads(federation) == {4, 5, 6}
    assert not [path for path in federation.config.scratch_folder.rglob("*") if path.is_file()]
    site = federation.sites["site-0"]
    assert not list((site.state / "spool").glob("*"))
    assert not [path for path in (site.state / "work").rglob("*") if path.is_file()]


def test_protocol_messages_of_old_rounds_and_key_epochs_are_deleted(federation: Federation) -> None:
    federation.add_sites(3)
    federation.create_run(rounds=5, rounds_per_epoch=2)
    federation.turn_until(lambda: federation.state() == "succeeded", turns=200)

    assert [federation.round(number)["epoch"] for number in range(1, 7)] == [1, 1, 2, 2, 3, 3]
    with closing(open_store(federation.config.database_url)) as store, store.read() as reader:
        said = {
            kind: {number for number in range(1, 7) if reader.message_count("run", kind, number)}
            for kind in MessageKind
        }
        dealt = {number for number in range(1, 7) if any(reader.share_envelopes("run", number, "site-0"))}
    assert dealt == {2, 3}
    of_rounds = (MessageKind.COMMIT, MessageKind.REVEAL)
    proofs = (MessageKind.SECOND_RECEIPT, MessageKind.SECOND_COMMIT, MessageKind.FALSE_REVEAL)
    assert said[MessageKind.REVEAL] == {4, 5, 6}
    assert all(not said[kind] for kind in proofs)
    assert all(said[kind] == {2, 3} for kind in said.keys() - {*of_rounds, *proofs})


def test_the_published_adapter_is_a_peft_folder_at_every_site(federation: Federation) -> None:
    federation.add_sites(3)
    federation.create_run(rounds=1)
    federation.turn_until(lambda: federation.state() == "succeeded")
    federation.turn()

    digest = federation.run()["accepted_adapter_digest"]
    for site in federation.sites.values():
        folder = site.state / "adapters" / digest
        assert {path.name for path in folder.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
        header = len(federation.plan().layout().header())
        flat = np.frombuffer((folder / "adapter_model.safetensors").read_bytes()[header:], dtype=np.float32)
        assert np.array_equal(flat, federation.adapter(digest))


def test_nobody_outside_the_run_is_told_or_answered(federation: Federation) -> None:
    federation.add_sites(3)
    federation.create_run()
    federation.turn_until(lambda: federation.round(1)["state"] == "training")
    stranger = federation.add_site("stranger", federation.sites["site-0"].trainer)

    assert stranger.client.assignments("", wait_seconds=0).tasks == ()
    with pytest.raises(NotInCohort, match="does not name stranger"):
        stranger.client.plan("run")
    with pytest.raises(NotInCohort, match="does not name stranger"):
        stranger.client.join_run("run", plan_digest="", base_model_digest="")
    with pytest.raises(NotInCohort, match="has not joined"):
        stranger.client.report_prepared("run", 1, adapter="")
    with pytest.raises(NotInCohort, match="has not joined"):
        stranger.client.advertise_keys("run", 1, b"")
