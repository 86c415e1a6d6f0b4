"""Killed and started again: a site at every phase of its journal, the coordinator in every state of a round.

A kill is a line that is cut at a call, and a daemon that is built anew over the same folder. Nothing acknowledged is
sent again, what is sent again is the same bytes, and the run ends as it would have undisturbed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from common.errors import TrainingFailed, Unavailable, UploadIncomplete
from common.secagg import StreamSum, Words
from coordinator import aggregation
from coordinator.aggregation import OpenSum
from coordinator.checkpoints import RECORD_FILE
from coordinator.driver import aggregating
from coordinator.store.opening import open_blobs
from participant.client import CoordinatorClient, UploadState
from participant.journal import RoundPhase
from participant.trainer import Preparation
from tests.rpc.federation import POLICY, WINDOW, Federation, MadeUpTrainer, base_model, delta_of, federation_in
from tests.rpc.lab import Lab, open_round
from tests.rpc.lying import hold_upload, part

NAME = "site-1"
# Five chunks for three sites: four of lanes, and the tail.
LARGE = base_model(size=120_000)


@pytest.fixture
def federation(lab: Lab) -> Iterator[Federation]:
    federation = lab.of(3)
    for site in federation.sites.values():
        site.line.forget()
    yield federation
    for site in federation.sites.values():
        site.line.mend()


def cut(**where: str) -> dict[str, str]:
    return where


# Where the site is killed: before a call, or after the coordinator has had it and before the site knows.
KILLS = {
    "before advertising": cut(before="advertise_keys"),
    "advertised, answer lost": cut(losing_answer_to="advertise_keys"),
    "roster not there": cut(before="roster"),
    "before depositing": cut(before="deposit_shares"),
    "deposited, answer lost": cut(losing_answer_to="deposit_shares"),
    "shares not there": cut(before="shares"),
    "before confirming": cut(before="confirm_shares"),
    "confirmed, answer lost": cut(losing_answer_to="confirm_shares"),
    "adapter not there": cut(before="adapter"),
    "before it says that it is prepared": cut(before="report_prepared"),
    "said that it is prepared, answer lost": cut(losing_answer_to="report_prepared"),
    "masked, before the first byte": cut(before="upload_state"),
    "before the upload": cut(before="upload"),
    "uploaded, answer lost": cut(losing_answer_to="upload"),
    "before the evidence": cut(before="evidence"),
    "before revealing": cut(before="reveal_shares"),
    "revealed, answer lost": cut(losing_answer_to="reveal_shares"),
}


@pytest.mark.parametrize("kill", KILLS)
def test_a_site_that_is_killed_goes_on_where_it_was_and_is_in_the_sum(federation: Federation, kill: str) -> None:
    number = open_round(federation)
    site = federation.sites[NAME]
    site.line.cut(**KILLS[kill])
    # One after the other, this one first: the quorum of reveals may be there before it otherwise.
    order = [NAME, *(name for name in federation.sites if name != NAME)]
    federation.turn_until(lambda: site.line.is_cut, sites=order, one_by_one=True)

    again = federation.reopen_site(NAME)
    found = federation.play(number)

    assert found["state"] == "succeeded", found["message"]
    assert len(found["survivors"]) == 3
    errors, bound = federation.errors(number, sorted(federation.sites))
    assert errors.max() <= bound
    # Nothing that was acknowledged is sent again, nothing that was prepared is prepared again.
    assert again.line.calls.count("upload") == (0 if "upload" in site.line.calls else 1)
    assert again.trainer.prepared.count(number) == 1
    # What is sent again is what was sent before, byte for byte.
    for name in ("advertise_keys", "deposit_shares", "confirm_shares", "reveal_shares"):
        sent = {args for line in (site.line, again.line) for args, _ in line.attempts.get(name, [])}
        # The quorum of reveals may have been there without this site's.
        assert len(sent) == 1 or (name == "reveal_shares" and not sent)
    uploads = [kwargs for line in (site.line, again.line) for _, kwargs in line.attempts.get("upload", [])]
    assert len({(upload["chunk_digests"], upload["receipt"]) for upload in uploads}) == 1


def test_commits_and_reveals_of_a_slow_close_survive_a_kill(lab: Lab) -> None:
    federation = lab.of(4)
    number = open_round(federation)
    federation.sites[NAME].line.forget()
    lost, site = federation.sites["site-0"], federation.sites[NAME]
    lost.line.cut(before="upload")
    site.line.cut(losing_answer_to="commit_survivors")
    others = [name for name in federation.sites if name != "site-0"]
    federation.turn_until(lambda: federation.round(number)["state"] == "collecting" and lost.line.is_cut)
    federation.turn_until(lambda: federation.participations(number)["site-3"][0] == "uploaded")
    federation.advance(WINDOW + 1)
    federation.turn_until(lambda: site.line.is_cut, sites=others)
    assert site.phase(number) is RoundPhase.BOUND

    again = federation.reopen_site(NAME)
    found = federation.play(number, sites=others)

    assert found["state"] == "succeeded", found["message"]
    commits = {args for line in (site.line, again.line) for args, _ in line.attempts["commit_survivors"]}
    assert len(commits) == 1
    errors, bound = federation.errors(number, others)
    assert errors.max() <= bound
    lost.line.mend()


def test_an_upload_goes_on_at_the_last_durable_chunk_after_a_kill(tmp_path: Path) -> None:
    with federation_in(tmp_path, model=LARGE) as federation:
        names = federation.add_sites(3)
        federation.create_run()
        held = hold_upload(federation, 1, NAME)
        assert len(held.chunks) == 5
        with pytest.raises(UploadIncomplete):
            held.send([held.header(), *map(part, held.chunks[:3])])

        again = federation.reopen_site(NAME)
        federation.play(1)

        assert again.client.upload_state("run", 1).durable_chunks == 5
        ((_, sent),) = again.line.attempts["upload"]
        assert sent["first_chunk"] == 3
        assert federation.round(1)["state"] == "succeeded"
        errors, bound = federation.errors(1, names)
        assert errors.max() <= bound
        received = federation.metric("accord_upload_bytes_total")
        assert received == 3 * sum(map(len, held.chunks))


def test_chunks_that_an_older_connection_still_brings_put_no_site_out(tmp_path: Path) -> None:
    with federation_in(tmp_path, model=LARGE) as federation:
        names = federation.add_sites(3)
        federation.create_run()
        held = hold_upload(federation, 1, NAME)
        again = federation.reopen_site(NAME)
        ask = CoordinatorClient.upload_state

        def overtaken(client: CoordinatorClient, run: str, round_: int) -> UploadState:
            state = ask(client, run, round_)
            if not state.durable_chunks:
                with pytest.raises(UploadIncomplete):
                    held.send([held.header(), *map(part, held.chunks[:2])])
            return state

        with patch.object(CoordinatorClient, "upload_state", overtaken):
            federation.play(1)

        assert [sent["first_chunk"] for _, sent in again.line.attempts["upload"]] == [0, 2]
        assert federation.round(1)["survivors"] == [f"participants/{name}" for name in names]
        errors, bound = federation.errors(1, names)
        assert errors.max() <= bound


def test_a_site_lost_in_the_middle_of_its_upload_is_left_out_and_its_chunks_with_it(tmp_path: Path) -> None:
    with federation_in(tmp_path, model=LARGE) as federation:
        names = federation.add_sites(4)
        federation.create_run()
        held = hold_upload(federation, 1, NAME)
        with pytest.raises(UploadIncomplete):
            held.send([held.header(), *map(part, held.chunks[:4])])

        found = federation.play(1, sites=[name for name in names if name != NAME])

        assert found["state"] == "succeeded"
        survivors = [name for name in names if name != NAME]
        assert found["survivors"] == [f"participants/{name}" for name in survivors]
        errors, bound = federation.errors(1, survivors)
        assert errors.max() <= bound
        assert federation.participations(1)[NAME] == ("dropped", "WINDOW_PASSED")


def test_a_site_whose_masked_update_is_lost_says_so_and_never_masks_another(tmp_path: Path) -> None:
    with federation_in(tmp_path) as federation:
        names = federation.add_sites(4)
        federation.create_run()
        held = hold_upload(federation, 1, NAME)
        (held.site.state / "spool" / "run-1.masked").unlink()
        began = federation.clock.now()

        again = federation.reopen_site(NAME)
        found = federation.play(1)

        assert found["state"] == "succeeded"
        assert federation.participations(1)[NAME] == ("failed", "UPDATE_LOST")
        assert federation.clock.now() == began, "nobody waits for a site that has said that it is out"
        assert "upload" not in again.line.calls
        errors, bound = federation.errors(1, [name for name in names if name != NAME])
        assert errors.max() <= bound


def test_a_spool_with_a_flipped_bit_is_refused_and_the_site_says_that_it_is_out(tmp_path: Path) -> None:
    with federation_in(tmp_path) as federation:
        federation.add_sites(4)
        federation.create_run()
        held = hold_upload(federation, 1, NAME)
        spool = held.site.state / "spool" / "run-1.masked"
        spool.write_bytes(bytes([spool.read_bytes()[0] ^ 1]) + spool.read_bytes()[1:])

        federation.reopen_site(NAME)
        found = federation.play(1)

        assert found["state"] == "succeeded"
        assert federation.participations(1)[NAME] == ("failed", "UPLOAD_MISMATCH")


def test_a_journal_that_went_back_in_time_gets_no_second_update_in(tmp_path: Path) -> None:
    with federation_in(tmp_path) as federation:
        federation.add_sites(4)
        federation.create_run(rounds=2)
        federation.play(1)
        site = federation.sites[NAME]
        site.line.cut(after="report_prepared")
        federation.turn_until(lambda: site.line.is_cut)
        site.close()
        # With its counter, as where a whole machine goes back: where that stays, the keys are erased (test_28).
        backup = {path: path.read_bytes() for path in site.state.glob("journal.*")}
        federation.open_site(NAME, site.trainer)
        held = hold_upload(federation, 2, NAME)
        with pytest.raises(UploadIncomplete):
            held.send([held.header(), part(held.chunks[0])])
        held.site.close()
        for path in site.state.glob("journal.sqlite*"):
            path.unlink()
        for path, content in backup.items():
            path.write_bytes(content)

        federation.open_site(NAME, site.trainer)
        found = federation.play(2)

        assert found["state"] == "succeeded"
        assert federation.participations(2)[NAME] == ("failed", "ALREADY_EXISTS")
        # Whoever looks at the log sees that two were signed; whether by a lie or a backup is for people to find out.
        assert [event["actor"] for event in federation.audit("second_receipt")] == [f"participants/{NAME}"]
        assert f"participants/{NAME}" not in found["survivors"]


def test_a_coordinator_that_is_away_while_the_adapter_is_fetched_puts_no_site_out(federation: Federation) -> None:
    number = open_round(federation)
    site = federation.sites[NAME]
    site.line.refuse("adapter", times=1)
    site.line.refuse("adapter_chunks", times=1)

    found = federation.play(number)

    assert len(found["survivors"]) == 3
    assert len(site.line.attempts["adapter"]) >= 3


def test_a_site_that_was_away_for_rounds_forgets_all_of_them(tmp_path: Path) -> None:
    with federation_in(tmp_path) as federation:
        names = federation.add_sites(4)
        federation.create_run(rounds=4)
        site = federation.sites[NAME]
        site.line.cut(after="upload")
        federation.play(1)
        assert site.phase(1) is RoundPhase.MASKED
        for number in (2, 3):
            federation.play(number, sites=[name for name in names if name != NAME])
        site.line.mend()

        federation.play(4)

        journal = site.journal()
        missed = journal.round("run", 1)
        assert missed is not None
        assert (missed.phase, missed.outcome, missed.state) == (RoundPhase.OVER, "unknown", b"")
        journal.close()
        assert not (site.state / "spool" / "run-1.masked").exists()


def test_a_download_that_broke_off_in_a_round_leaves_nothing_behind_when_the_run_is_over(tmp_path: Path) -> None:
    with federation_in(tmp_path) as federation:
        names = federation.add_sites(4)
        others = [name for name in names if name != NAME]
        federation.create_run(rounds=1)
        site = federation.sites[NAME]
        site.line.cut(before="adapter_chunks")
        federation.play(1)
        federation.play(2, sites=others)
        assert federation.state() == "succeeded"
        assert len(list((site.state / "adapters").glob(".*.part"))) == 1

        federation.reopen_site(NAME).turn()

        shelf = {path.name for path in (site.state / "adapters").iterdir()}
        final = federation.run()["accepted_adapter_digest"]
        assert shelf == {final, f".{final}.final"}


# --- the coordinator --------------------------------------------------------------------------------------------


def stop_reveals(federation: Federation) -> None:
    for site in list(federation.sites.values())[1:]:
        site.line.cut(before="reveal_shares")


STATES: dict[str, Callable[[Federation], None]] = {
    "forming": lambda federation: federation.sites[NAME].line.cut(before="assignments"),
    "training": lambda federation: federation.sites[NAME].line.refuse("report_prepared"),
    "collecting": lambda federation: federation.sites[NAME].line.cut(before="upload"),
    "unmasking": stop_reveals,
}


@pytest.mark.parametrize("state", STATES)
def test_the_coordinator_restarts_in_the_same_state_and_publishes_the_same_sum(lab: Lab, state: str) -> None:
    federation = lab.of(4)
    number = open_round(federation)
    STATES[state](federation)
    for _ in range(12):
        federation.turn()
    before = federation.round(number)
    assert before["state"] == state
    uploads = {name: site.line.calls.count("upload") for name, site in federation.sites.items()}

    federation.restart()

    assert federation.round(number) == before
    for site in federation.sites.values():
        site.line.mend()
    found = federation.play(number)
    assert found["state"] == "succeeded", found["message"]
    assert len(found["survivors"]) == 4
    errors, bound = federation.errors(number, sorted(federation.sites))
    assert errors.max() <= bound
    sent = {name: site.line.calls.count("upload") - uploads[name] for name, site in federation.sites.items()}
    late = {"forming": set(sent), "training": set(sent), "collecting": {NAME}, "unmasking": set()}[state]
    assert {name for name, count in sent.items() if count} == late


@contextmanager
def killed_while_summing(federation: Federation, *, chunk: int) -> Iterator[Path]:
    """A coordinator that every chunk's result is durable with, stopped as it opened this one; the scratch folder."""

    def words(opened: OpenSum, at: int, unmasker: StreamSum) -> Words:
        if at == chunk:
            raise Unavailable("killed here")
        return honest(opened, at, unmasker)

    honest = OpenSum.words
    with patch.object(aggregation, "DURABLE_AFTER_MADE_BYTES", 1):
        with patch.object(OpenSum, "words", words):
            federation.turn_until(lambda: federation.round(1)["state"] == "aggregating")
            federation.settle()
            federation.stop()
        yield federation.config.scratch_folder


