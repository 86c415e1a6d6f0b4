"""Which calls are lines of the audit log: each that is new, and never more than so many."""

from __future__ import annotations

from coordinator.call_lines import MOST_REFUSALS, REFUSALS_SECONDS, CallBook


def refusals() -> CallBook:
    return CallBook(REFUSALS_SECONDS, MOST_REFUSALS)


def note(book: CallBook, actor: str = "participants/bank", reason: str = "PERMISSION_DENIED", *, now: float) -> None:
    book.note(actor, "accord.v1.AdminService/StartRun", reason=reason, message="no", now=now)


def test_the_first_refusal_is_a_line_at_once_and_the_others_are_counted():
    book = refusals()
    for second in range(1000):
        note(book, now=second / 10)
    (first,) = book.take(100)
    assert (first.actor, first.reason, first.count) == ("participants/bank", "PERMISSION_DENIED", 1)
    assert book.take(599) == []
    (rest,) = book.take(600)
    assert rest.count == 999


def test_another_reason_and_another_caller_are_lines_of_their_own():
    book = refusals()
    note(book, now=0)
    note(book, reason="RESOURCE_EXHAUSTED", now=0)
    note(book, actor="operators/alice", now=0)
    assert len(book.take(1)) == 3


def test_a_caller_is_told_of_again_in_the_next_period():
    book = refusals()
    note(book, now=1)
    assert len(book.take(2)) == 1
    note(book, now=601)
    assert [line.count for line in book.take(602)] == [1]


def test_a_flood_of_names_is_so_many_lines_and_one_that_counts_the_rest():
    book = refusals()
    for number in range(100_000):
        note(book, actor=f"address/10.{number >> 16}.{number >> 8 & 255}.{number & 255}", now=1)
    assert len(book.take(2)) == 100
    (rest,) = book.take(601)
    assert (rest.actor, rest.reason, rest.count) == ("many", "NOT_LISTED", 99_900)


def test_a_call_that_was_answered_is_of_a_kind_by_its_method():
    book = CallBook(86_400, 1000)
    for second in range(0, 86_400, 60):
        for method in ("GetRun", "ListRuns"):
            book.note("operators/alice", method, now=second)
    first = book.take(86_399)
    assert [(line.method, line.count, line.reason) for line in first] == [("GetRun", 1, ""), ("ListRuns", 1, "")]
    assert [(line.method, line.count) for line in book.take(86_400)] == [("GetRun", 1439), ("ListRuns", 1439)]


def test_what_was_counted_is_told_when_nobody_counts_on():
    book = refusals()
    for _ in range(5):
        note(book, now=1)
    assert [line.count for line in book.close(2)] == [1, 4]
    assert book.close(3) == []
