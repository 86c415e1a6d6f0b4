"""From summed metric words to the figures that operators see: means over many sites, never one site's.

A `TailSums` holds nothing of closed metric groups, so there is nothing of them to tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from common.domains import LOSS, NATS, RECORDS, ROWS, SQUARES, TOKENS
from common.errors import AggregationFailed
from common.instructions import InstructionSet
from common.secagg import TailSums


def figures(tail: TailSums) -> tuple[tuple[str, float], ...]:
    """(name, value), by name. Losses in nats per answer token; without its sums or a denominator a figure is left out.

    Raises AggregationFailed for a sum that no honest cohort has: every metric is a loss or a count.
    """
    sums = dict(tail.metrics)
    domains = _DomainSums.of(sums)
    impossible = sorted(name for name, value in sums.items() if value < 0)
    if impossible:
        raise AggregationFailed(
            f"the sum of {', '.join(impossible)} is below zero: a member lied about its figures, or they overflowed"
        )
    if domains:
        # A plan with domains has no words over all of them: they could tell of one that is not shared.
        sums["heldout_loss"] = sum(one.nats for one in domains.values())
        sums["heldout_tokens"] = sum(one.tokens for one in domains.values())
    found: dict[str, float | None] = {
        "survivors": float(tail.count),
        "weight": tail.weight,
        "heldout_loss": _ratio(sums, "heldout_loss", "heldout_tokens"),
        "heldout_tokens": sums.get("heldout_tokens"),
        "train_loss": _ratio(sums, "train_loss", "train_steps"),
        "train_records": sums.get("train_records"),
        "classification_accuracy": _ratio(sums, "classification_correct", "classification_total"),
        "preference_accuracy": _ratio(sums, "preference_correct", "preference_total"),
        "rouge_l": _ratio(sums, "rouge_sum", "rouge_total"),
        "span_f1": _f1(sums),
        "clipped_elements": sums.get("clipped_elements"),
        **_domain_figures(sums, domains),
    }
    return tuple(sorted((name, value) for name, value in found.items() if value is not None))


def heldout_loss(found: tuple[tuple[str, float], ...]) -> float | None:
    """The mean held-out loss among a round's figures."""
    return dict(found).get("heldout_loss")


def domain_loss(found: Iterable[tuple[str, float]], domain: str) -> tuple[float, float] | None:
    """A domain's mean loss and its standard error among a round's figures."""
    by_name = dict(found)
    loss, error = by_name.get(f"record_loss/{domain}"), by_name.get(f"record_loss_error/{domain}")
    return None if loss is None or error is None else (loss, error)


def share_figures(used: InstructionSet) -> tuple[tuple[str, float], ...]:
    """Of the instruction set that a round used: its version, and the domains' shares."""
    shares = tuple((f"share/{share.domain}", share.share) for share in used.shares)
    return (("instruction_set_version", float(used.version)), *shares) if shares or used.version > 1 else ()


@dataclass(slots=True)
class _DomainSums:
    """One domain's sums over its open tasks."""

    rows: float = 0.0
    loss: float = 0.0
    squares: float = 0.0
    nats: float = 0.0
    tokens: float = 0.0

    @property
    def mean(self) -> float:
        return self.loss / self.rows

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return math.sqrt(max(0.0, self.squares / self.rows - self.mean**2) / self.rows)

    @classmethod
    def of(cls, sums: Mapping[str, float]) -> dict[str, _DomainSums]:
        """By domain, from words that are named `domain/task/what`."""
        fields = {ROWS: "rows", LOSS: "loss", SQUARES: "squares", NATS: "nats", TOKENS: "tokens"}
        found: dict[str, _DomainSums] = {}
        for name, value in sums.items():
            match name.split("/"):
                case [domain, _, what] if what in fields:
                    own = found.setdefault(domain, cls())
                    setattr(own, fields[what], getattr(own, fields[what]) + value)
        return {domain: own for domain, own in found.items() if own.rows > 0}


def _domain_figures(sums: Mapping[str, float], domains: Mapping[str, _DomainSums]) -> dict[str, float | None]:
    """By domain: loss per answer token; mean of the records' mean losses, with its standard error; the tasks' figures.

    macro_loss and worst_loss are of those means over the open domains.
    """
    found: dict[str, float | None] = {}
    for domain, own in domains.items():
        found[f"heldout_loss/{domain}"] = own.nats / own.tokens if own.tokens > 0 else None
        found[f"record_loss/{domain}"] = own.mean
        found[f"record_loss_error/{domain}"] = own.error
    for name, value in sums.items():
        match name.split("/"):
            case [domain, what] if what == RECORDS:
                found[f"records/{domain}"] = value
            case [domain, "classification", "classified"]:
                task = f"{domain}/classification"
                found[f"classification_accuracy/{domain}"] = _ratio(sums, f"{task}/correct", name)
            case [domain, "ner", "true_positives"]:
                found[f"span_f1/{domain}"] = _f1(sums, f"{domain}/ner/")
            case [domain, "instruction", "rouge_total"]:
                found[f"rouge_l/{domain}"] = _ratio(sums, f"{domain}/instruction/rouge_sum", name)
            case [domain, task, arm, what] if what == ROWS:
                path = f"{domain}/{task}/{arm}"
                found[f"template_loss/{path}"] = _ratio(sums, f"{path}/{LOSS}", name)
    if domains:
        means = [own.mean for own in domains.values()]
        found |= {"macro_loss": sum(means) / len(means), "worst_loss": max(means)}
    return found


def _ratio(sums: Mapping[str, float], numerator: str, denominator: str) -> float | None:
    top, over = sums.get(numerator), sums.get(denominator, 0.0)
    return top / over if top is not None and over > 0 else None


def _f1(sums: Mapping[str, float], prefix: str = "span_") -> float | None:
    """Micro-averaged span F1: 2 TP / (2 TP + FP + FN)."""
    names = tuple(f"{prefix}{what}" for what in ("true_positives", "false_positives", "false_negatives"))
    if any(name not in sums for name in names):
        return None
    hits, wrong, missed = (sums[name] for name in names)
    over = 2 * hits + wrong + missed
    return 2 * hits / over if over > 0 else None
