"""Loss curves of a run from its rounds' figures: over all sites, and by domain. Pure.

A round's figures are of the adapter that it trained from, before it trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from coordinator.web.charts import Series
from coordinator.web.reads import Plain

HELD_OUT: Final = "heldout_loss"
ALL_DOMAINS: Final = "all"
# Figures that have a name people use; others are shown by their own.
TITLES: Final = {
    "heldout_loss": "held-out loss",
    "heldout_tokens": "held-out tokens",
    "train_loss": "training loss",
    "train_records": "training records",
    "classification_accuracy": "accuracy",
    "preference_accuracy": "preference accuracy",
    "rouge_l": "ROUGE-L",
    "span_f1": "span F1",
    "clipped_elements": "clipped elements",
    "record_loss": "loss of a record",
    "record_loss_error": "its standard error",
    "macro_loss": "mean over domains",
    "worst_loss": "worst domain",
    "product_error": "error of the product",
    "instruction_set_version": "instruction set",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """domain: "" for one over all sites."""

    title: str
    domain: str
    value: float


def figures(round_: Plain) -> tuple[Figure, ...]:
    """A round's figures: those over all sites first, then by domain."""
    found = []
    for metric in round_["metrics"]:
        name, _, domain = metric["name"].partition("/")
        found.append(Figure(TITLES.get(name, name.replace("_", " ")), domain, metric["value"]))
    return tuple(sorted(found, key=lambda figure: (figure.domain, figure.title)))


def loss_series(rounds: Iterable[Plain]) -> tuple[Series, ...]:
    """Held-out losses by round: over all sites, and for each domain that is measured, by name."""
    found: dict[str, dict[int, float]] = {}
    for round_ in rounds:
        for metric in round_["metrics"]:
            name, _, domain = metric["name"].partition("/")
            if name == HELD_OUT:
                found.setdefault(domain or ALL_DOMAINS, {})[round_["number"]] = metric["value"]
    names = sorted(found, key=lambda name: (name != ALL_DOMAINS, name))
    return tuple(Series(name, found[name]) for name in names)


def closed_groups(rounds: Sequence[Plain]) -> tuple[Plain, ...]:
    """The groups whose figures the newest round that tells does not share."""
    for round_ in reversed(rounds):
        if round_["closed_metric_groups"]:
            return tuple(round_["closed_metric_groups"])
        if round_["metrics"]:
            return ()
    return ()
