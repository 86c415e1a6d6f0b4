"""Logs: one line an event, the same fields for our lines and the libraries', context where it was bound."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from common.log import LogForm, bound, configure, get_logger


@pytest.fixture
def stream():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_line_with_its_fields(stream):
    configure(form=LogForm.JSON, stream=stream)

    get_logger("coordinator.driver").info("round_advanced", state="training", cohort=3)

    (line,) = lines(stream)
    assert (line["event"], line["state"], line["cohort"]) == ("round_advanced", "training", 3)
    assert (line["level"], line["logger"]) == ("info", "coordinator.driver")
    assert str(line["time"]).endswith("Z")


def test_bound_fields_are_on_every_line_inside_and_on_none_after(stream):
    configure(form=LogForm.JSON, stream=stream)
    log = get_logger("x")

    with bound(caller="participants/bank"):
        log.info("inside")
    log.info("after")

    inside, after = lines(stream)
    assert inside["caller"] == "participants/bank"
    assert "caller" not in after


def test_a_librarys_line_has_the_same_form(stream):
    configure(form=LogForm.JSON, stream=stream)

    logging.getLogger("sqlalchemy.pool").warning("pool of %d is full", 5)

    (line,) = lines(stream)
    assert (line["event"], line["level"], line["logger"]) == ("pool of 5 is full", "warning", "sqlalchemy.pool")


def test_a_traceback_stays_in_its_line(stream):
    configure(form=LogForm.JSON, stream=stream)

    try:
        raise ValueError("broken")
    except ValueError:
        get_logger("x").exception("rpc_failed")

    (line,) = lines(stream)
    assert "ValueError: broken" in str(line["exception"])


def test_lines_below_the_level_are_left_out(stream):
    configure(form=LogForm.JSON, level=logging.WARNING, stream=stream)

    get_logger("x").info("quiet")
    get_logger("x").warning("loud")

    assert [line["event"] for line in lines(stream)] == ["loud"]


def test_configuring_again_does_not_double_lines(stream):
    configure(form=LogForm.JSON, stream=io.StringIO())
    configure(form=LogForm.JSON, stream=stream)

    get_logger("x").info("once")

    assert len(lines(stream)) == 1


def test_the_console_form_is_for_people(stream):
    configure(form=LogForm.CONSOLE, stream=stream)

    get_logger("x").info("round_advanced", state="training")

    assert "round_advanced" in stream.getvalue()
    assert "state=training" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
