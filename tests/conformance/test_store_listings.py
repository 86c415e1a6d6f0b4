"""What every `Store` must do with listings, pages and page tokens."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import InvalidArgument
from common.states import RunState
from tests.conformance import samples
from tests.conformance.samples import NOW

COUNT = 7


@pytest.fixture
def filled(store):
    """Seven of everything; two runs and two tokens of the same instant."""
    ages = (0, 1, 1, 2, 3, 4, 5)
    with store.write() as writer:
        for index, age in enumerate(ages):
            writer.add_run(samples.run(f"run-{index}", age_hours=age))
            writer.add_join_token(samples.token(f"t{index}", age_hours=age))
            writer.add_web_token(samples.web_token(f"t{index}", age_hours=age))
            writer.put_participant(samples.participant(f"site-{index}"))
            writer.add_round(samples.round_(index + 1, run="run-0"))
            writer.add_adapter(samples.adapter(f"digest{index}", index, run="run-0"))
            writer.append_audit(time=NOW, actor="a", action="b", subject=str(index), details="{}")
        writer.add_round(samples.round_(1, run="run-1"))
        writer.add_adapter(samples.adapter("other", 1, run="run-1"))
        for index in range(COUNT):
            writer.append_audit(time=NOW, actor="a", action="b", subject="one", details=str(index))
    return store


LISTINGS = {
    "runs": (lambda reader, **page: reader.runs(**page), lambda row: row.name, "0 2 1 3 4 5 6"),
    "tokens": (lambda reader, **page: reader.join_tokens(**page), lambda row: row.name, "0 2 1 3 4 5 6"),
    "web tokens": (lambda reader, **page: reader.web_tokens(**page), lambda row: row.name, "0 2 1 3 4 5 6"),
    "rounds": (lambda reader, **page: reader.rounds("run-0", **page), lambda row: row.number, "7 6 5 4 3 2 1"),
    "adapters": (lambda reader, **page: reader.adapters("run-0", **page), lambda row: row.digest, "6 5 4 3 2 1 0"),
    "participants": (lambda reader, **page: reader.participants(**page), lambda row: row.name, "0 1 2 3 4 5 6"),
    "audit": (
        lambda reader, **page: reader.audit_events(**page),
        lambda row: row.sequence % 10,
        "1 2 3 4 5 6 7 8 9 0 1 2 3 4",
    ),
    "audit of one": (
        lambda reader, **page: reader.audit_events(subject="one", **page),
        lambda row: row.details,
        "0 1 2 3 4 5 6",
    ),
    "newest audit of one": (
        lambda reader, **page: reader.audit_events(subject="one", newest_first=True, **page),
        lambda row: row.details,
        "6 5 4 3 2 1 0",
    ),
}
EVERY_LISTING = pytest.mark.parametrize(("listing", "name", "order"), LISTINGS.values(), ids=LISTINGS)


def pages(reader, listing, page_size):
    page = listing(reader, page_size=page_size)
    found = [page]
    while page.next_token:
        page = listing(reader, page_size=page_size, page_token=page.next_token)
        found.append(page)
    return found


@EVERY_LISTING
def test_a_listing_has_the_order_that_it_says_and_no_token_when_nothing_follows(filled, listing, name, order):
    with filled.read() as reader:
        page = listing(reader)
    assert [str(name(row))[-1] for row in page.rows] == order.split()
    assert page.next_token == ""


@EVERY_LISTING
@pytest.mark.parametrize("page_size", [1, 2, 3, COUNT - 1, COUNT, COUNT + 1])
def test_the_pages_together_are_the_listing_and_none_of_them_is_empty(filled, listing, name, order, page_size):
    with filled.read() as reader:
        whole = listing(reader).rows
        found = pages(reader, listing, page_size)
    assert [row for page in found for row in page.rows] == list(whole)
    assert [len(page.rows) for page in found[:-1]] == [page_size] * (len(found) - 1)
    assert found[-1].rows


@EVERY_LISTING
def test_a_token_of_another_listing_is_refused(filled, listing, name, order):
    with filled.read() as reader:
        tokens = {
            other: LISTINGS[other][0](reader, page_size=2).next_token
            for other in LISTINGS
            if LISTINGS[other][0] is not listing
        }
        for token in tokens.values():
            with pytest.raises(InvalidArgument, match="page token"):
                listing(reader, page_size=2, page_token=token)


def test_a_token_is_good_for_the_same_run_and_the_same_states_alone(filled):
    with filled.read() as reader:
        token = reader.rounds("run-0", page_size=1).next_token
        with pytest.raises(InvalidArgument):
            reader.rounds("run-1", page_size=1, page_token=token)
        token = reader.runs(states=[RunState.RUNNING, RunState.PAUSED], page_size=1).next_token
        assert reader.runs(states=[RunState.PAUSED, RunState.RUNNING], page_size=1, page_token=token).rows
        with pytest.raises(InvalidArgument):
            reader.runs(page_size=1, page_token=token)


def test_rows_that_come_and_go_between_pages_neither_repeat_nor_hide_others(filled, stores):
    with filled.read() as reader:
        first = reader.join_tokens(page_size=3)
    with filled.write() as writer:
        writer.add_join_token(samples.token("newest", age_hours=-1))
    assert stores.tamper("DELETE FROM join_tokens WHERE name = :name", name=first.rows[-1].name) == 1
    with filled.read() as reader:
        second = reader.join_tokens(page_size=10, page_token=first.next_token)
    assert [token.name for token in second.rows] == ["t3", "t4", "t5", "t6"]


@EVERY_LISTING
def test_a_negative_page_size_is_refused(filled, listing, name, order):
    with filled.read() as reader, pytest.raises(InvalidArgument, match="page_size"):
        listing(reader, page_size=-1)


def forged(*content):
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


_RUN_KEY = "2026-03-01T12:30:15+00:00"


@pytest.mark.parametrize(
    "token",
    [
        "!",
        "a",
        "\ud800",
        "A" * 10_000,
        forged(),
        forged(["runs"]),
        forged(["runs"], _RUN_KEY),
        forged(["runs"], _RUN_KEY, "name", "more"),
        forged(["runs"], "yesterday", "name"),
        forged(["runs"], "2026-03-01T12:30:15", "name"),
        forged(["runs"], _RUN_KEY, 5),
        forged(["runs"], _RUN_KEY, None),
        forged(["runs"], _RUN_KEY, "\0"),
        forged(["runs"], _RUN_KEY, "\ud800"),
        base64.urlsafe_b64encode(b"[" * 3000).decode(),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    ],
    ids=lambda token: ascii(token)[:20],
)
def test_a_token_that_was_not_given_out_is_refused(filled, token):
    with filled.read() as reader, pytest.raises(InvalidArgument, match="page token"):
        reader.runs(page_size=1, page_token=token)


@pytest.mark.parametrize("sequence", [-1, 2**63, 2**80, 1.5, True, "1", None])
def test_a_forged_number_in_a_token_is_refused(filled, sequence):
    with filled.read() as reader, pytest.raises(InvalidArgument, match="page token"):
        reader.audit_events(page_size=1, page_token=forged(["audit_events"], sequence))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    token=st.text(min_size=1, max_size=80)
    | st.binary(min_size=1).map(lambda raw: base64.urlsafe_b64encode(raw).decode())
)
def test_no_text_makes_a_listing_fail_otherwise(filled, token):
    with filled.read() as reader, pytest.raises(InvalidArgument, match="page token"):
        reader.participants(page_size=1, page_token=token)