def summed_after_the_restart(federation: Federation) -> list[int]:
    """The chunks of the sum that a coordinator opens that has just started, and with which the round succeeds."""
    opened_chunks: list[int] = []

    def words(opened: OpenSum, at: int, unmasker: StreamSum) -> Words:
        opened_chunks.append(at)
        return honest(opened, at, unmasker)

    honest = OpenSum.words
    with patch.object(OpenSum, "words", words):
        federation.start()
        federation.turn_until(lambda: federation.round(1)["state"] == "succeeded")
    return sorted(opened_chunks)


def test_a_sum_goes_on_at_its_first_chunk_that_is_not_durable(tmp_path: Path) -> None:
    with federation_in(tmp_path, model=LARGE) as federation:
        names = federation.add_sites(3)
        federation.create_run()
        with killed_while_summing(federation, chunk=2) as scratch:
            stored, copy = federation.config.data_folder, tmp_path / "copy"
            shutil.copytree(stored, copy)
            # The tail is opened every time: the others are decoded with its weight.
            assert summed_after_the_restart(federation) == [2, 3, 4]
            assert not list(scratch.rglob("*"))
            gone_on = federation.round(1)["adapter_digest"]
            federation.stop()

            shutil.rmtree(stored)
            shutil.copytree(copy, stored)
            shutil.rmtree(scratch)
            assert summed_after_the_restart(federation) == [0, 1, 2, 3, 4]
            assert federation.round(1)["adapter_digest"] == gone_on
        errors, bound = federation.errors(1, names)
        assert errors.max() <= bound


