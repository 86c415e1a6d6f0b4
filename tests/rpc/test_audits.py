"""Chunk audits over a real server: honest rounds pass, a coordinator that lies about one is found out by any member.

The coordinator of these tests is the real one; where it lies, one of its own functions does, so that what a site gets
has come over the wire. All cases share one run of 4 sites, paused between them; each plays a round.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from accord.v1 import secure_aggregation_pb2 as pb
from common.adapters import ADAPTER_FILE
from common.errors import AuditFailed, InvalidArgument, NotFound, NotInCohort, OutOfTurn, ShapeMismatch
from common.masking import secagg_plan
from common.secagg import RoundKind, TailSums, VectorLayout
from coordinator.aggregation import OpenSum
from coordinator.driver import aggregating
from coordinator.next_adapter import NextAdapter, make_next_adapter
from coordinator.services import audits
from coordinator.services.audits import ChunkAudits
from participant.__main__ import main
from participant.auditing import AuditReport, audit_round, notes_of
from participant.cli.exits import Exit
from participant.shelf import AdapterShelf
from tests.rpc.federation import Federation, MadeUpTrainer, base_model, delta_of, federation_in
from tests.rpc.lab import open_round

SITES = 4
AUDITOR = "site-0"
VICTIM = "site-2"
# A few lane chunks, however many lanes a word has.
LARGE = base_model(size=150_000)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation_in(tmp_path_factory.mktemp("audits"), model=LARGE) as made:
        made.add_sites(SITES)
        made.create_run(rounds=1000, most_failed_rounds=1000, rounds_per_epoch=64, is_started=False)
        made.join_all()
        assert made.driver is not None
        with made.driver.turn:  # it opens no round in between
            made.admin.start_run("runs/run")
            made.admin.pause_run("runs/run")
        yield made


def play(federation: Federation, *, without: Collection[str] = ()) -> int:
    """One round, in which some are lost after training; everybody hears its end. Its number."""
    number = open_round(federation)
    for name in without:
        federation.sites[name].line.cut(before="upload")
    found = federation.play(number)
    for name in without:
        federation.sites[name].line.mend()
    federation.turn()
    assert found["state"] == "succeeded", found["message"]
    return number


def layout_of(federation: Federation) -> VectorLayout:
    run = federation.run()
    return secagg_plan(federation.plan(), bytes.fromhex(run["plan_digest"])).layout(RoundKind.TRAINING, 1)


def audit(federation: Federation, number: int, name: str = AUDITOR, *, chunks: Sequence[int] = (0,)) -> AuditReport:
    site = federation.sites[name]
    journal = site.journal()
    try:
        notes = notes_of(journal, run="run", round_=number, participant=name)
    finally:
        journal.close()
    shelf = AdapterShelf(site.state / "audited", lambda: site.client)
    return audit_round(
        notes, site.client, choose=lambda count: chunks, fetch=lambda digest: shelf.fetch(digest, notes.plan)
    )


def all_chunks(federation: Federation, number: int, name: str) -> AuditReport:
    return audit(federation, number, name, chunks=range(layout_of(federation).lane_chunks))


# --- what is right passes -------------------------------------------------------------------------------------------


def test_every_chunk_of_an_honest_round_passes_at_every_site_and_each_audit_is_in_the_log(shared: Federation) -> None:
    number, layout = play(shared), layout_of(shared)
    before = len(shared.audit("round_audited"))

    reports = {name: all_chunks(shared, number, name) for name in sorted(shared.sites)}

    for name, report in reports.items():
        assert report.lane_chunks == len(report.chunks) == layout.lane_chunks > 3, name
        assert report.parameters == report.all_parameters == shared.plan().layout().parameters
        assert report.survivors == tuple(sorted(shared.sites))
        assert report.dropped == ()
        assert report.is_own_in_sum
        assert report.adapter == shared.round(number)["adapter_digest"]
    lines = shared.audit("round_audited")[before:]
    assert [line["actor"] for line in lines] == [f"participants/{name}" for name in sorted(shared.sites)]
    assert {line["subject"] for line in lines} == {f"runs/run/rounds/{number}"}
    assert json.loads(lines[0]["details_json"]) == {"chunks": [layout.tail_chunk, *range(layout.lane_chunks)]}


@pytest.mark.parametrize("lost", ["site-0", "site-1", "site-3"])
def test_a_round_with_a_dropout_passes_and_the_one_that_was_dropped_can_audit_it_too(
    shared: Federation, lost: str
) -> None:
    number = play(shared, without=[lost])

    for name in sorted(shared.sites):
        report = all_chunks(shared, number, name)
        assert report.dropped == (lost,)
        assert report.is_own_in_sum == (name != lost)


def test_the_three_newest_rounds_can_be_audited_and_older_ones_no_more(shared: Federation) -> None:
    first, second, third = play(shared), play(shared), play(shared)
    assert audit(shared, first).round == first

    play(shared)

    assert [audit(shared, number).round for number in (second, third)] == [second, third]
    with pytest.raises(OutOfTurn, match=f"rounds/{first} are deleted: those of its newest rounds are kept"):
        audit(shared, first)


def test_figures_of_an_evaluation_round_are_audited_by_its_tail_chunk(tmp_path: Path) -> None:
    with federation_in(tmp_path) as federation:
        federation.add_sites(3)
        federation.create_run(rounds=1)
        federation.play(1)
        federation.play(2)
        federation.turn()
        report = audit(federation, 2, chunks=())
        assert (report.adapter, report.lane_chunks, report.chunks) == ("", 0, ())
        assert report.metrics == {metric["name"]: metric["value"] for metric in federation.round(2)["metrics"]}
        assert audit(federation, 1).round == 1


# --- a coordinator that has published something else ---------------------------------------------------------------


@contextmanager
def nudging(element: int) -> Iterator[None]:
    """One parameter of what is published is the next float."""

    def make(*args: Any, **settings: Any) -> NextAdapter:
        made = make_next_adapter(*args, **settings)
        content = bytearray(made.path.read_bytes())
        at = len(settings["start"].layout.header()) + 4 * element
        value = np.frombuffer(content, dtype=np.float32, count=1, offset=at)[0]
        content[at : at + 4] = np.nextafter(value, np.float32(np.inf)).tobytes()
        made.path.write_bytes(content)
        return replace(made, digest=hashlib.sha256(content).hexdigest())

    with patch.object(aggregating, "make_next_adapter", make):
        yield


def test_one_parameter_that_is_off_by_one_bit_is_found_in_its_chunk_and_only_there(shared: Federation) -> None:
    layout = layout_of(shared)
    start, stop = layout.parameters_in(2)
    with nudging(start + 17):
        number = play(shared)

    others = tuple(chunk for chunk in range(layout.lane_chunks) if chunk != 2)
    assert audit(shared, number, chunks=others).chunks == others
    said = f"in chunk 2 1 of {stop - start} parameters differ, first parameter {start + 17}: "
    with pytest.raises(AuditFailed, match=said):
        audit(shared, number, chunks=(2,))


def test_a_mean_by_another_weight_than_was_told_is_found_in_every_chunk(shared: Federation) -> None:
    def mean_chunks(opened: OpenSum, tail: TailSums, **where: int) -> Any:
        return honest(opened, replace(tail, weight=tail.weight * 1.001), **where)

    honest = OpenSum.mean_chunks
    with patch.object(OpenSum, "mean_chunks", mean_chunks):
        number = play(shared)

    for chunk in range(layout_of(shared).lane_chunks):
        with pytest.raises(AuditFailed, match=f"not what the members' sum makes of the one before: in chunk {chunk} "):
            audit(shared, number, chunks=(chunk,))


def test_a_weight_that_is_told_otherwise_is_found_by_the_tail_alone(shared: Federation) -> None:
    def tail(opened: OpenSum) -> TailSums:
        found = honest(opened)
        return replace(found, weight=found.weight / 2)

    honest = OpenSum.tail
    with patch.object(OpenSum, "tail", tail):
        number = play(shared)

    with pytest.raises(
        AuditFailed, match=r"figures that are told of the round .*: weight is 2\.2\d*, 1\.1\d* was told"
    ):
        audit(shared, number, chunks=())


def test_a_sum_that_was_put_together_otherwise_is_found(shared: Federation) -> None:
    def words(opened: OpenSum, chunk: int, unmasker: Any) -> Any:
        total = honest(opened, chunk, unmasker)
        return total if chunk == opened.layout.tail_chunk else total[::-1].copy()

    honest = OpenSum.words
    with patch.object(OpenSum, "words", words):
        number = play(shared)

    with pytest.raises(AuditFailed, match="not what the members' sum makes of the one before"):
        audit(shared, number)


# --- a coordinator that shows something else than what it has -------------------------------------------------------

Change = Callable[[Sequence[pb.AuditChunksResponse]], None]


@contextmanager
def showing(change: Change) -> Iterator[None]:
    """Every answer is changed, but for its chunks and what members have confirmed."""

    def changed(*args: Any) -> audits._Shown:
        shown = honest(*args)
        change((*shown.first, *shown.pairs))
        return shown

    honest = audits._shown
    with patch.object(audits, "_shown", changed):
        yield


def upload_of(shown: Sequence[pb.AuditChunksResponse], name: str) -> pb.AuditedUpload:
    return next(part.upload for part in shown if part.upload.participant == name)


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def forge_receipt(shown: Sequence[pb.AuditChunksResponse]) -> None:
    upload_of(shown, VICTIM).receipt = flipped(upload_of(shown, VICTIM).receipt)


def show_anothers_receipt(shown: Sequence[pb.AuditChunksResponse]) -> None:
    upload_of(shown, VICTIM).receipt = upload_of(shown, "site-1").receipt


def change_digests(shown: Sequence[pb.AuditChunksResponse]) -> None:
    upload_of(shown, VICTIM).chunk_digests = flipped(upload_of(shown, VICTIM).chunk_digests)


def show_wrong_seed(shown: Sequence[pb.AuditChunksResponse]) -> None:
    upload_of(shown, VICTIM).self_key = flipped(upload_of(shown, VICTIM).self_key)


def swap_seeds(shown: Sequence[pb.AuditChunksResponse]) -> None:
    one, other = upload_of(shown, VICTIM), upload_of(shown, "site-3")
    one.self_key, other.self_key = other.self_key, one.self_key


def rename_member(shown: Sequence[pb.AuditChunksResponse]) -> None:
    upload_of(shown, VICTIM).participant = "invented"


def show_another_adapter(shown: Sequence[pb.AuditChunksResponse]) -> None:
    shown[0].round.adapter_digest = "ab" * 32


def tell_other_figures(shown: Sequence[pb.AuditChunksResponse]) -> None:
    metric = next(metric for metric in shown[0].round.metrics if metric.name == "heldout_loss")
    metric.value *= 0.9


def hide_a_figure(shown: Sequence[pb.AuditChunksResponse]) -> None:
    metrics = shown[0].round.metrics
    metrics.remove(next(metric for metric in metrics if metric.name == "train_records"))


SHOWN_WRONG: dict[Change, str] = {
    forge_receipt: f"the receipt of {VICTIM}: the signature on upload is not that of {VICTIM}",
    show_anothers_receipt: f"the receipt of {VICTIM} is in the name of site-1",
    change_digests: f"the receipt of {VICTIM} is for another upload than the one that is shown",
    show_wrong_seed: f"the opened self key of {VICTIM} is not the one that it committed to",
    swap_seeds: f"the opened self key of {VICTIM} is not the one that it committed to",
    rename_member: "invented is shown as a member, and is not in the key roster",
    show_another_adapter: f"adapter {'ab' * 32} is shown as what the round has published; when it ended this site was",
    tell_other_figures: r"the figures that are told of the round are not those of its sum: heldout_loss is 2\.0",
    hide_a_figure: r"train_records is \d+\.0, nothing was told",
}


@pytest.fixture(scope="module")
def fast(shared: Federation) -> int:
    """A round of all sites, of which the cases below are shown something wrong; nothing of it is changed."""
    return play(shared)


@pytest.mark.parametrize("lie", SHOWN_WRONG, ids=lambda lie: lie.__name__)
def test_what_is_shown_wrong_is_found_and_said_of_whom(shared: Federation, fast: int, lie: Change) -> None:
    with showing(lie), pytest.raises(AuditFailed) as caught:
        audit(shared, fast)
    assert re.search(SHOWN_WRONG[lie], caught.value.message), caught.value.message
    assert audit(shared, fast).round == fast


def test_a_swapped_chunk_is_found_and_whose_it_is(shared: Federation, fast: int) -> None:
    def words(self: ChunkAudits, round_: Any, upload: Any, chunk: int) -> bytes:
        return honest(self, round_, upload, 1 if chunk == 0 else chunk)

    honest = ChunkAudits._words
    with (
        patch.object(ChunkAudits, "_words", words),
        pytest.raises(AuditFailed, match=f"chunk 0 of {AUDITOR} is not the one that its receipt is for"),
    ):
        audit(shared, fast)


def test_a_survivor_that_is_not_shown_is_missed(shared: Federation, fast: int) -> None:
    """Three of four would be a survivor set of its own: nobody has committed to it."""

    def without_victim(*args: Any) -> audits._Shown:
        shown = honest(*args)
        return replace(shown, first=tuple(part for part in shown.first if part.upload.participant != VICTIM))

    honest = audits._shown
    with (
        patch.object(audits, "_shown", without_victim),
        pytest.raises(AuditFailed, match="the commits to the survivor set: 0 members committed"),
    ):
        audit(shared, fast)


def wrong_pair_key(shown: Sequence[pb.AuditChunksResponse]) -> None:
    pair = next(part.pair for part in shown if part.pair.survivor == VICTIM)
    pair.pair_key = flipped(pair.pair_key)


def too_few_commits(shown: Sequence[pb.AuditChunksResponse]) -> None:
    del shown[0].round.commits[1:]


OF_A_DROPOUT: dict[Change, str] = {
    wrong_pair_key: f"the opened pair key of site-1 and {VICTIM} is not the one that site-1 committed to",
    too_few_commits: "the commits to the survivor set: 1 members committed",
}


@pytest.fixture(scope="module")
def slow(shared: Federation) -> int:
    """A round that one site was dropped from."""
    return play(shared, without=["site-1"])


@pytest.mark.parametrize("lie", OF_A_DROPOUT, ids=lambda lie: lie.__name__)
def test_what_is_shown_wrong_of_a_dropped_member_is_found(shared: Federation, slow: int, lie: Change) -> None:
    with showing(lie), pytest.raises(AuditFailed) as caught:
        audit(shared, slow)
    assert re.search(OF_A_DROPOUT[lie], caught.value.message), caught.value.message
    assert audit(shared, slow).dropped == ("site-1",)


def test_a_forged_confirmation_is_found(shared: Federation, slow: int) -> None:
    def forged(self: ChunkAudits, round_: Any, name: str) -> pb.AuditChunksResponse:
        answer = honest(self, round_, name)
        if name == VICTIM:
            answer.confirmation.confirmation = flipped(answer.confirmation.confirmation)
        return answer

    honest = ChunkAudits._confirmation
    said = f"the commitments of {VICTIM} to its pair keys: the signature on ready is not that of"
    with patch.object(ChunkAudits, "_confirmation", forged), pytest.raises(AuditFailed, match=said):
        audit(shared, slow)


# --- who may ask, and when ------------------------------------------------------------------------------------------


def test_only_members_of_the_cohort_are_answered_and_only_once_the_round_has_succeeded(tmp_path: Path) -> None:
    with federation_in(tmp_path) as federation:
        federation.add_sites(SITES)
        federation.create_run(rounds=2, is_started=False)
        federation.join_all()
        federation.add_site("outsider", MadeUpTrainer(delta_of(9)))
        federation.start_run()
        late = federation.sites["site-3"]
        late.line.cut()
        members = ["site-0", "site-1", "site-2"]

        def client_of(name: str) -> Any:
            return federation.sites[name].client

        with pytest.raises(OutOfTurn, match=r"rounds/1 is \w+: only a round that has succeeded can be audited"):
            client_of("site-0").audit_chunks("run", 1, [0])
        assert federation.play(1, sites=members)["state"] == "succeeded"

        with pytest.raises(NotInCohort, match="site-3 is not in the cohort of runs/run/rounds/1"):
            client_of("site-3").audit_chunks("run", 1, [0])
        with pytest.raises(NotInCohort, match="outsider has not joined runs/run"):
            client_of("outsider").audit_chunks("run", 1, [0])
        assert {line["actor"] for line in federation.audit("round_audited")} == set()
        for wrong in ([], [0, 0]):
            with pytest.raises(InvalidArgument, match="names at least one chunk, and none twice"):
                client_of("site-0").audit_chunks("run", 1, wrong)
        with pytest.raises(ShapeMismatch, match="chunk 2 is outside the vector's 2 chunks"):
            client_of("site-0").audit_chunks("run", 1, [2])
        with pytest.raises(NotFound):
            client_of("site-0").audit_chunks("run", 7, [0])
        assert len(client_of("site-0").audit_chunks("run", 1, [0])[0].receipts) == 3


def test_a_site_that_has_no_notes_of_a_round_says_which_it_has(shared: Federation, fast: int) -> None:
    with pytest.raises(NotFound, match=rf"no notes of round 9999 of run run.* rounds with notes: .*\b{fast}\b"):
        audit(shared, 9999)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def config(shared: Federation) -> Path:
    """participant.toml of the auditor, whose daemon runs."""
    assert shared.addresses is not None
    file = shared.folder / AUDITOR / "participant.toml"
    file.write_text(
        f"""
