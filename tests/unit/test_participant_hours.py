"""The site's weekly hours: reading them, and what the clocks' change does to them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from participant.hours import DAYS, MINUTES_A_DAY, Hours, Opening, parse_opening

ZURICH = ZoneInfo("Europe/Zurich")
UNHURRIED = settings(deadline=None)
MOMENTS = st.integers(0, 5 * 366 * 24 * 60).map(
    lambda minutes: datetime(2024, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
)


def hours(*texts: str, zone=UTC) -> Hours:
    return Hours(zone, tuple(opening for text in texts for opening in parse_opening(text)))


def test_hours_over_midnight_belong_to_the_day_on_which_they_begin():
    night = hours("fri 19:00-07:00")
    assert night.is_open(datetime(2026, 1, 2, 23, 0, tzinfo=UTC))
    assert night.is_open(datetime(2026, 1, 3, 6, 59, 59, tzinfo=UTC))
    assert not night.is_open(datetime(2026, 1, 3, 7, 0, tzinfo=UTC))
    assert not night.is_open(datetime(2026, 1, 2, 6, 0, tzinfo=UTC))


def test_sunday_night_goes_on_into_monday():
    assert hours("sun 22:00-02:00").is_open(datetime(2026, 1, 5, 1, 0, tzinfo=UTC))


def test_a_day_range_may_wrap_around_the_week():
    assert parse_opening("sat-mon 00:00-24:00") == tuple(
        Opening(day * MINUTES_A_DAY, MINUTES_A_DAY) for day in (0, 5, 6)
    )


def test_hours_are_the_sites_own_wall_clock_in_summer_and_in_winter():
    evening = hours("mon-sun 19:00-20:00", zone=ZURICH)
    assert evening.is_open(datetime(2026, 1, 10, 18, 30, tzinfo=UTC))
    assert evening.is_open(datetime(2026, 7, 10, 17, 30, tzinfo=UTC))
    assert not evening.is_open(datetime(2026, 7, 10, 18, 30, tzinfo=UTC))


def test_the_next_opening_over_a_change_of_clocks_is_at_the_named_hour():
    # Clocks go forward on Sunday 2026-03-29 at 02:00 in Zurich.
    opening = hours("sun 19:00-20:00", zone=ZURICH).next_opening(datetime(2026, 3, 28, 12, 0, tzinfo=UTC))
    assert opening == datetime(2026, 3, 29, 17, 0, tzinfo=UTC)


def test_the_day_is_the_sites_own():
    late = datetime(2026, 6, 30, 22, 30, tzinfo=UTC)
    site = hours("mon-sun 00:00-24:00", zone=ZURICH)
    assert site.day(late).isoformat() == "2026-07-01"


def test_without_an_opening_a_site_never_opens():
    assert Hours(UTC, ()).next_opening(datetime(2026, 1, 1, tzinfo=UTC)) is None


@UNHURRIED
@given(MOMENTS)
def test_all_day_every_day_is_always_open(now):
    assert hours("mon-sun 00:00-24:00", zone=timezone(timedelta(hours=-9))).is_open(now)


@UNHURRIED
@given(MOMENTS, st.sampled_from(DAYS), st.integers(0, 23), st.integers(0, 23))
def test_the_next_opening_is_open_and_at_most_a_week_away(now, day, start, end):
    if start == end:
        return
    site = hours(f"{day} {start:02}:00-{end:02}:00")
    opening = site.next_opening(now)
    assert opening is not None
    assert site.is_open(opening)
    assert opening <= now + timedelta(days=7)
    if not site.is_open(now):
        assert not site.is_open(opening - timedelta(minutes=1))


@pytest.mark.parametrize(
    "text",
    ["", "mon", "mon 8-9", "mon 08:00", "moon 08:00-09:00", "mon- 08:00-09:00", "mon 08:00-08:00", "mon 08:61-09:00",
     "mon 24:00-01:00", "mon 08:00-25:00", "mon,,tue 08:00-09:00"],
)  # fmt: skip
def test_what_is_no_hours_is_refused_with_the_form(text):
    with pytest.raises(ValueError, match=r"hours|day|write"):
        parse_opening(text)
