"""Coordinators that lie, against real sites: what is refused, what a site writes down, and what stays closed.

Numbers are those of the table in common/secagg/README.md. Where a lie needs a member that conspires, the test plays it
with the member's own key. A lie that was refused costs nothing: told the truth afterwards, the site goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from accord.v1 import round_pb2
from accord.v1 import secure_aggregation_pb2 as pb
from common.errors import (
    MalformedMessage,
    ProtocolViolation,
    SecondSurvivorSet,
    SignatureInvalid,
)
from common.secagg import EpochKeys, RoundContext, StreamSum, Words, hashing, lane_limit
from common.secagg.messages import Receipt, Signed, Start
from coordinator.store.opening import open_store
from coordinator.unmasking import opened_keys
from participant.journal import RoundPhase
from tests.rpc.federation import Site
from tests.rpc.lab import Lab, open_round
from tests.rpc.lying import held_upload
from tests.rpc.lying_coordinator import (
    LATE,
    NAMES,
    VICTIM,
    Call,
    Liar,
    Lie,
    LyingFederation,
    assert_refuses,
    copy_of,
    honest_afterwards,
    honest_end,
    honest_round,
    instead_of_tasks,
    loot,
    lying_lab,
    with_task,
    without,
)

THRESHOLD = 3  # shares and commits that four members with one colluder need


lab = lying_lab(rounds_per_epoch=64)


@pytest.fixture
def federation(lab: Lab) -> Iterator[LyingFederation]:
    """Four sites whose keys are made already, whichever case comes first."""
    federation = lab.of(4)
    if not federation.run()["round"]:
        federation.play(open_round(federation))
    yield from honest_afterwards(federation)


# --- closing a round: 1 to 6 --------------------------------------------------------------------------------------


def closing(federation: LyingFederation, *, dropped: Sequence[str] = ()) -> int:
    """A round whose updates are in, but those of `dropped`, who are gone; every site is about to ask who survived."""
    number = open_round(federation)
    for name, site in federation.sites.items():
        site.line.cut(before="upload" if name in dropped else "evidence")
    waiting = [federation.sites[name] for name in NAMES if name not in dropped]
    federation.turn_until(lambda: all(federation.sites[name].line.is_cut for name in dropped))
    federation.turn_until(lambda: len(uploaded(federation, number)) == len(waiting))
    if dropped:
        federation.advance(10.5)
    federation.turn_until(lambda: all(site.line.is_cut for site in waiting))
    for site in waiting:
        site.line.mend()
    return number


def uploaded(federation: LyingFederation, number: int) -> list[str]:
    return [name for name, (state, _) in federation.participations(number).items() if state == "uploaded"]


def receipts(liar: Liar, number: int) -> dict[str, bytes]:
    """The receipts of a round's uploads, by who sent them."""
    found = {}
    for call in liar.calls:
        if call.method == "UploadMaskedUpdate" and call.request[0].header.round == number and call.request[-1].receipt:
            found[call.caller] = call.request[-1].receipt
    return found


def commits(liar: Liar, number: int) -> list[bytes]:
    return list(dict.fromkeys(request.commit for request in liar.heard("CommitSurvivors", round=number)))


def evidence(**changes: Any) -> Lie:
    """A lie about evidence: the true one with other fields."""

    def lie(call: Call, truth: Any) -> Any:
        fields = {name: changes.get(name, getattr(truth, name)) for name in truth.DESCRIPTOR.fields_by_name}
        return pb.GetEvidenceResponse(**fields)

    return lie


def for_reveal(lie: Lie) -> Lie:
    """The lie to those who are about to reveal, the truth to those who ask whom to bind to."""
    return lambda call, truth: lie(call, truth) if call.request.for_reveal else truth


