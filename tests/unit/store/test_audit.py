"""The audit log's canonical line and chain, apart from any database."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InvalidArgument
from coordinator.rounds.model import AuditEvent
from coordinator.store.audit import GENESIS, AuditHead, canonical_line, chain_digest, expected_head, verify

EVENT = AuditEvent(
    sequence=1,
    time=datetime(2026, 3, 1, 21, 30, 0, 5, tzinfo=timezone(timedelta(hours=9))),
    actor="operators/älice",
    action="run.create",
    subject="runs/one",
    details='{"a": 1}',
    chain_digest="",
)


def test_the_canonical_line_is_what_other_verifiers_were_told():
    """A known answer: a change of this line breaks every log that exists."""
    assert canonical_line(EVENT) == (
        b'{"action":"run.create","actor":"operators/\\u00e4lice","details":"{\\"a\\": 1}","sequence":1,'
        b'"subject":"runs/one","time":"2026-03-01T12:30:00.000005Z"}'
    )
    assert hashlib.sha256(b"accord audit log 1").hexdigest() == GENESIS
    assert chain_digest(GENESIS, EVENT) == hashlib.sha256(bytes.fromhex(GENESIS) + canonical_line(EVENT)).hexdigest()


def chain(length):
    events, previous = [], GENESIS
    for index in range(length):
        event = replace(EVENT, sequence=index + 1, subject=str(index))
        previous = chain_digest(previous, event)
        events.append(replace(event, chain_digest=previous))
    return events


def head(events):
    return AuditHead(events[-1].sequence, events[-1].chain_digest) if events else AuditHead()


TEXTS = st.fixed_dictionaries({name: st.text(max_size=5) for name in ("actor", "action", "subject", "details")})


@given(one=TEXTS, two=TEXTS)
def test_different_events_have_different_lines(one, two):
    lines = [canonical_line(replace(EVENT, **fields)) for fields in (one, two)]
    assert (lines[0] == lines[1]) is (one == two)
    assert json.loads(lines[0])["details"] == one["details"]


@settings(max_examples=200)
@given(data=st.data(), length=st.integers(1, 6))
def test_a_log_is_intact_only_as_it_was_written(data, length):
    """Any selection of the events in any order, checked against the head of the whole log."""
    events = chain(length)
    changed = data.draw(st.lists(st.sampled_from(events), max_size=length + 1))
    verdict = verify(changed, head=head(events))
    assert verdict.intact is (changed == events)
    good = 0
    while good < len(changed) and good < length and changed[good] == events[good]:
        good += 1
    assert verdict.first_broken_sequence == (0 if changed == events else good + 1)
    assert verdict.chain_digest == (events[good - 1].chain_digest if good else GENESIS)
    assert verdict.events == len(changed)


def test_without_a_head_a_shorter_log_looks_whole_and_with_one_it_does_not():
    events = chain(4)
    assert verify(events[:3]).intact
    assert verify(events[:3], head=head(events)).first_broken_sequence == 4


def test_a_log_that_goes_on_after_its_head_is_broken_there():
    events = chain(4)
    assert verify(events, head=head(events[:2])).first_broken_sequence == 3


def test_a_head_of_another_log_is_found():
    events = chain(2)
    assert verify(events, head=AuditHead(2, "0" * 64)).first_broken_sequence == 2
    assert verify([], head=AuditHead(0, "0" * 64)).first_broken_sequence == 1


def test_a_head_that_was_noted_earlier_is_still_in_a_log_that_went_on():
    events = chain(5)
    assert verify(events, head=head(events), expected=head(events[:3])).intact
    assert verify(events, head=head(events), expected=head(events)).intact


def test_a_log_whose_end_and_head_were_taken_away_is_found_by_a_head_that_was_noted_elsewhere():
    events = chain(5)
    left = events[:3]
    assert verify(left, head=head(left)).intact
    assert verify(left, head=head(left), expected=head(events)).first_broken_sequence == 4
    assert verify([], head=AuditHead(), expected=head(events)).first_broken_sequence == 1


def test_a_log_that_was_written_anew_is_found_by_a_head_that_was_noted_elsewhere():
    events = chain(5)
    anew: list[AuditEvent] = []
    for event in events:
        changed = replace(event, actor="somebody-else") if event.sequence == 2 else event
        before = anew[-1].chain_digest if anew else GENESIS
        anew.append(replace(changed, chain_digest=chain_digest(before, changed)))
    assert verify(anew, head=head(anew)).intact
    found = verify(anew, head=head(anew), expected=head(events[:4]))
    assert found.first_broken_sequence == 4
    assert verify(anew, head=head(anew), expected=head(events[:1])).intact  # it was true up to there


@pytest.mark.parametrize(("sequence", "digest"), [(1, ""), (0, "0" * 64), (-1, "0" * 64), (1, "0" * 63), (1, "G" * 64)])
def test_half_a_head_is_refused(sequence, digest):
    with pytest.raises(InvalidArgument, match="64 hex digits"):
        expected_head(sequence, digest)
    assert expected_head(0, "") is None


def test_the_same_instant_in_another_zone_has_the_same_line():
    assert canonical_line(replace(EVENT, time=EVENT.time.astimezone(UTC))) == canonical_line(EVENT)
