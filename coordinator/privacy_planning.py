"""From what an operator asks for to a plan's terms of privacy.

Pure. What makes sense lies in `common.privacy`; whether a site's budget allows it, only the site knows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from common import jsonform
from common.errors import InvalidArgument
from common.plan import Plan
from common.privacy import LargestPart, MetricNoise, Privacy, PrivateTraining, largest_part, noisy_words


@dataclass(frozen=True, slots=True)
class AskedNoise:
    """multiplier: as in `MetricNoise`."""

    multiplier: float


@dataclass(frozen=True, slots=True)
class AskedPrivacy:
    """What an operator writes: `{"training": {"epsilon": 4}, "metrics": {"multiplier": 10}}`, either or both."""

    training: PrivateTraining | None = None
    metrics: AskedNoise | None = None


def with_privacy(plan: Plan, asked: str) -> tuple[Plan, list[str]]:
    """The plan with the terms that `asked` (JSON, "" for none) comes to, and every mistake in them.

    Called once the plan has all its metric groups.
    """
    if not asked:
        return plan, []
    try:
        wanted = jsonform.decode(asked, AskedPrivacy, what="privacy_json")
    except InvalidArgument as error:
        return plan, [error.message]
    noise = None
    if wanted.metrics is not None:
        words = noisy_words(plan.masking.metric_groups)
        unknown = [word for word in words if largest_part(word) is None]
        if unknown:
            return plan, [f"privacy_json: nothing is known of what one record can add to {', '.join(unknown)}"]
        parts = tuple(LargestPart(word, largest_part(word) or 0.0) for word in words)
        noise = MetricNoise(wanted.metrics.multiplier, parts)
    return replace(plan, privacy=Privacy(wanted.training, noise)), []
