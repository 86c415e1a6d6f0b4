"""One held-out record's part in the figures, cut to what a record may add to a metric word where these are to be noisy.

Noise hides one record's part only if there is a largest one (`common.privacy`). A record's mean loss counts once, and
not for each of its tokens.
"""

from __future__ import annotations

from dataclasses import replace

from common.record_bounds import LOSS_BOUND, MOST_SPANS
from participant.training.result import DomainScores


def bounded(scores: DomainScores) -> DomainScores:
    """scores: of one record, its loss or its free answer."""
    mean = min(scores.loss_sum / scores.loss_tokens, LOSS_BOUND) if scores.loss_tokens else 0.0
    most = int(MOST_SPANS)
    return replace(
        scores,
        loss_sum=mean,
        loss_tokens=min(scores.loss_tokens, 1),
        loss_square_sum=mean**2,
        true_positives=min(scores.true_positives, most),
        false_positives=min(scores.false_positives, most),
        false_negatives=min(scores.false_negatives, most),
    )