def test_1_evidence_that_asks_for_both_kinds_of_share_opens_none(federation: LyingFederation) -> None:
    number = closing(federation)
    liar, site = federation.liar, federation.sites[VICTIM]
    for both in (evidence(survivors=NAMES[:3]), evidence(commits=[b"a commit to another set"])):
        liar.tell("GetEvidence", both, to=[VICTIM])
        assert_refuses(site, ProtocolViolation, "contradicts itself")
    liar.tell("GetEvidence", evidence(fast=False, survivors=[*NAMES, LATE]), to=[VICTIM])
    assert_refuses(site, ProtocolViolation, "names a member twice")

    assert liar.heard("RevealShares", VICTIM, round=number) == []
    assert site.phase(number) is RoundPhase.MASKED
    assert honest_end(federation) == "succeeded"
    found = loot(liar, number, range(4))
    assert all(0 in found.self_shares[owner] and 0 not in found.escrow_shares[owner] for owner in range(4))


def test_2_a_second_survivor_set_is_refused_before_and_after_the_shares_are_opened(federation: LyingFederation) -> None:
    number = closing(federation, dropped=[LATE])
    liar, site = federation.liar, federation.sites[VICTIM]
    second = evidence(survivors=[NAMES[0], NAMES[1], LATE])
    liar.tell("GetEvidence", for_reveal(second), to=[VICTIM])
    assert_refuses(site, SecondSurvivorSet, "a second survivor set could open one member's update")
    liar.tell("GetEvidence", second, to=[VICTIM])
    assert_refuses(site, SecondSurvivorSet, "is bound to site-0, site-1, site-2")
    liar.tell("GetEvidence", evidence(survivors=NAMES, fast=True, commits=[]), to=[VICTIM])
    assert_refuses(site, SecondSurvivorSet, "is bound to site-0, site-1, site-2")
    assert site.phase(number) is RoundPhase.BOUND
    assert liar.heard("RevealShares", VICTIM, round=number) == []

    liar.be_honest()
    federation.turn_until(lambda: site.phase(number) is RoundPhase.REVEALED, sites=NAMES[:3])
    again = liar.assigned[VICTIM, "close_round"]
    liar.tell("GetAssignment", instead_of_tasks(again), to=[VICTIM])
    liar.tell("GetEvidence", second, to=[VICTIM])
    liar.keep("RevealShares", lambda call: pb.RevealSharesResponse(), of=[VICTIM])
    for _ in range(2):
        site.turn()

    assert len({request.reveal for request in liar.heard("RevealShares", VICTIM, round=number)}) == 1
    found = loot(liar, number, range(4))
    assert found.commits[0] == {(0, 1, 2)}
    assert found.openable_sums(THRESHOLD) in ([], [(0, 1, 2)])
    assert not any(0 in found.self_shares[owner] and 0 in found.escrow_shares[owner] for owner in range(4))
    assert honest_end(federation) == "succeeded"


@pytest.mark.parametrize(
    ("fast", "opened"), [(3, [(0, 1, 2, 3)]), (2, []), (1, [(1, 2, 3)])], ids=["3 fast", "2 and 2", "3 slow"]
)
def test_3_a_fast_close_for_some_and_a_slow_one_for_others_opens_one_sum_at_most(
    federation: LyingFederation, fast: int, opened: list[tuple[int, ...]]
) -> None:
    number = closing(federation)
    liar, slow = federation.liar, NAMES[fast:]
    own = receipts(liar, number)
    liar.keep("CommitSurvivors", lambda call: pb.CommitSurvivorsResponse(), of=slow)
    liar.keep("RevealShares", lambda call: pb.RevealSharesResponse(), of=slow)

    def slow_close(call: Call, truth: Any) -> Any:
        told = commits(liar, number) if call.request.for_reveal else []
        return pb.GetEvidenceResponse(survivors=NAMES[1:], receipts=[own[name] for name in NAMES[1:]], commits=told)

    liar.tell("GetEvidence", slow_close, to=slow)
    for _ in range(3):
        federation.turn()

    found = loot(liar, number, range(4))
    assert found.openable_sums(THRESHOLD) == opened
    assert all(not found.self_shares[owner] & found.escrow_shares[owner] for owner in range(4))
    assert not any(
        len(found.self_shares[owner]) >= THRESHOLD and len(found.escrow_shares[owner]) >= THRESHOLD
        for owner in range(4)
    )
    assert all(len(sets) == 1 for sets in found.commits.values())


