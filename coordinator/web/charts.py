"""Geometry of a line chart: where lines, marks, ticks and labels lie. Pure; templates draw it as SVG.

No style is in it: a line is told from others by its number, which style sheets give a colour and a dash, by the form of
its marks, and by its name at its end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 720.0
HEIGHT: Final = 260.0
LEFT: Final = 52.0
RIGHT: Final = 148.0
TOP: Final = 14.0
BOTTOM: Final = 34.0
MOST_LINES: Final = 8
MOST_POINTS: Final = 200
MOST_MARKS: Final = 24
LABEL_SPACE: Final = 15.0
_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Series:
    """A named line: values by round; rounds without one break it."""

    name: str
    values: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Mark:
    x: float
    y: float
    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """number: 0 to MOST_LINES - 1, for the style sheet. label_y: where its name stands, apart from the others'."""

    number: int
    name: str
    path: str
    marks: tuple[Mark, ...]
    end_x: float
    end_y: float
    label_y: float
    last: str


@dataclass(frozen=True, slots=True)
class Tick:
    place: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """lines: at most MOST_LINES. left_out: how many series are not drawn."""

    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    left_out: int
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


def chart(series: Sequence[Series]) -> Chart | None:
    """A chart of the first MOST_LINES series that have values; None if none has."""
    drawn = [one for one in series if one.values]
    if not drawn:
        return None
    left_out, drawn = max(0, len(drawn) - MOST_LINES), drawn[:MOST_LINES]
    rounds = sorted({round_ for one in drawn for round_ in one.values})
    values = [value for one in drawn for value in one.values.values()]
    x_of = _scale(float(rounds[0]), float(rounds[-1]), LEFT, WIDTH - RIGHT)
    y_ticks = _ticks(min(values), max(values))
    y_of = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    lines = [_line(number, one, rounds, x_of, y_of) for number, one in enumerate(drawn)]
    return Chart(
        lines=_labelled(lines),
        x_ticks=tuple(Tick(x_of(round_), str(round_)) for round_ in _whole_ticks(rounds[0], rounds[-1])),
        y_ticks=tuple(Tick(y_of(value), f"{value:.6g}") for value in y_ticks),
        left_out=left_out,
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        if self.high == self.low:
            return round((self.start + self.end) / 2, 1)
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def _scale(low: float, high: float, start: float, end: float) -> _Scale:
    return _Scale(low, high, start, end)


def _line(number: int, one: Series, rounds: Sequence[int], x_of: _Scale, y_of: _Scale) -> Line:
    stride = math.ceil(len(rounds) / MOST_POINTS)
    # The newest round is always there.
    kept = [round_ for place, round_ in enumerate(reversed(rounds)) if place % stride == 0][::-1]
    path, marks, pen_is_down = [], [], False
    for round_ in kept:
        value = one.values.get(round_)
        if value is None:
            pen_is_down = False
            continue
        x, y = x_of(round_), y_of(value)
        path.append(f"{'L' if pen_is_down else 'M'}{x} {y}")
        marks.append(Mark(x, y, _form(number, x, y), f"{one.name}, round {round_}: {value:.4g}"))
        pen_is_down = True
    last = max(one.values)
    sparse = marks if len(marks) <= MOST_MARKS else [marks[0], *marks[-1 :: -math.ceil(len(marks) / MOST_MARKS)]]
    end_x, end_y = x_of(last), y_of(one.values[last])
    return Line(number, one.name, " ".join(path), tuple(sparse), end_x, end_y, end_y, f"{one.values[last]:.4g}")


def _labelled(lines: Sequence[Line]) -> tuple[Line, ...]:
    """The same lines, their names moved apart where they would cover each other."""
    placed: dict[int, float] = {}
    ceiling = TOP - LABEL_SPACE
    for line in sorted(lines, key=lambda line: line.end_y):
        ceiling = placed[line.number] = max(line.end_y, ceiling + LABEL_SPACE)
    below = ceiling - (HEIGHT - BOTTOM)
    if below > 0:  # the lowest would leave the picture: push back up
        floor = HEIGHT - BOTTOM + LABEL_SPACE
        for line in sorted(lines, key=lambda line: -placed[line.number]):
            floor = placed[line.number] = min(placed[line.number], floor - LABEL_SPACE)
    return tuple(
        Line(
            line.number,
            line.name,
            line.path,
            line.marks,
            line.end_x,
            line.end_y,
            round(placed[line.number], 1),
            line.last,
        )
        for line in lines
    )


def _form(number: int, x: float, y: float) -> str:
    """A mark's outline around its place: disc, square, triangle, diamond, and these once more, hollow by style."""
    r = 3.2
    match number % 4:
        case 0:
            return f"M{x - r:.1f} {y}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"
        case 1:
            return f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}Z"
        case 2:
            return f"M{x} {y - 1.3 * r:.1f}L{x + 1.2 * r:.1f} {y + r:.1f}L{x - 1.2 * r:.1f} {y + r:.1f}Z"
        case _:
            return f"M{x} {y - 1.4 * r:.1f}L{x + 1.4 * r:.1f} {y}L{x} {y + 1.4 * r:.1f}L{x - 1.4 * r:.1f} {y}Z"


def _ticks(low: float, high: float) -> tuple[float, ...]:
    """Round values, about five, from at or below `low` to at or above `high`."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    step = _round_step((high - low) / 4)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return tuple(round(number * step, 10) for number in range(first, last + 1))


def _whole_ticks(low: int, high: int) -> tuple[int, ...]:
    step = max(1, math.ceil(_round_step((high - low) / 8))) if high > low else 1
    return tuple(number for number in range(math.ceil(low / step) * step, high + 1, step)) or (low,)


def _round_step(raw: float) -> float:
    if raw <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in _STEPS if step * power >= raw * (1 - 1e-9))
