"""The ledger forgets nothing: kills leave whole lines, and changed, missing or older lines are noticed."""

from __future__ import annotations

import pytest

from common.errors import StorageFailed
from participant.privacy.ledger import Entry, EntryKind, Ledger


def entry(job, *, kind=EntryKind.TRAINING, round_=1):
    return Entry(
        kind=kind,
        at="2026-01-01T00:00:00+00:00",
        run="tune",
        run_id="ef" * 32,
        round=round_,
        job=job,
        records=100,
        sample_rate=0.1,
        noise_multiplier=1.0,
        clip=0.5,
        steps=10,
    )


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "privacy" / "records.jsonl", counter=tmp_path / "counter")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "privacy" / "records.jsonl"


def test_what_was_written_is_read_by_another_process(ledger, tmp_path):
    assert ledger.entries() == ()
    ledger.append(entry("a"))
    ledger.append(entry("b", round_=2))
    again = Ledger(tmp_path / "privacy" / "records.jsonl", counter=tmp_path / "counter")
    assert [(found.job, found.round) for found in again.training()] == [("a", 1), ("b", 2)]


def test_only_its_owner_can_read_it(ledger, file):
    ledger.append(entry("a"))
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_job_whose_result_never_left_costs_nothing_and_stays_written(ledger):
    ledger.append(entry("a"))
    ledger.append(entry("b"))
    ledger.append(entry("a", kind=EntryKind.RETURNED))
    assert [found.job for found in ledger.training()] == ["b"]
    assert len(ledger.entries()) == 3


def test_a_line_that_a_kill_left_half_written_is_none_and_the_next_is_whole(ledger, file):
    ledger.append(entry("a"))
    whole = file.read_bytes()
    ledger.append(entry("b"))
    half = file.read_bytes()[len(whole) : len(whole) + 40]
    for cut in (b"", half[:1], half):
        file.write_bytes(whole + cut)
        (file.parent.parent / "counter").unlink(missing_ok=True)
        assert [found.job for found in ledger.entries()] == ["a"]
    ledger.append(entry("c"))
    assert [found.job for found in ledger.entries()] == ["a", "c"]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda lines: [lines[0].replace(b'"steps":10', b'"steps":1'), *lines[1:]], "does not follow"),
        (lambda lines: [lines[0], lines[2]], "has 2 entries and had 3"),
        (lambda lines: [lines[0], lines[2], lines[1]], "does not follow"),
        (lambda lines: [lines[0], b"{}\n", lines[2]], "line 2 .* cannot be read"),
    ],
    ids=["changed", "removed", "reordered", "broken"],
)
def test_a_ledger_that_was_changed_is_not_believed_and_not_written_to(ledger, file, spoil, why):
    for job in "abc":
        ledger.append(entry(job))
    file.write_bytes(b"".join(spoil(file.read_bytes().splitlines(keepends=True))))
    with pytest.raises(StorageFailed, match=why):
        ledger.entries()
    with pytest.raises(StorageFailed, match=why):
        ledger.append(entry("d"))


def test_a_ledger_from_a_backup_is_told_by_its_counter(ledger, file):
    ledger.append(entry("a"))
    backup = file.read_bytes()
    ledger.append(entry("b"))
    file.write_bytes(backup)
    with pytest.raises(StorageFailed, match="has 1 entries and had 2"):
        ledger.training()


def test_a_ledger_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "privacy").write_text("a file where the folder should be")
    with pytest.raises(StorageFailed):
        Ledger(tmp_path / "privacy" / "records.jsonl", counter=tmp_path / "counter").append(entry("a"))