def test_4_commits_short_of_a_quorum_doubled_or_of_another_round_open_nothing(federation: LyingFederation) -> None:
    liar = federation.liar
    earlier = closing(federation, dropped=[LATE])
    assert honest_end(federation) == "succeeded"
    number = closing(federation, dropped=[LATE])
    site = federation.sites[VICTIM]
    federation.sites[NAMES[1]].line.cut(after="commit_survivors")
    federation.sites[NAMES[2]].line.cut(after="commit_survivors")
    federation.turn(NAMES[1:3])
    own = commits(liar, number)
    for told, words in (
        (own[:2], "2 members committed to the survivor set, 3 must"),
        ([own[0]] * 3, "1 members committed to the survivor set, 3 must"),
        (commits(liar, earlier), "for another round or context"),
    ):
        liar.tell("GetEvidence", for_reveal(evidence(commits=told)), to=[VICTIM])
        assert_refuses(site, ProtocolViolation, words)
        assert site.phase(number) is RoundPhase.BOUND

    assert liar.heard("RevealShares", VICTIM, round=number) == []
    assert honest_end(federation) == "succeeded"


def test_5_a_survivor_set_too_small_doubled_or_with_strangers_binds_nobody(federation: LyingFederation) -> None:
    liar, site = federation.liar, federation.sites[VICTIM]
    absent = federation.sites[LATE]
    number = open_round(federation)
    absent.line.cut(before="report_prepared")
    for name in NAMES[:3]:
        federation.sites[name].line.cut(before="evidence")
    federation.turn_until(lambda: absent.line.is_cut and len(prepared(federation, number)) == 3)
    federation.advance(200.5)
    federation.turn_until(lambda: all(federation.sites[name].line.is_cut for name in NAMES[:3]))
    for name in NAMES[:3]:
        federation.sites[name].line.mend()

    slow = partial(evidence, fast=False)
    for lie, words in (
        (slow(survivors=NAMES[:2]), "2 survivors are below the floor of 3"),
        (slow(survivors=[NAMES[0], NAMES[1], NAMES[1], NAMES[2]]), "names a member twice"),
        (slow(survivors=[NAMES[0], NAMES[1], LATE]), "is not part of the cohort"),
        (slow(survivors=[*NAMES[:3], "site-9"]), "site-9 is not in the key roster"),
    ):
        liar.tell("GetEvidence", lie, to=[VICTIM])
        assert_refuses(site, ProtocolViolation, words)

    assert site.phase(number) is RoundPhase.MASKED
    assert liar.heard("CommitSurvivors", VICTIM, round=number) == []
    assert liar.heard("RevealShares", VICTIM, round=number) == []
    assert honest_end(federation) == "succeeded"


def prepared(federation: LyingFederation, number: int) -> list[str]:
    return [name for name, (state, _) in federation.participations(number).items() if state == "prepared"]


def test_6_a_receipt_forged_missing_or_of_another_round_closes_nothing(federation: LyingFederation) -> None:
    liar, site = federation.liar, federation.sites[VICTIM]
    earlier = closing(federation)
    assert honest_end(federation) == "succeeded"
    number = closing(federation)
    own, before = receipts(liar, number), receipts(liar, earlier)
    signed = Signed.decode(own[LATE])
    receipt = Receipt.decode(signed.body)
    swapped = Signed(replace(receipt, upload_hash=bytes(32)).encode(), signed.signature).encode()
    forged = Signed.by_epoch_key(bytes(32), "upload", replace(receipt, upload_hash=bytes(32)).encode()).encode()
    first = [own[name] for name in NAMES[:3]]
    for told, kind, words in (
        ([*first, swapped], SignatureInvalid, "not that of site-3"),
        ([*first, forged], SignatureInvalid, "not that of site-3"),
        (first, ProtocolViolation, "not one for each survivor"),
        ([*first, own[NAMES[1]]], ProtocolViolation, "not one for each survivor"),
        ([*first, before[LATE]], ProtocolViolation, "site-3 signed upload for another round or context"),
        ([*first, b"junk"], MalformedMessage, ""),
    ):
        liar.tell("GetEvidence", evidence(receipts=told), to=[VICTIM])
        assert_refuses(site, kind, words)

    assert site.phase(number) is RoundPhase.MASKED
    assert liar.heard("RevealShares", VICTIM, round=number) == []
    assert honest_end(federation) == "succeeded"


