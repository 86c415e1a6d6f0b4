"""Results for people: tables for a terminal, a report in Markdown, and its plots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from rich.table import Table

from experiments.experiment import Outcome
from experiments.plots import MEBIBYTE, plot_curves, plot_models
from experiments.statistics import spread

CURVES_FILE: Final = "curves.svg"
MODELS_FILE: Final = "models.svg"
_VERDICT: Final = {True: "reached", False: "not reached", None: "not run"}


def tables(outcome: Outcome) -> Iterator[Table]:
    """Arms, sites and goals."""
    for title, header, rows in _parts(outcome):
        table = Table(title=title, title_justify="left")
        for index, name in enumerate(header):
            table.add_column(name, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*row)
        yield table


def markdown_report(outcome: Outcome, place: Path) -> str:
    """The report, with its plots written beside it in `place`."""
    plot_curves(outcome.seeds, place / CURVES_FILE)
    plot_models(outcome.seeds, place / MODELS_FILE)
    seeds = ", ".join(str(seed.seed) for seed in outcome.seeds)
    about = (
        f"Base model {outcome.base_model} (digest {outcome.base_model_digest[:12]}), {len(outcome.sites)} sites, "
        f"seeds {seeds}. Losses are nats per answer token on test records that nobody trained on."
    )
    lines = [
        f"# Experiment, preset {outcome.preset}",
        "",
        f"    make experiment PRESET={outcome.preset}",
        "",
        about,
        "",
        f"![Loss by domain of every method, over rounds and over bytes sent]({CURVES_FILE})",
        "",
        f"![Macro loss, loss of the worst domain and gap closed, of every arm]({MODELS_FILE})",
    ]
    for title, header, rows in _parts(outcome):
        lines += ["", f"## {title}", "", _row(header), _row(["---"] * len(header)), *map(_row, rows)]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


_Part = tuple[str, list[str], list[list[str]]]


def _parts(outcome: Outcome) -> Iterator[_Part]:
    yield _arms(outcome)
    yield _differences(outcome)
    yield _methods(outcome)
    yield _sites(outcome)
    if any(seed.rare is not None for seed in outcome.seeds):
        yield _rare(outcome)
    yield (
        "What was to be reached",
        ["goal", "wanted", "found", ""],
        [[goal.name, goal.wanted, goal.found, _VERDICT[goal.is_reached]] for goal in outcome.goals],
    )


def _arms(outcome: Outcome) -> _Part:
    domains = sorted(outcome.seeds[0].zero_shot.loss)
    header = ["arm", "macro loss", "worst domain", *domains, "accuracy", "span F1", "ROUGE-L"]
    rows: list[list[str]] = []
    for name in outcome.seeds[0].arms:
        models = [model for seed in outcome.seeds for model in seed.arms[name]]
        rows.append(
            [
                name,
                _mean([model.macro_loss for model in models]),
                _mean([model.worst_loss for model in models]),
                *(_mean([model.loss[domain] for model in models]) for domain in domains),
                _mean([value for model in models for value in model.accuracy.values()], digits=2),
                _mean([value for model in models for value in model.f1.values()], digits=2),
                _mean([value for model in models for value in model.rouge_l.values()], digits=2),
            ]
        )
    return "Arms: mean ± standard deviation over models and seeds", header, rows


def _differences(outcome: Outcome) -> _Part:
    rows: list[list[str]] = []
    for seed in outcome.seeds:
        for name, found in {**seed.against_alone, "central, small batches": seed.against_central}.items():
            interval = f"{found.low:+.3f} to {found.high:+.3f}"
            rows.append([str(seed.seed), name, f"{found.mean:+.3f}", interval, "yes" if found.is_better else "no"])
    return (
        "Federated less each model, macro loss on the union test, 95 % interval (paired bootstrap)",
        ["seed", "model", "difference", "interval", "federated is better"],
        rows,
    )


def _methods(outcome: Outcome) -> _Part:
    rows = [
        [
            method.name,
            str(seed.seed),
            f"{method.learning_rate:g}, {method.schedule}",
            f"{method.scores.macro_loss:.3f}",
            f"{method.loss_ratio:.3f}",
            "none" if method.gap_closed is None else f"{method.gap_closed:.2f}",
            f"{method.uploaded_bytes / MEBIBYTE:.1f}",
            f"{method.bytes_ratio:.3f}",
            f"{method.seconds:.0f}",
        ]
        for seed in outcome.seeds
        for method in seed.methods
    ]
    header = [
        "method",
        "seed",
        "rate",
        "macro loss",
        "of FedIT's",
        "gap closed",
        "MiB uploaded",
        "of FedIT's",
        "seconds",
    ]
    return "Federated methods", header, rows


def _sites(outcome: Outcome) -> _Part:
    rows = [
        [
            site.site,
            str(seed.seed),
            f"{site.alone:.3f}",
            "-" if site.alone_full is None else f"{site.alone_full:.3f}",
            f"{site.federated:.3f}",
            "-" if site.with_adapters is None else f"{site.with_adapters:.3f}",
        ]
        for seed in outcome.seeds
        for site in seed.sites
    ]
    header = [
        "site",
        "seed",
        "alone, own share",
        "alone, full budget",
        "global adapter",
        "with domain and site adapters",
    ]
    return "Is joining worth it: loss on each site's own test records", header, rows


def _rare(outcome: Outcome) -> _Part:
    rows = [
        [
            rare.domain,
            str(seed.seed),
            f"{rare.records:.1%}",
            "-" if rare.last_share is None else f"{rare.last_share:.1%}",
            f"{rare.by_rows.loss[rare.domain]:.3f}",
            f"{rare.by_updates.loss[rare.domain]:.3f}",
            f"{rare.loss_ratio:.3f}",
            f"{rare.by_rows.macro_loss:.3f}",
            f"{rare.by_updates.macro_loss:.3f}",
            f"{rare.macro_ratio:.3f}",
        ]
        for seed in outcome.seeds
        if (rare := seed.rare) is not None
    ]
    header = ["domain", "seed", "of all records", "last share", "loss by rows", "by shares", "ratio"]
    header += ["macro loss by rows", "by shares", "ratio"]
    return "A domain with few records: sites weighted by their rows, and by updated shares", header, rows


def _mean(values: Sequence[float], *, digits: int = 3) -> str:
    if not values:
        return "-"
    mean, deviation = spread(values)
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if len(values) > 1 else "")
