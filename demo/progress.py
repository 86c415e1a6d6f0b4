"""What a person sees while the demo runs: a live view in a terminal, a line for every event elsewhere.

Both are told the same things by `demo.run`; what happened between two looks at the run is worked out here, purely.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from demo.figures import METRIC_TITLES, Figure, Stage
from demo.watch import RoundView, SiteView, Snapshot

MEBIBYTE: Final = 1024 * 1024
SHOWN_EVENTS: Final = 7
BAR_WIDTH: Final = 16
_DOING: Final[Mapping[str, str]] = {
    "prepare": "reading its records",
    "load": "loading the base model",
    "evaluate": "judging the global adapter",
    "train": "training",
    "save": "writing its adapter",
}
_STATES: Final[Mapping[str, str]] = {
    "prepared": "update ready",
    "uploaded": "masked update sent",
    "committed": "survivors agreed",
    "revealed": "shares revealed",
    "failed": "out of this round",
    "dropped": "left out of this round",
}
_PHASES: Final[Mapping[str, str]] = {
    "forming": "forming: who is there?",
    "training": "training at the sites",
    "collecting": "collecting masked updates",
    "unmasking": "unmasking the sum",
    "aggregating": "aggregating",
    "succeeded": "done",
    "failed": "failed",
    "cancelled": "cancelled",
}

# Every site by name, with its own figures so far, as its own folder has them.
SiteStages = Mapping[str, Sequence[Stage]]


@dataclass
class Step:
    """A piece of the preparation. Who does it may change the text: what is known at its end says more."""

    text: str


class View(Protocol):
    """What the demo tells."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def step(self, text: str) -> AbstractContextManager[Step]:
        """Around a piece of the preparation; tells it with the seconds that it took."""

    def watching(self) -> AbstractContextManager[None]:
        """Around the calls of `show`."""

    def show(self, snapshot: Snapshot, stages: SiteStages) -> None:
        """The run as it stands."""


def view_for(console: Console) -> View:
    """A live view where somebody looks, lines where a file or another program does."""
    return LiveView(console) if console.is_terminal else LineView(console)


class LineView:
    """One line for every event."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._before: Snapshot | None = None

    def say(self, text: str) -> None:
        line = f"[{clock(time.monotonic() - self._began)}] {text}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def step(self, text: str) -> Iterator[Step]:
        began, step = time.monotonic(), Step(text)
        yield step
        self.say(f"{step.text} ({time.monotonic() - began:.1f} s)")

    @contextmanager
    def watching(self) -> Iterator[None]:
        yield

    def show(self, snapshot: Snapshot, stages: SiteStages) -> None:
        for event in events_between(self._before, snapshot):
            self.say(event)
        self._before = snapshot


class LiveView:
    """A table that stays in place, and the last few events below it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._before: Snapshot | None = None
        self._events: deque[str] = deque(maxlen=SHOWN_EVENTS)
        self._live: Live | None = None

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    @contextmanager
    def step(self, text: str) -> Iterator[Step]:
        began, step = time.monotonic(), Step(text)
        with self._console.status(Text(text)):
            yield step
        line = Text.assemble(("✓ ", "green"), step.text, (f"  {time.monotonic() - began:.1f} s", "dim"))
        self._console.print(line, highlight=False)

    @contextmanager
    def watching(self) -> Iterator[None]:
        with Live(console=self._console, refresh_per_second=4, transient=True) as self._live:
            yield
        self._live = None

    def show(self, snapshot: Snapshot, stages: SiteStages) -> None:
        self._events.extend(events_between(self._before, snapshot))
        self._before = snapshot
        if self._live is not None:
            self._live.update(live_panel(snapshot, stages, tuple(self._events)))


# --- events -----------------------------------------------------------------------------------------------------------


def events_between(before: Snapshot | None, after: Snapshot) -> Iterator[str]:
    """What happened since the look before, as lines."""
    earlier = {view.number: view for view in before.rounds} if before is not None else {}
    for view in after.rounds:
        yield from _round_events(earlier.get(view.number), view, after)
    if after.is_over and (before is None or not before.is_over):
        yield f"run {after.state}{_after_colon(after.message)}"


def _round_events(before: RoundView | None, after: RoundView, snapshot: Snapshot) -> Iterator[str]:
    where = round_title(after, snapshot)
    earlier = {site.name: site for site in before.sites} if before is not None else {}
    for site in after.sites:
        yield from (f"{where}: {text}" for text in _site_events(earlier.get(site.name), site))
    if before is not None and before.state == after.state:
        return
    match after.state:
        case "succeeded":
            yield f"{where}: sum of {len(after.survivors)} updates opened{_after_colon(_sum_text(after.metrics))}"
        case "failed" | "cancelled":
            yield f"{where} {after.state}{_after_colon(after.message)}"
        case state:
            yield f"{where}: {_PHASES.get(state, state)}"