# --- the start of a round: 11, 12, 13 and 29 ----------------------------------------------------------------------


def until_upload_is_due(federation: LyingFederation) -> int:
    """A round in which all but the victim have uploaded, and the victim has not been told to."""
    liar = federation.liar
    number = open_round(federation)
    liar.tell("GetAssignment", without("upload_update"), to=[VICTIM])
    federation.turn_until(lambda: len(uploaded(federation, number)) == len(federation.sites) - 1)
    federation.turn([VICTIM])
    assert liar.assigned[VICTIM, "upload_update"].upload_update.round == number
    return number


@pytest.fixture(scope="module")
def before_the_start(lab: Lab) -> Iterator[LyingFederation]:
    """Five sites, the first of which has an update ready; told the true start in the end, it is in the sum."""
    federation = lab.of(5)
    assert isinstance(federation, LyingFederation)
    assert honest_round(federation) == "succeeded"
    number = until_upload_is_due(federation)
    federation.liar.keep("ReportFailure", lambda call: round_pb2.ReportFailureResponse(), of=[VICTIM])
    yield federation
    assert honest_end(federation) == "succeeded"
    assert f"participants/{VICTIM}" in federation.round(number)["survivors"]


STARTS: dict[str, tuple[Callable[[Start], Start], str]] = {
    "11 another plan": (
        lambda start: replace(start, epoch_hash=bytes(32)),
        "starts under another plan, key epoch or roster",
    ),
    "11 another roster": (
        lambda start: replace(start, roster_hash=bytes(32)),
        "starts under another plan, key epoch or roster",
    ),
    "12 another model": (
        lambda start: replace(start, model_hash=bytes(32)),
        "starts from another model than this site received",
    ),
    "13 an older round": (lambda start: replace(start, round=start.round - 1), "is for another round"),
    "13 a later round": (lambda start: replace(start, round=start.round + 1), "is for another round"),
    "29 the site and one that conspires": (
        lambda start: replace(start, cohort=(0, 1)),
        "a cohort of 2 is below the floor of 4",
    ),
    "29 the site alone": (lambda start: replace(start, cohort=(0,)), "a cohort of 1 is below the floor of 4"),
    "29 a cohort without the site": (
        lambda start: replace(start, cohort=(1, 2, 3, 4)),
        "the round's cohort does not hold this site",
    ),
}


@pytest.mark.parametrize("lie", STARTS)
def test_11_12_13_29_a_start_that_is_not_the_rounds_own_gets_no_update_and_the_coordinator_hears_why(
    before_the_start: LyingFederation, lie: str
) -> None:
    liar, site = before_the_start.liar, before_the_start.sites[VICTIM]
    task = copy_of(liar.assigned[VICTIM, "upload_update"])
    number = task.upload_update.round
    change, words = STARTS[lie]
    task.upload_update.start = change(Start.decode(task.upload_update.start)).encode()
    liar.tell("GetAssignment", instead_of_tasks(task), to=[VICTIM])

    with capture_logs() as lines:
        site.turn()

    said = [(line["event"], line["reason"]) for line in lines if "reason" in line]
    assert said == [("task_failed", "PROTOCOL_VIOLATION"), ("round_given_up", "PROTOCOL_VIOLATION")]
    heard = liar.heard("ReportFailure", VICTIM, round=number)[-1]
    assert heard.reason == "PROTOCOL_VIOLATION"
    assert words in heard.message
    assert site.phase(number) is RoundPhase.PREPARED
    assert liar.uploads(VICTIM, number) == []


