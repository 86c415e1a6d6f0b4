"""The report's pictures: curves of every domain over the global adapters, and where the time of each round went.

SVG text, so that a page needs nothing beside itself. Draws on a figure of its own, never on pyplot's global one.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from demo.figures import METRIC_TITLES, DomainReport, Figure, RunReport

# Okabe and Ito's palette: told apart also by those who see no red or green.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
PHASES: Final = ("forming", "training", "collecting", "unmasking", "aggregating")
WIDTH_INCHES: Final = 4.7
HEIGHT_INCHES: Final = 3.1


def loss_plot(report: RunReport) -> str:
    """Held-out loss by domain, and the coordinator's own view: the mean over all sites' answer tokens."""

    def draw(axes: Axes) -> None:
        _curves(axes, report.domains, lambda figure: figure.heldout_loss)
        seen = summed_losses(report)
        if seen:
            axes.plot(*zip(*seen, strict=True), color="#444444", linestyle="--", linewidth=1, label="all sites (sum)")
        axes.set_ylabel("nats per answer token")
        axes.set_ylim(bottom=0)

    return _svg(draw, title="Held-out loss")


def metric_plot(report: RunReport) -> str:
    """Task metric by domain, each its own: accuracy, span F1, ROUGE-L."""

    def draw(axes: Axes) -> None:
        _curves(axes, report.domains, lambda figure: figure.value, with_metric=True)
        axes.set_ylabel("task metric")
        axes.set_ylim(0, 1)

    return _svg(draw, title="Task metric")


def time_plot(report: RunReport) -> str:
    """Seconds of every phase, a bar a round."""
    rounds = report.rounds

    def draw(axes: Axes) -> None:
        names = ["evaluation" if round_.kind == "evaluate" else f"round {round_.number}" for round_ in rounds]
        left = [0.0] * len(rounds)
        for phase, colour in zip(PHASES, COLOURS, strict=False):
            seconds = [round_.seconds.get(phase, 0.0) for round_ in rounds]
            axes.barh(names, seconds, left=left, color=colour, label=phase, height=0.6)
            left = [start + more for start, more in zip(left, seconds, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel("seconds")

    return _svg(draw, title="Where the time went")


def summed_losses(report: RunReport) -> list[tuple[int, float]]:
    """(stage, loss): what the coordinator knows. A round judges the adapter that it starts from."""
    round_of = {stage.adapter_digest: stage.round for domain in report.domains for stage in domain.stages}
    return [
        (round_of[round_.base_adapter_digest], round_.metrics["heldout_loss"])
        for round_ in report.rounds
        if "heldout_loss" in round_.metrics and round_.base_adapter_digest in round_of
    ]


def _curves(
    axes: Axes,
    domains: Sequence[DomainReport],
    value: Callable[[Figure], float | None],
    *,
    with_metric: bool = False,
) -> None:
    for domain, colour in zip(domains, COLOURS, strict=False):
        points = [(stage.round, found) for stage in domain.stages if (found := value(stage.figure)) is not None]
        if not points:
            continue
        metric = METRIC_TITLES[domain.base.figure.metric]
        label = f"{domain.site}: {metric}" if with_metric else domain.site
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=label)
    axes.set_xlabel("global adapter after round (0: base model)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _svg(draw: Callable[[Axes], None], *, title: str) -> str:
    with mpl.rc_context(
        {
            "svg.fonttype": "none",  # text stays text: small files, and a reader can search it
            "svg.hashsalt": "accord",  # the same figures give the same bytes
            "font.family": "sans-serif",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#dddddd",
            "axes.axisbelow": True,
        }
    ):
        canvas = Canvas(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
        axes = canvas.subplots()
        draw(axes)
        axes.set_title(title, fontweight="bold", loc="left")
        if axes.get_legend_handles_labels()[0]:
            canvas.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
