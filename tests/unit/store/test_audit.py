"""The audit log's canonical line and chain, apart from any database."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.rounds.model import AuditEvent
from coordinator.store.audit import GENESIS, AuditHead, canonical_line, chain_digest, verify

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


def test_the_same_instant_in_another_zone_has_the_same_line():
    assert canonical_line(replace(EVENT, time=EVENT.time.astimezone(UTC))) == canonical_line(EVENT)