def test_12_a_site_that_was_given_another_model_is_in_no_sum_with_the_others(federation: LyingFederation) -> None:
    liar, site = federation.liar, federation.sites[VICTIM]
    assert honest_round(federation) == "succeeded"
    last = federation.round(int(federation.run()["round"]))
    newest, older = last["adapter_digest"], last["base_adapter_digest"]
    liar.tell(
        "GetAssignment", with_task(lambda task: setattr(task, "adapter_digest", older), "prepare_update"), to=[VICTIM]
    )
    liar.rewrite("ReportPrepared", lambda request: setattr(request, "adapter_digest", newest), of=[VICTIM])
    for name in NAMES[1:]:
        federation.sites[name].line.cut(before="evidence")
    number = open_round(federation)
    federation.turn_until(lambda: site.phase(number) is RoundPhase.PREPARED)

    def told(task: Any) -> None:
        task.start = replace(Start.decode(task.start), model_hash=model_of(site, number)).encode()

    liar.tell("GetAssignment", with_task(told, "upload_update"), to=[VICTIM])
    liar.keep("UploadMaskedUpdate", take_all, of=[VICTIM])
    federation.turn_until(lambda: site.phase(number) is RoundPhase.MASKED and len(uploaded(federation, number)) == 3)
    federation.advance(10.5)
    federation.turn_until(lambda: all(federation.sites[name].line.is_cut for name in NAMES[1:]))
    everybodys = list(receipts(liar, number).values())
    assert len(everybodys) == 4

    liar.tell("GetAssignment", with_task(told, "close_round"), to=[VICTIM])
    liar.tell("GetEvidence", evidence(survivors=NAMES, fast=True, receipts=everybodys), to=NAMES)
    for name in NAMES:
        federation.sites[name].line.mend()
        assert_refuses(federation.sites[name], ProtocolViolation, "signed upload for another round or context")
    assert liar.heard("RevealShares", round=number) == []
    assert honest_end(federation) == "succeeded"

    assert federation.round(number)["survivors"] == [f"participants/{name}" for name in NAMES[1:]]
    found = loot(liar, number, range(4))
    assert found.openable_sums(THRESHOLD) == [(1, 2, 3)]
    assert found.self_shares[0] == frozenset()


def model_of(site: Site, number: int) -> bytes:
    journal = site.journal()
    try:
        entry = journal.round("run", number)
    finally:
        journal.close()
    assert entry is not None
    return entry.model_hash


def take_all(call: Call) -> Any:
    return pb.UploadMaskedUpdateResponse(total_bytes=call.request[0].header.total_bytes)


def test_13_a_round_that_is_over_is_not_done_again_not_even_after_a_restart(federation: LyingFederation) -> None:
    liar = federation.liar
    number = closing(federation)
    assert honest_end(federation) == "succeeded"
    federation.turn()
    tasks = [liar.assigned[VICTIM, name] for name in ("upload_update", "close_round", "prepare_update")]
    assert {getattr(task, task.WhichOneof("task")).round for task in tasks} == {number}
    before = len(liar.calls)
    liar.tell("GetAssignment", instead_of_tasks(*tasks), to=[VICTIM])
    for restarted in (False, True):
        site = federation.reopen_site(VICTIM) if restarted else federation.sites[VICTIM]
        with capture_logs() as lines:
            site.turn()
        said = [line["message"] for line in lines if line["event"] == "task_out_of_turn"]
        assert said == [f"this site has nothing prepared for runs/run/rounds/{number}"] * 2
        assert site.phase(number) is RoundPhase.OVER
    assert {call.method for call in liar.calls[before:] if call.caller == VICTIM} == {"GetAssignment"}


# --- uploads: 14 and 16 -------------------------------------------------------------------------------------------


def test_14_asked_again_a_site_sends_the_same_bytes_or_says_that_it_is_out(federation: LyingFederation) -> None:
    liar = federation.liar
    number = closing(federation)
    liar.tell("GetAssignment", instead_of_tasks(liar.assigned[VICTIM, "upload_update"]), to=[VICTIM])
    liar.keep("GetUpload", lambda call: pb.GetUploadResponse(), of=[VICTIM])
    liar.keep("UploadMaskedUpdate", take_all, of=[VICTIM])
    federation.sites[VICTIM].turn()
    site = federation.reopen_site(VICTIM)
    site.turn()

    first, *again = liar.uploads(VICTIM, number)
    assert len(again) == 2
    assert all(parts == first for parts in again)

    liar.keep("ReportFailure", lambda call: round_pb2.ReportFailureResponse(), of=[VICTIM])
    (site.state / "spool" / f"run-{number}.masked").unlink()
    with capture_logs() as lines:
        site.turn()
    assert [line["reason"] for line in lines if line["event"] == "task_failed"] == ["UPDATE_LOST"]
    assert liar.heard("ReportFailure", VICTIM, round=number)[-1].reason == "UPDATE_LOST"
    assert len(liar.uploads(VICTIM, number)) == 3
    assert honest_end(federation) == "succeeded"