@pytest.mark.parametrize(
    ("settings", "killed_at"),
    [
        ({"server_optimizer": "fedadam", "product_probes": 8}, 2),
        ({"method": "rolora", "server_optimizer": "fedyogi"}, 1),
    ],
    ids=["all is sent", "one factor is sent"],
)
def test_state_figures_and_what_is_not_sent_go_on_with_the_sum(
    tmp_path: Path, settings: dict[str, Any], killed_at: int
) -> None:
    def made(federation: Federation) -> tuple[object, ...]:
        found = federation.round(1)
        blobs, figures = open_blobs(federation.config.blobs_url), [one["name"] for one in found["metrics"]]
        state = tuple(hashlib.sha256(blobs.read(key)).hexdigest() for key in blobs.keys("optimizer"))
        assert len(state) == 2
        assert ("product_error" in figures) == ("product_probes" in settings)
        return found["adapter_digest"], found["metrics"], state

    with federation_in(tmp_path, model=LARGE) as federation:
        federation.add_sites(3)
        federation.create_run(**settings)
        with killed_while_summing(federation, chunk=killed_at) as scratch:
            stored, copy = federation.config.data_folder, tmp_path / "copy"
            shutil.copytree(stored, copy)
            opened = summed_after_the_restart(federation)
            assert opened == list(range(killed_at, opened[-1] + 1))
            gone_on = made(federation)
            federation.stop()

            shutil.rmtree(stored)
            shutil.copytree(copy, stored)
            shutil.rmtree(scratch)
            assert summed_after_the_restart(federation)[0] == 0
            assert made(federation) == gone_on


