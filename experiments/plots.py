"""The experiment's plots, as SVG: colour-blind safe, one colour a domain or an arm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from experiments.experiment import Outcome

MEBIBYTE: Final = 1024 * 1024
# Okabe and Ito's palette.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_STYLES: Final = ("-", "--", "-.", ":")


def plot_curves(outcome: Outcome, path: Path) -> None:
    """Validation loss by domain: over rounds for the first method, and the macro loss of all over bytes sent."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (over_rounds, over_bytes) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    first = outcome.seeds[0]
    for index, domain in enumerate(first.zero_shot.loss):
        curve = [(float(rounds), loss[domain]) for rounds, _, loss in first.methods[0].curve if domain in loss]
        over_rounds.plot(*zip(*curve, strict=True), marker="o", color=_COLOURS[index % 8], label=domain)
    over_rounds.set(xlabel="training rounds", ylabel="validation loss, nats per answer token")
    over_rounds.set_title(f"{first.methods[0].name}, seed {first.seed}")
    for index, method in enumerate(first.methods):
        curve = [(sent / MEBIBYTE, sum(loss.values()) / len(loss)) for _, sent, loss in method.curve if loss]
        style = {"color": _COLOURS[index % 8], "linestyle": _STYLES[index % 4]}
        over_bytes.plot(*zip(*curve, strict=True), marker="o", label=method.name, **style)
    over_bytes.set(xlabel="MiB uploaded by all sites", ylabel="macro validation loss")
    over_bytes.set_title(f"all methods, seed {first.seed}")
    for axes in (over_rounds, over_bytes):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def plot_models(outcome: Outcome, path: Path) -> None:
    """Macro loss of every arm: a dot for every model and seed, a line at the mean."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    from experiments.report import arms_of

    names = list(arms_of(outcome.seeds[0]))
    figure, axes = pyplot.subplots(figsize=(9, 0.5 * len(names) + 1.6), layout="constrained")
    for row, name in enumerate(reversed(names)):
        values = [model.macro_loss for seed in outcome.seeds for model in arms_of(seed)[name]]
        axes.plot(values, [row] * len(values), "o", alpha=0.55, color=_COLOURS[0])
        mean = sum(values) / len(values)
        axes.plot([mean, mean], [row - 0.3, row + 0.3], color=_COLOURS[1], linewidth=2)
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set_xlabel("macro loss on the union test, nats per answer token (less is better)")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