def test_16_an_upload_after_its_site_was_declared_dropped_stays_masked(federation: LyingFederation) -> None:
    liar, late = federation.liar, federation.sites[LATE]
    before = epoch_keys(late)
    number = closing(federation, dropped=[LATE])
    upload = held_upload(late, number)
    context = upload.masked.context
    late.line.mend()
    liar.tell("GetAssignment", instead_of_tasks(liar.assigned[LATE, "upload_update"]), to=[LATE])
    liar.keep("UploadMaskedUpdate", take_all, of=[LATE])
    late.turn()
    ((_, *chunks, receipt),) = liar.uploads(LATE, number)[-1:]
    assert receipt.receipt == upload.receipt
    assert tuple(part.chunk for part in chunks) == upload.chunks

    # The others bind to the set without it and open its escrow key; then they are asked for the set with it.
    liar.be_honest()
    names = NAMES[:3]
    federation.turn_until(
        lambda: all(federation.sites[n].phase(number) is RoundPhase.REVEALED for n in names), sites=names
    )
    with_late = evidence(survivors=NAMES, fast=True, receipts=list(receipts(liar, number).values()), commits=[])
    liar.tell("GetEvidence", with_late, to=NAMES)
    liar.keep("RevealShares", lambda call: pb.RevealSharesResponse(), of=NAMES)
    for name in names:
        liar.tell("GetAssignment", instead_of_tasks(liar.assigned[name, "close_round"]), to=[name])
    federation.turn(names)
    found = loot(liar, number, range(4))
    assert found.openable_sums(THRESHOLD) == [(0, 1, 2)]
    assert found.escrow_shares[3] == {0, 1, 2}
    assert found.self_shares[3] == frozenset()

    # What it can take off: every pair mask, with the keys out of the escrow. What stays is the self mask.
    store = open_store(federation.config.database_url)
    with store.read() as reader:
        opened = opened_keys(reader, reader.run("run"), reader.round("run", number), context)
    store.close()
    seeds = [hashing.pair_mask_seed(opened.pair_keys[3, other], context.hash, other, 3) for other in range(3)]
    words = np.frombuffer(upload.chunks[0], dtype="<u8").astype(np.uint64)
    StreamSum(context.layout, plus=seeds, minus=()).add_into(0, words)
    assert lanes_in_range(words, context) < 0.5
    own = hashing.self_key(before.skip_to(number).chain, context.epoch.plan.run_id, number)
    self_mask = hashing.self_mask_seed(own, context.hash, 3)
    StreamSum(context.layout, plus=(), minus=[self_mask]).add_into(0, words)
    assert lanes_in_range(words, context) == 1.0
    assert honest_end(federation) == "succeeded"


def lanes_in_range(words: Words, context: RoundContext) -> float:
    """Share of lanes that could be one site's own values: at most 2 L."""
    plan = context.epoch.plan
    bits = 64 // plan.lanes
    lanes = (words[:, None] >> np.arange(plan.lanes, dtype=np.uint64) * np.uint64(bits)) & np.uint64((1 << bits) - 1)
    return float(np.mean(lanes <= 2 * lane_limit(plan.lanes, plan.members_limit)))


def epoch_keys(site: Site) -> EpochKeys:
    """The keys that a site has for the rounds to come."""
    journal = site.journal()
    try:
        entry = journal.epoch("run", 1)
    finally:
        journal.close()
    assert entry is not None
    return EpochKeys.from_bytes(entry.state)
