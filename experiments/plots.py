"""The experiment's plots, as SVG: colour-blind safe, a colour and a line style a method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from experiments.outcome import GAP_WANTED, ModelScores, SeedOutcome
from experiments.statistics import gap_closed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEBIBYTE: Final = 1024 * 1024
MACRO: Final = "macro"
# Okabe and Ito's palette.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_STYLES: Final = ("-", "--", "-.", ":")
_MARKS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")

# (training rounds, MiB uploaded, loss by domain and MACRO)
_Point = tuple[float, float, dict[str, float]]


def plot_curves(seeds: Sequence[SeedOutcome], path: Path) -> None:
    """Validation loss of every domain, and macro: of every method, over rounds and over bytes sent; mean of seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    domains = [*seeds[0].zero_shot.loss, MACRO]
    figure, rows = pyplot.subplots(
        2, len(domains), figsize=(3.1 * len(domains), 6.4), layout="constrained", sharey="col", squeeze=False
    )
    for index, method in enumerate(seeds[0].methods):
        points = _mean_curve([seed.methods[index].curve for seed in seeds])
        style = {"color": _COLOURS[index % 8], "linestyle": _STYLES[index % 4], "marker": _MARKS[index % 8]}
        for column, domain in enumerate(domains):
            known = [point for point in points if domain in point[2]]
            for row, axes in enumerate(rows[:, column]):
                values = [point[2][domain] for point in known]
                axes.plot([point[row] for point in known], values, label=method.name, markersize=4, **style)
    for column, domain in enumerate(domains):
        rows[0, column].set_title(domain)
        rows[0, column].set_xlabel("training rounds")
        rows[1, column].set_xlabel("MiB uploaded by all sites")
    for axes in rows[:, 0]:
        axes.set_ylabel("validation loss, nats per answer token")
    for axes in rows.flat:
        axes.grid(alpha=0.3)
    rows[0, -1].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def plot_models(seeds: Sequence[SeedOutcome], path: Path) -> None:
    """Macro loss, the worst domain's loss and the gap closed, of every arm: a dot a model and seed, a line at the mean.

    Of the base model as it is no gap is shown: it lies far to the left.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    arms = [seed.arms for seed in seeds]
    names = list(reversed(arms[0]))
    figure, panels = pyplot.subplots(
        1, 3, figsize=(13, 0.45 * len(names) + 1.6), layout="constrained", sharey=True, squeeze=True
    )
    for row, name in enumerate(names):
        models = [model for found in arms for model in found[name]]
        _dots(panels[0], row, [model.macro_loss for model in models])
        _dots(panels[1], row, [model.worst_loss for model in models])
        if models[0] is not seeds[0].zero_shot:
            gaps = [_gap(seed, model) for seed, found in zip(seeds, arms, strict=True) for model in found[name]]
            _dots(panels[2], row, [gap for gap in gaps if gap is not None])
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_xlabel("macro loss on the union test, nats per answer token")
    panels[1].set_xlabel("loss of the worst domain, nats per answer token")
    panels[2].set_xlabel("gap closed: 0 as alone, 1 as all records in one place")
    panels[2].axvline(GAP_WANTED, color="#000000", linestyle=":", linewidth=1)
    for axes in panels:
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _mean_curve(curves: Sequence[Sequence[tuple[int, int, dict[str, float]]]]) -> list[_Point]:
    """Point by point the mean of the seeds' curves, of which each has as many adapters as the shortest."""
    points: list[_Point] = []
    for several in zip(*curves, strict=False):
        losses = [loss for _, _, loss in several if loss]
        if not losses:
            continue
        by_domain = {name: sum(loss[name] for loss in losses) / len(losses) for name in losses[0]}
        by_domain[MACRO] = sum(by_domain.values()) / len(by_domain)
        sent = sum(sent for _, sent, _ in several) / len(several)
        points.append((float(several[0][0]), sent / MEBIBYTE, by_domain))
    return points


def _gap(seed: SeedOutcome, model: ModelScores) -> float | None:
    return gap_closed(alone=seed.alone_macro_loss, federated=model.macro_loss, central=seed.central.macro_loss)


def _dots(axes: Axes, row: int, values: Sequence[float]) -> None:
    axes.plot(values, [row] * len(values), "o", alpha=0.55, color=_COLOURS[0])
    if values:
        mean = sum(values) / len(values)
        axes.plot([mean, mean], [row - 0.3, row + 0.3], color=_COLOURS[1], linewidth=2)
