"""The picture of `benchmarks.scale`: how time and bytes grow from ten to a thousand members."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
MEMBER: Final = {
    "key set-up": ("advertise", "roster", "deal", "confirm"),
    "pack and mask": ("start", "pack", "mask"),
    "close and reveal": ("bind", "reveal"),
}
COORDINATOR: Final = {
    "key set-up": ("roster", "deposits", "forwarding", "readies", "settle"),
    "receive and sum": ("start", "sum"),
    "close and open": ("commits", "reveals", "open"),
    "unmask": ("unmask",),
}

Figures = dict[str, Any]


def save_plot(found: Sequence[Figures], path: Path) -> None:
    """Three panels over the number of members: CPU of one, bytes of one, CPU of the coordinator."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "accord", "font.size": 8}):
        canvas = Canvas(figsize=(10.5, 3.3), layout="constrained")
        member, traffic, coordinator = canvas.subplots(1, 3)
        _curves(member, found, {name: _seconds("member", steps) for name, steps in MEMBER.items()})
        member.set(title="CPU of one member", ylabel="seconds")
        _curves(traffic, found, {name: _bytes(steps) for name, steps in MEMBER.items()})
        traffic.set(title="Traffic of one member", ylabel="bytes, both ways")
        _curves(coordinator, found, {name: _seconds("coordinator", steps) for name, steps in COORDINATOR.items()})
        coordinator.set(title="CPU of the coordinator", ylabel="seconds")
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.savefig(path, format="svg", metadata={"Date": None})


def _seconds(side: str, steps: Sequence[str]) -> Any:
    def read(figures: Figures) -> float:
        costs = figures[side]
        return float(sum(costs[s]["seconds"] if side == "member" else costs[s] for s in steps if s in costs))

    return read


def _bytes(steps: Sequence[str]) -> Any:
    def read(figures: Figures) -> float:
        costs = figures["member"]
        return float(sum(costs[s]["bytes_sent"] + costs[s]["bytes_received"] for s in steps if s in costs))

    return read


def _curves(axes: Axes, found: Sequence[Figures], series: dict[str, Any]) -> None:
    members = [figures["participants"] for figures in found]
    for (name, read), colour in zip(series.items(), COLOURS, strict=False):
        axes.plot(members, [read(figures) for figures in found], color=colour, marker="o", markersize=3, label=name)
    axes.axvline(128, color="#999999", linestyle=":", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="members (dotted: from here on the graph is sparse)")
    axes.grid(visible=True, which="major", linewidth=0.3)
    axes.legend(frameon=False, fontsize=7)
