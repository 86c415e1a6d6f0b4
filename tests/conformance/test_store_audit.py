"""What every `Store` must do with the audit log: keep it in order, chained, and let nobody change it unnoticed."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import pytest

from coordinator.store import audit
from tests.conformance.samples import AWKWARD, NOW

LENGTH = 5


@pytest.fixture
def logged(store):
    for index in range(LENGTH):
        with store.write() as writer:
            writer.append_audit(
                time=NOW + timedelta(seconds=index),
                actor=f"operator-{index}",
                action="run.create",
                subject=f"runs/{index}",
                details='{"message":"' + AWKWARD.encode("unicode_escape").decode().replace('"', "'") + '"}',
            )
    return store


def verdict(store):
    with store.read() as reader:
        return audit.verify(reader.audit_chain(), head=reader.audit_head())


def test_an_untouched_log_is_intact_and_ends_with_the_digest_that_append_returned(store):
    assert verdict(store) == audit.AuditVerdict(
        events=0, first_broken_sequence=0, chain_digest=audit.GENESIS, sequence=0
    )
    with store.write() as writer:
        one = writer.append_audit(time=NOW, actor="a", action="b", subject="c", details="{}")
        two = writer.append_audit(time=NOW, actor="a", action="b", subject="c", details="{}")
    assert (one.sequence, two.sequence) == (1, 2)
    assert verdict(store) == audit.AuditVerdict(
        events=2, first_broken_sequence=0, chain_digest=two.chain_digest, sequence=2
    )
    assert verdict(store).intact


def test_the_digest_is_sha256_over_the_digest_before_and_the_line(logged):
    with logged.read() as reader:
        events = tuple(reader.audit_chain())
    previous = bytes.fromhex(audit.GENESIS)
    for event in events:
        previous = hashlib.sha256(previous + audit.canonical_line(event)).digest()
        assert event.chain_digest == previous.hex()
    assert len(events) == LENGTH


def test_a_log_longer_than_one_batch_is_read_whole_and_in_order(store):
    with store.write() as writer:
        for index in range(1203):
            writer.append_audit(time=NOW, actor="a", action="b", subject=str(index), details="{}")
    with store.read() as reader:
        assert [int(event.subject) for event in reader.audit_chain()] == list(range(1203))
    assert verdict(store).intact


@pytest.mark.parametrize("sequence", [1, 3, LENGTH])
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("time", "2026-03-01T12:30:15.123457+00:00"),
        ("actor", "somebody-else"),
        ("action", "run.cancel"),
        ("subject", "runs/9"),
        ("details", '{"message": "another space"}'),
        ("chain_digest", "0" * 64),
        ("chain_digest", "not a digest"),
    ],
    ids=lambda value: value[:12],
)
def test_a_changed_column_is_found_at_its_event(logged, stores, column, value, sequence):
    assert stores.tamper(f"UPDATE audit_events SET {column} = :v WHERE sequence = :s", v=value, s=sequence) == 1
    found = verdict(logged)
    assert not found.intact
    assert found.first_broken_sequence == sequence
    assert found.events == LENGTH


@pytest.mark.parametrize("sequence", [1, 3, LENGTH])
def test_a_deleted_event_is_found_also_the_last_one(logged, stores, sequence):
    assert stores.tamper("DELETE FROM audit_events WHERE sequence = :s", s=sequence) == 1
    found = verdict(logged)
    assert not found.intact
    assert found.first_broken_sequence == sequence


def test_a_log_that_was_emptied_is_found(logged, stores):
    assert stores.tamper("DELETE FROM audit_events") == LENGTH
    assert verdict(logged).first_broken_sequence == 1


def test_a_renumbered_log_is_found_where_the_gap_was_closed(logged, stores):
    stores.tamper("DELETE FROM audit_events WHERE sequence = 2")
    for sequence in (3, 4, 5):
        stores.tamper("UPDATE audit_events SET sequence = :new WHERE sequence = :old", new=sequence - 1, old=sequence)
    assert verdict(logged).first_broken_sequence == 2


def test_two_events_that_changed_places_are_found(logged, stores):
    for old, new in ((2, 99), (3, 2), (99, 3)):
        stores.tamper("UPDATE audit_events SET sequence = :new WHERE sequence = :old", new=new, old=old)
    assert verdict(logged).first_broken_sequence == 2


def test_a_copied_event_at_the_end_is_found(logged, stores):
    stores.tamper(
        "INSERT INTO audit_events SELECT 6, time, actor, action, subject, details, chain_digest "
        "FROM audit_events WHERE sequence = 5"
    )
    assert verdict(logged).first_broken_sequence == 6


def test_the_log_goes_on_after_its_end_was_taken_away_but_never_looks_whole_again(logged, stores):
    stores.tamper("DELETE FROM audit_events WHERE sequence = 5")
    with logged.write() as writer:
        event = writer.append_audit(time=NOW, actor="a", action="b", subject="c", details="{}")
    assert event.sequence == 6
    assert verdict(logged).first_broken_sequence == 5
