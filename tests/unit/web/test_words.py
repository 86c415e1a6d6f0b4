"""Times, lengths and figures as the page's readers see them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from coordinator.web import words
from tests.fakes import START_OF_TIME as NOW


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "just now"),
        (9, "just now"),
        (-9, "in a moment"),
        (19, "10 s ago"),
        (59, "50 s ago"),
        (60, "1 min ago"),
        (3599, "59 min ago"),
        (3600, "1 h ago"),
        (47 * 3600, "47 h ago"),
        (48 * 3600, "2 days ago"),
        (-90, "in 1 min"),
        (-3650 * 86_400, "in 10 years"),
    ],
)
def test_how_long_ago(seconds, text):
    assert words.ago(NOW - timedelta(seconds=seconds), NOW) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (80, "1 min 20 s"),
        (7500, "2 h 5 min"),
        (86_400, "1 day"),
        (4 * 86_400 + 3 * 3600, "4 days 3 h"),
    ],
)
def test_how_long(seconds, text):
    assert words.length(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234567, "1 234 567"), (2.00641, "2.006"), (0.000123456, "0.0001235"), (12345.6, "12 346")],
)
def test_figures_have_four_digits_and_counts_all(value, text):
    assert words.figure(value).replace("\N{THIN SPACE}", " ") == text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_says_so(value):
    assert words.figure(value) == "not a number"


def test_sizes_names_and_reasons():
    assert [words.size(n) for n in (0, 999, 1000, 1_250_000, 3e12)] == ["0 B", "999 B", "1.0 kB", "1.2 MB", "3000.0 GB"]
    assert words.names(["a", "b", "c", "d"]) == "a, b, c, d"
    assert words.names(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert words.why("QUORUM_MISSED", "too few") == "too few (QUORUM_MISSED)"
    assert words.why("", "") == ""
    assert words.subject(f"adapters/{'ab' * 32}") == "adapters/abababababab…"
    assert words.subject("runs/support") == "runs/support"


def test_a_state_that_is_not_known_looks_like_none_of_the_known():
    assert words.tone("something new") == "idle"
    assert len(set(words.SIGNS.values())) == len(words.SIGNS), "the sign alone tells the tone"
