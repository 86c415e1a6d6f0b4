"""Whether a candidate adapter is accepted: the round after it has measured it on everybody's held-out records."""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.plan import Gate


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer, with the figures behind it."""

    is_accepted: bool
    message: str


def judge(loss: float | None, *, accepted_loss: float | None, gate: Gate) -> Verdict:
    """Compare a candidate's mean held-out loss with the accepted adapter's; both in nats per answer token.

    loss: None when too few of the cohort have held-out records; then there is nothing to judge by, and the candidate
    passes.
    """
    if loss is None:
        return Verdict(True, "no held-out loss to judge by: too few of the cohort have held-out records")
    if not math.isfinite(loss):
        return Verdict(False, f"held-out loss is {loss}")
    if accepted_loss is None:
        return Verdict(True, f"first measured held-out loss is {loss:.4f}")
    bound = accepted_loss * (1 + gate.loss_rise)
    comparison = f"held-out loss {loss:.4f}, accepted adapter {accepted_loss:.4f}, bound {bound:.4f}"
    return Verdict(loss <= bound, comparison)


@dataclass(frozen=True, slots=True)
class Measured:
    """A domain's mean loss over its held-out records, with its standard error, in nats."""

    loss: float
    error: float


def judge_improvement(before: Measured | None, after: Measured | None, *, standard_errors: float) -> Verdict:
    """Whether a domain adapter is worth having: better than without it by more than chance would make it.

    None for what too few sites measured; then nothing is shown, and the adapter is not kept.
    """
    if before is None or after is None:
        return Verdict(False, "its domain's loss was not measured by enough sites, with and without it")
    gain = before.loss - after.loss
    needed = standard_errors * math.hypot(before.error, after.error)
    comparison = f"its domain's loss {after.loss:.4f}, without it {before.loss:.4f}; it must be lower by {needed:.4f}"
    return Verdict(math.isfinite(gain) and gain > needed, comparison)