state_directory = "{file.parent}"
policy_file = "{file.parent}/policy.toml"
base_models = [{{ source = "/nowhere" }}]
data = {{ train_file = "/nowhere" }}
charter = {{ mode = "coordinator" }}
coordinator = {{ address = "{shared.addresses.participants}" }}
"""
    )
    return file


def test_the_command_says_what_was_audited_what_that_shows_and_what_not(
    shared: Federation, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number, layout = play(shared, without=["site-1"]), layout_of(shared)
    count = layout.lane_chunks

    assert main(["audit", "--config", str(config)]) == Exit.OK
    said = capsys.readouterr().out
    assert f"round {number} of run run: what was audited is right" in said
    assert "site-1: the survivors have signed that" in said
    found = re.search(r"chunks       (\d+) of (\d+): ([\d,]+) of 2,400,256 parameters", said)
    assert found is not None
    start, stop = layout.parameters_in(int(found[1]))
    assert (found[2], found[3]) == (str(count), f"{stop - start:,}")
    assert f"Had 1 of the {count} chunks been wrong" in said
    assert f"with a chance of {1 / count:.0%}" in said
    assert "What it does not: that the members were honest" in said

    arguments = ["audit", "--config", str(config), "--run", "run", "--round", str(number), "--json"]
    assert main([*arguments, "--chunks", "99"]) == Exit.OK
    told = json.loads(capsys.readouterr().out)
    assert told["chunks"] == list(range(count))
    assert told["is_right"] is True
    assert told["chance_to_catch_a_tenth_wrong"] == 1.0
    assert main([*arguments, "--chunk", str(count)]) == Exit.USAGE
    assert f"the last one is {count - 1}" in capsys.readouterr().err
    assert not list(config.parent.glob(".audit-*"))


def test_the_command_ends_with_8_and_the_reason_when_something_is_wrong(
    shared: Federation, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with nudging(5):
        number = play(shared)

    assert main(["audit", "--config", str(config), "--round", str(number), "--chunk", "0"]) == Exit.AUDIT
    assert re.search(r"in chunk 0 1 of \d+ parameters differ, first parameter 5: ", capsys.readouterr().err)
    with ExitStack() as lies:
        lies.enter_context(showing(forge_receipt))
        assert main(["audit", "--config", str(config), "--chunk", "1", "--json"]) == Exit.AUDIT
    said = json.loads(capsys.readouterr().out)
    assert said["error"]["reason"] == "AUDIT_FAILED"
    assert VICTIM in said["error"]["message"]


def test_an_adapter_that_was_damaged_on_the_shelf_is_not_taken_for_what_was_published(
    shared: Federation, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = play(shared)
    shelved = shared.sites[AUDITOR].state / "adapters" / shared.round(number)["base_adapter_digest"] / ADAPTER_FILE
    content = shelved.read_bytes()
    shelved.write_bytes(flipped(content))
    try:
        assert main(["audit", "--config", str(config)]) == Exit.FAILED
    finally:
        shelved.write_bytes(content)
    assert str(shelved) in capsys.readouterr().err
    assert main(["audit", "--config", str(config)]) == Exit.OK