def test_what_was_made_of_another_sum_is_not_gone_on_with(tmp_path: Path) -> None:
    with federation_in(tmp_path, model=LARGE) as federation:
        names = federation.add_sites(3)
        federation.create_run()
        with killed_while_summing(federation, chunk=2) as scratch:
            (record,) = scratch.rglob(RECORD_FILE)
            other = json.loads(record.read_text())
            assert other["chunks"] == 2
            record.write_text(json.dumps(other | {"work": "0" * 64}))

            assert summed_after_the_restart(federation) == [0, 1, 2, 3, 4]
        errors, bound = federation.errors(1, names)
        assert errors.max() <= bound


def test_the_same_uploads_give_the_same_adapter_bit_for_bit(tmp_path: Path) -> None:
    """Aggregated twice from the same stored uploads and reveals, each time by a coordinator that has just started."""
    with federation_in(tmp_path) as federation:
        federation.add_sites(3)
        federation.create_run()
        with patch.object(aggregating, "make_next_adapter", side_effect=Unavailable("killed here")):
            federation.turn_until(lambda: federation.round(1)["state"] == "aggregating")
            federation.stop()
        stored, copy = federation.config.data_folder, tmp_path / "copy"
        shutil.copytree(stored, copy)
        digests = []
        for _ in range(2):
            federation.start()
            federation.settle()
            assert federation.round(1)["state"] == "succeeded"
            digests.append(federation.round(1)["adapter_digest"])
            federation.stop()
            shutil.rmtree(stored)
            shutil.copytree(copy, stored)

        assert digests[0] == digests[1]
        federation.start()


