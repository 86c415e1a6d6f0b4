"""Where lines, marks and names of a chart lie."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.web.charts import (
    BOTTOM,
    HEIGHT,
    LABEL_SPACE,
    LEFT,
    MOST_LINES,
    MOST_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Series,
    chart,
)

ROUNDS = st.dictionaries(st.integers(1, 400), st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=40)


def places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


def test_there_is_no_chart_of_nothing():
    assert chart([]) is None
    assert chart([Series("a", {})]) is None


@given(st.lists(ROUNDS, min_size=1, max_size=12))
def test_every_line_lies_within_the_frame_and_every_name_apart(values):
    found = chart([Series(str(number), one) for number, one in enumerate(values)])
    assert found is not None
    assert len(found.lines) == min(len(values), MOST_LINES)
    assert found.left_out == max(0, len(values) - MOST_LINES)
    for line in found.lines:
        for x, y in places(line.path):
            assert LEFT <= x <= WIDTH - RIGHT
            assert TOP <= y <= HEIGHT - BOTTOM
    names = sorted(line.label_y for line in found.lines)
    assert all(after - before >= LABEL_SPACE - 0.2 for before, after in pairwise(names))
    assert names[-1] <= HEIGHT - BOTTOM + 0.1


@given(ROUNDS)
def test_ticks_hold_all_values_between_them(values):
    found = chart([Series("a", values)])
    assert found is not None
    ticks = [float(tick.text) for tick in found.y_ticks]
    assert 2 <= len(ticks) <= 8
    tolerance = 1e-5 * max(1.0, max(map(abs, ticks)))
    assert ticks[0] <= min(values.values()) + tolerance
    assert ticks[-1] >= max(values.values()) - tolerance


def test_a_round_without_a_figure_breaks_the_line():
    found = chart([Series("a", {1: 3.0, 2: 2.0, 4: 1.0}), Series("b", {3: 1.0})])
    assert found is not None
    assert re.sub(r"[^ML]", "", found.lines[0].path) == "MLM"


def test_a_long_run_has_a_bounded_chart_that_ends_with_its_newest_round():
    found = chart([Series("a", {round_: math.exp(-round_ / 900) for round_ in range(1, 2001)})])
    assert found is not None
    line = found.lines[0]
    assert len(places(line.path)) <= MOST_POINTS
    assert (line.end_x, line.end_y) == places(line.path)[-1]
    assert len(line.marks) <= 30
    assert "round 2000" in "".join(mark.text for mark in line.marks)
    assert len(found.x_ticks) <= 12


@pytest.mark.parametrize("value", [0.0, 5.0, -2.5])
def test_a_line_that_does_not_move_lies_in_the_middle(value):
    found = chart([Series("a", {1: value})])
    assert found is not None
    (mark,) = found.lines[0].marks
    middle = (TOP + HEIGHT - BOTTOM) / 2
    assert mark.y == pytest.approx(middle, abs=40)
