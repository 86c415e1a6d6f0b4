"""In touch or out of reach: every fact is said once, and a look at the way is taken when it is worth it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import structlog

from common.errors import AccordError, ConnectionFiltered, ProxyFailed, Unavailable
from participant.contact import LOOK_AGAIN, Contact, ContactState, read_contact
from tests.fakes import FakeClock


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def looks() -> list[AccordError]:
    """What the next looks at the way will find."""
    return []


@pytest.fixture
def contact(clock, looks, tmp_path):
    return Contact(clock, explain=lambda error: looks.pop(0), folder=tmp_path)


def kept(folder: Path) -> ContactState:
    state = read_contact(folder)
    assert state is not None
    return state


def test_one_failed_try_is_taken_for_a_blip_and_the_second_is_looked_into(contact, looks):
    looks.append(ProxyFailed("407"))
    assert type(contact.failed(Unavailable("socket closed"))) is Unavailable
    assert contact.failed(Unavailable("socket closed")).reason == "PROXY_FAILED"


def test_what_was_found_is_said_on_until_it_is_time_to_look_again(contact, looks, clock):
    looks += [ProxyFailed("407"), ConnectionFiltered("packets vanish")]
    with structlog.testing.capture_logs() as logs:
        for _ in range(30):
            contact.failed(Unavailable("socket closed"))
        clock.advance(seconds=LOOK_AGAIN.total_seconds())
        assert contact.failed(Unavailable("socket closed")).reason == "CONNECTION_FILTERED"
    assert [log["reason"] for log in logs] == ["UNAVAILABLE", "PROXY_FAILED", "CONNECTION_FILTERED"]


def test_an_error_that_says_itself_what_is_wrong_is_not_looked_into(contact):
    assert [contact.failed(ProxyFailed("403")).message for _ in range(3)] == ["403"] * 3


def test_the_state_is_kept_for_others_to_read_with_the_time_since_when(contact, clock, tmp_path):
    lost_at = clock.now()
    contact.failed(ProxyFailed("403"))
    clock.advance(hours=1)
    contact.failed(ProxyFailed("407"))
    state = kept(tmp_path)
    assert (state.since, state.reason, state.message) == (lost_at.isoformat(), "PROXY_FAILED", "407")
    with structlog.testing.capture_logs() as logs:
        contact.answered(None, asked=clock.now())
    assert logs == [{"event": "coordinator_reached_again", "seconds": 3600, "log_level": "info"}]
    assert kept(tmp_path).reason == ""


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_is_off_is_said_once_until_it_is_right_again(contact, clock, tmp_path, hours):
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            contact.answered(clock.now() + timedelta(hours=hours), asked=clock.now())
        assert contact.clock_wrong.metadata["seconds"] == str(3600 * hours)
        assert "3600 s" in kept(tmp_path).clock
        contact.answered(clock.now(), asked=clock.now())
    assert [log["event"] for log in logs] == ["clock_wrong", "clock_right_again"]
    assert contact.clock_wrong is None


def test_the_length_of_a_poll_is_no_difference_of_clocks(contact, clock):
    asked = clock.now()
    clock.advance(minutes=6)
    contact.answered(asked + timedelta(minutes=3), asked=asked)
    assert contact.clock_wrong is None


def test_a_state_of_another_version_or_none_is_no_state(tmp_path):
    assert read_contact(tmp_path) is None
    (tmp_path / "contact.json").write_text('{"form": 2}')
    assert read_contact(tmp_path) is None