def test_a_site_whose_journal_does_not_know_the_run_is_in_again(tmp_path: Path) -> None:
    """From a backup of before it joined, or none: the coordinator knows that it has joined, and would wait for it."""
    with federation_in(tmp_path) as federation:
        federation.add_sites(4)
        federation.create_run(rounds=2, rounds_per_epoch=1)
        assert len(federation.play(1)["survivors"]) == 4
        site = federation.sites["site-3"]
        with closing(sqlite3.connect(site.state / "journal.sqlite")) as database, database:
            database.execute("DELETE FROM runs")
        assert len(federation.play(2)["survivors"]) == 4


def test_rounds_that_a_site_could_not_do_are_none_of_its_days_rounds(tmp_path: Path) -> None:
    def fail(work: Preparation) -> None:
        if work.round <= 3:
            raise TrainingFailed("out of memory")

    with federation_in(tmp_path) as federation:
        federation.add_sites(3)
        policy = POLICY.replace("[rounds]", "[rounds]\nmost_in_a_day = 2")
        assert "most_in_a_day" in policy
        federation.add_site("small", MadeUpTrainer(delta_of(9), spoil=fail), policy=policy)
        federation.create_run(rounds=4)
        for number in (1, 2, 3):
            assert "participants/small" not in federation.play(number)["survivors"]
        assert "participants/small" in federation.play(4)["survivors"]


def test_a_stop_does_not_wait_for_the_rest_of_a_download_and_is_no_failure(tmp_path: Path) -> None:
    with federation_in(tmp_path, model=LARGE) as federation:
        federation.add_sites(3)
        federation.create_run()
        site, chunks, asked = federation.sites[NAME], CoordinatorClient.adapter_chunks, list[int]()

        def in_two(client: CoordinatorClient, digest: str, **named: Any) -> Iterator[bytes]:
            for chunk in chunks(client, digest, **named):
                yield chunk[:1000]
                if client is site.client and not asked:
                    site.daemon._workbench.ask_to_stop()
                    asked.append(named["offset"])
                yield chunk[1000:]

        with patch.object(CoordinatorClient, "adapter_chunks", in_two):
            federation.turn_until(lambda: asked == [0])
            site.daemon.wait_for_preparation()
            assert site.phase(1) is RoundPhase.PREPARING
            assert federation.play(1)["state"] == "succeeded"
        state, reason = federation.participations(1)[NAME]
        assert state in ("uploaded", "revealed")
        assert not reason
