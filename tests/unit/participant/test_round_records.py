"""What a site keeps of a round that is over, for audits: enough for that, nothing secret, and not for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.lying_coordinator import ROUND, RUN, World
from common.secagg import Masked, Masking, RoundContext, Start
from participant.journal import KEPT_RECORDS, Journal, RoundRecord

NAMES = ("alpha", "bravo", "charlie", "delta")
RESULT = "ab" * 32


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path, NAMES, seed=0)
    yield made
    made.close()


def uploaded(world: World) -> Start:
    roster = world.set_up()
    world.prepare()
    start = world.context(roster).start
    world.upload(start)
    return start


def record_of(journal: Journal) -> RoundRecord:
    (found,) = journal.records(RUN)
    return found


def test_of_a_round_that_is_over_its_context_and_the_digests_of_the_own_upload_stay(world):
    start = uploaded(world)
    member = world.members["bravo"]
    assert world.ask_to_close("bravo", world.evidence(NAMES, is_fast=True), start)
    before = member.journal.round(RUN, ROUND)
    assert member.journal.records(RUN) == ()

    member.desk.forget_round(RUN, ROUND, result=RESULT)

    kept = record_of(member.journal)
    context = RoundContext.decode(kept.context)
    assert context.start == start
    assert context.members.org_ids == NAMES
    assert (kept.chunk_digests, kept.result) == (before.chunk_digests, RESULT)
    assert len(kept.chunk_digests) == 32 * context.layout.chunks
    after = member.journal.round(RUN, ROUND)
    assert (after.state, after.chunk_digests) == (b"", b"")


def test_nothing_that_opens_or_signs_anything_stays(world):
    roster = world.set_up()
    world.prepare()
    start = world.context(roster).start
    member = world.members["bravo"]
    masking = world.masking_of("bravo", start)
    assert isinstance(masking, Masking)
    world.upload(start)
    masked = Masked.from_bytes(member.journal.round(RUN, ROUND).state)
    secrets = [
        masked.signing_seed,
        masking.self_seed,
        *masking.pair_seeds.values(),
        *masked.shares.values(),
    ]
    assert len(secrets) > 2 * len(NAMES) - 1

    member.desk.forget_round(RUN, ROUND, result="")

    kept = record_of(member.journal)
    for secret in secrets:
        assert secret not in kept.context + kept.chunk_digests
    assert str(kept.context) not in repr(kept)


def test_forgetting_again_changes_nothing_of_what_was_kept(world):
    uploaded(world)
    member = world.members["alpha"]
    member.desk.forget_round(RUN, ROUND, result=RESULT)
    kept = record_of(member.journal)
    member.desk.forget_round(RUN, ROUND, result="")
    assert record_of(member.journal) == kept


def test_a_round_in_which_this_site_masked_nothing_leaves_no_record(world):
    world.set_up()
    world.prepare()
    member = world.members["alpha"]
    member.desk.forget_round(RUN, ROUND, result=RESULT)
    assert member.journal.records(RUN) == ()


def test_the_newest_records_of_each_run_stay_and_survive_a_restart_and_the_end_of_the_run(tmp_path: Path):
    journal = Journal(tmp_path / "journal.sqlite")
    for run, last in (("run", KEPT_RECORDS + 3), ("other", 2)):
        for number in range(1, last + 1):
            journal.put_record(RoundRecord(run, number, b"context", bytes(32 * number), RESULT))
    journal.forget_keys("run")
    journal.close()

    journal = Journal(tmp_path / "journal.sqlite")
    numbers = [record.round for record in journal.records("run")]
    assert numbers == list(range(KEPT_RECORDS + 3, 3, -1))
    assert [record.round for record in journal.records("other")] == [2, 1]
    assert journal.records("run")[0] == RoundRecord(
        "run", KEPT_RECORDS + 3, b"context", bytes(32 * (KEPT_RECORDS + 3)), RESULT
    )
    journal.close()
