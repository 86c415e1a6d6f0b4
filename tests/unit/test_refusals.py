"""Which refusals are lines of the audit log: each that is new, and never more than so many."""

from __future__ import annotations

from coordinator.refusals import RefusalBook


def note(book: RefusalBook, actor: str = "participants/bank", reason: str = "PERMISSION_DENIED", *, now: float) -> None:
    book.note(actor, reason, method="accord.v1.AdminService/StartRun", message="no", now=now)


def test_the_first_refusal_is_a_line_at_once_and_the_others_are_counted():
    book = RefusalBook(period_seconds=600)
    for second in range(1000):
        note(book, now=second / 10)
    (first,) = book.take(100)
    assert (first.actor, first.reason, first.count) == ("participants/bank", "PERMISSION_DENIED", 1)
    assert book.take(599) == []
    (rest,) = book.take(600)
    assert rest.count == 999


def test_another_reason_and_another_caller_are_lines_of_their_own():
    book = RefusalBook()
    note(book, now=0)
    note(book, reason="RESOURCE_EXHAUSTED", now=0)
    note(book, actor="operators/alice", now=0)
    assert len(book.take(1)) == 3


def test_a_caller_is_told_of_again_in_the_next_period():
    book = RefusalBook(period_seconds=600)
    note(book, now=1)
    assert len(book.take(2)) == 1
    note(book, now=601)
    assert [line.count for line in book.take(602)] == [1]


def test_a_flood_of_names_is_so_many_lines_and_one_that_counts_the_rest():
    book = RefusalBook(period_seconds=600, most_lines=100)
    for number in range(100_000):
        note(book, actor=f"address/10.{number >> 16}.{number >> 8 & 255}.{number & 255}", now=1)
    assert len(book.take(2)) == 100
    (rest,) = book.take(601)
    assert (rest.actor, rest.reason, rest.count) == ("many", "NOT_LISTED", 99_900)
