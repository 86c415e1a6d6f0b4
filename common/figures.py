"""From summed metric words to the figures that operators see: means over many sites, never one site's.

A `TailSums` holds nothing of closed metric groups, so there is nothing of them to tell.
"""

from __future__ import annotations

from collections.abc import Mapping

from common.errors import AggregationFailed
from common.secagg import TailSums


def figures(tail: TailSums) -> tuple[tuple[str, float], ...]:
    """(name, value), by name. Losses in nats per answer token; without its sums or a denominator a figure is left out.

    Raises AggregationFailed for a sum that no honest cohort has: every metric is a loss or a count.
    """
    sums = tail.metrics
    impossible = sorted(name for name, value in sums.items() if value < 0)
    if impossible:
        raise AggregationFailed(
            f"the sum of {', '.join(impossible)} is below zero: a member lied about its figures, or they overflowed"
        )
    found = {
        "survivors": float(tail.count),
        "weight": tail.weight,
        "heldout_loss": _ratio(sums, "heldout_loss", "heldout_tokens"),
        "heldout_tokens": sums.get("heldout_tokens"),
        "train_loss": _ratio(sums, "train_loss", "train_steps"),
        "train_records": sums.get("train_records"),
        "classification_accuracy": _ratio(sums, "classification_correct", "classification_total"),
        "rouge_l": _ratio(sums, "rouge_sum", "rouge_total"),
        "span_f1": _f1(sums),
        "clipped_elements": sums.get("clipped_elements"),
    }
    return tuple(sorted((name, value) for name, value in found.items() if value is not None))


def heldout_loss(found: tuple[tuple[str, float], ...]) -> float | None:
    """The mean held-out loss among a round's figures."""
    return dict(found).get("heldout_loss")


def _ratio(sums: Mapping[str, float], numerator: str, denominator: str) -> float | None:
    top, over = sums.get(numerator), sums.get(denominator, 0.0)
    return top / over if top is not None and over > 0 else None


def _f1(sums: Mapping[str, float]) -> float | None:
    """Micro-averaged span F1: 2 TP / (2 TP + FP + FN)."""
    names = ("span_true_positives", "span_false_positives", "span_false_negatives")
    if any(name not in sums for name in names):
        return None
    hits, wrong, missed = (sums[name] for name in names)
    over = 2 * hits + wrong + missed
    return 2 * hits / over if over > 0 else None