def _site_events(before: SiteView | None, after: SiteView) -> Iterator[str]:
    if before is None or before.state != after.state:
        if after.is_out:
            yield f"{after.name} {_STATES[after.state]}{_after_colon(after.message or after.reason)}"
        elif after.state == "uploaded":
            yield f"{after.name} has sent {size(after.uploaded_bytes)} of masked update"
        elif after.state in _STATES:
            yield f"{after.name}: {_STATES[after.state]}"
    elif after.state == "present" and after.activity in _DOING and before.activity != after.activity:
        steps = f", {after.total} steps" if after.activity == "train" and after.total else ""
        yield f"{after.name}: {_DOING[after.activity]}{steps}"


def round_title(view: RoundView, snapshot: Snapshot) -> str:
    """ "round 2 of 3", or "final evaluation"."""
    if view.kind == "evaluate":
        return "final evaluation"
    failed = sum(1 for earlier in snapshot.rounds if earlier.number < view.number and earlier.state == "failed")
    return f"round {view.number - failed} of {snapshot.rounds_planned}" + (" (again)" if failed else "")


def _sum_text(metrics: Mapping[str, float]) -> str:
    loss = metrics.get("heldout_loss")
    return f"held-out loss of all sites together {loss:.3f}" if loss is not None else ""


def _after_colon(text: str) -> str:
    """On one line: of a traceback, how it begins and how it ends."""
    lines = text.strip().splitlines() or [""]
    short = lines[0] if len(lines) == 1 else f"{lines[0]} … {lines[-1].strip()}"
    return f": {short}" if short else ""


# --- the live table ---------------------------------------------------------------------------------------------------


def live_panel(snapshot: Snapshot, stages: SiteStages, events: Sequence[str]) -> RenderableType:
    """All of the live view."""
    current = snapshot.current
    title = round_title(current, snapshot) if current is not None else "waiting for the sites"
    phase = _PHASES.get(current.state, current.state) if current is not None else ""
    if current is not None and current.epoch_state not in ("ready", "unspecified", "closed"):
        phase += f" · masking keys: {current.epoch_state}"
    left = snapshot.seconds_left
    head = Text.assemble(
        (title, "bold"),
        f" · {phase}" if phase else "",
        (f"    {clock(snapshot.elapsed_seconds)} gone", "dim"),
        (f", about {clock(left)} left" if left is not None else "", "dim"),
    )
    return Panel(
        Group(
            head,
            ProgressBar(total=1.0, completed=snapshot.fraction, width=None),
            Text(),
            _site_table(current, stages),
            Text(),
            _sums_line(snapshot),
            Text(),
            *(Text(event, style="dim", no_wrap=True, overflow="ellipsis") for event in events),
        ),
        title="Accord: three sites tune one model and share no record",
        border_style="cyan",
    )


def _site_table(current: RoundView | None, stages: SiteStages) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True)
    for heading in ("site", "doing", "", "masked bytes sent", "held-out loss *", "task metric *"):
        table.add_column(heading, header_style="bold", no_wrap=True)
    views = {view.name: view for view in current.sites} if current is not None else {}
    for name, own in stages.items():
        view = views.get(name, SiteView(name))
        table.add_row(
            name,
            _doing(view),
            _bar(view),
            size(view.uploaded_bytes) if view.uploaded_bytes else "",
            _course([stage.figure.heldout_loss for stage in own], ".2f"),
            _metric_course([stage.figure for stage in own]),
        )
    table.caption = "* read from the site's own folder; the coordinator knows sums alone"
    table.caption_justify = "left"
    return table


def _doing(view: SiteView) -> Text:
    if view.is_out:
        return Text(_STATES[view.state], style="bold red")
    if view.state in _STATES:
        return Text(_STATES[view.state], style="green")
    return Text(_DOING.get(view.activity, view.activity) or view.state)


def _bar(view: SiteView) -> RenderableType:
    if view.state != "present" or not view.total or view.activity not in ("evaluate", "train"):
        return Text()
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_row(ProgressBar(total=view.total, completed=view.done, width=BAR_WIDTH), Text(f"{view.done}/{view.total}"))
    return grid


def _sums_line(snapshot: Snapshot) -> Text:
    losses = [view.metrics["heldout_loss"] for view in snapshot.rounds if "heldout_loss" in view.metrics]
    course = _course(losses, ".3f") or "nothing yet"
    return Text.assemble("what the coordinator sees: held-out loss of all sites together  ", (course, "bold"))


def _course(values: Sequence[float | None], form: str) -> str:
    return " → ".join("–" if value is None else format(value, form) for value in values)


def _metric_course(figures: Sequence[Figure]) -> str:
    values = [figure.value for figure in figures]
    if all(value is None for value in values):
        return ""
    return f"{METRIC_TITLES[figures[0].metric]} {_course(values, '.2f')}"


def clock(seconds: float) -> str:
    """ "3:07"."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def size(count: int) -> str:
    """ "4.7 MiB", "1.2 KiB"."""
    return f"{count / MEBIBYTE:.1f} MiB" if count >= MEBIBYTE / 10 else f"{count / 1024:.1f} KiB"
