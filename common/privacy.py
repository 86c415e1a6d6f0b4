"""What a plan says about the privacy of single records: private training at each site, noise on the figures.

Pure, and only words and bounds: what is spent is the site's own to count (`participant.privacy`). Nothing here hides
that an organisation takes part: with three to a hundred members, noise that did so would leave no update.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from common.domains import LOSS, NATS, RECORDS, REFERENCE, ROWS, SQUARES, TOKENS
from common.record_bounds import LOSS_BOUND, MOST_SPANS
from common.secagg import MetricGroup

# The largest part that one held-out record may have in a metric word, by what the word says: the mean loss of its
# answer tokens in nats, its square, counts, and ROUGE-L. A site that adds noise cuts every record's part to these, and
# counts a record's mean loss once instead of its tokens'.
LARGEST_PARTS: Final[Mapping[str, float]] = {
    "heldout_loss": LOSS_BOUND,
    "heldout_tokens": 1.0,
    "classification_correct": 1.0,
    "classification_total": 1.0,
    "span_true_positives": MOST_SPANS,
    "span_false_positives": MOST_SPANS,
    "span_false_negatives": MOST_SPANS,
    "rouge_sum": 1.0,
    "rouge_total": 1.0,
    # The last parts of domains' words.
    ROWS: 1.0,
    LOSS: LOSS_BOUND,
    SQUARES: LOSS_BOUND**2,
    TOKENS: 1.0,
    NATS: LOSS_BOUND,
    REFERENCE: LOSS_BOUND,
    "correct": 1.0,
    "classified": 1.0,
    "true_positives": MOST_SPANS,
    "false_positives": MOST_SPANS,
    "false_negatives": MOST_SPANS,
}
# Beyond it the sampler's doubles would not tell neighbouring integers apart.
MOST_MULTIPLIER: Final = 400.0


def largest_part(word: str) -> float | None:
    """The most that one held-out record may add to a metric word; None for a word that this version does not know."""
    return LARGEST_PARTS.get(word, LARGEST_PARTS.get(word.rsplit("/", 1)[-1]) if "/" in word else None)


def noisy_words(groups: Iterable[MetricGroup]) -> tuple[str, ...]:
    """The words of metric groups that noise is for: all but the sizes of training sets, which are not secret here."""
    return tuple(word for group in groups if not group.name.endswith(f"/{RECORDS}") for word in group.words)


@dataclass(frozen=True, slots=True)
class PrivateTraining:
    """DP-SGD (arXiv 1607.00133) at every site, accounted by the site for the whole run.

    epsilon, delta: what all updates of the run together may tell of one training record, by adding or removing it;
    delta None is 1 / (10 n) at a site of n records. clip: L2 bound on one record's gradient. spare_rounds: rounds
    beyond the plan's that the noise is sized for, because rounds that fail once updates were sent have spent, too.
    """

    epsilon: float
    clip: float = 0.5
    delta: float | None = None
    spare_rounds: int = 1


@dataclass(frozen=True, slots=True)
class LargestPart:
    """The most that one held-out record may add to a metric word."""

    word: str
    most: float


@dataclass(frozen=True, slots=True)
class MetricNoise:
    """Noise on the words of metric groups (`noisy_words`), a share from every honest member (arXiv 2110.04995).

    multiplier: standard deviation of a word's noise over the largest part of one record, once the shares of the honest
    members alone are in. parts: for each of these words.
    """

    multiplier: float
    parts: tuple[LargestPart, ...]

    def most(self, word: str) -> float | None:
        """The largest part of a record in this word; None for a word without noise."""
        return next((part.most for part in self.parts if part.word == word), None)


@dataclass(frozen=True, slots=True)
class Privacy:
    """None: the plan asks for nothing, and promises nothing."""

    training: PrivateTraining | None = None
    metrics: MetricNoise | None = None

    def mistakes(self, groups: Iterable[MetricGroup]) -> Iterator[str]:
        """Everything that makes no sense, each as a line for a person. groups: of the plan."""
        if self.training is not None:
            yield from _training_mistakes(self.training)
        if self.metrics is not None:
            yield from _noise_mistakes(self.metrics, noisy_words(groups))


def guarantee_of(privacy: Privacy) -> tuple[str, ...]:
    """What sites were asked to promise, in sentences for the manifest; none where the plan asks for nothing.

    What a site has kept of it, and spent in other runs, its own `accord-participant privacy` says.
    """
    training, metrics = privacy.training, privacy.metrics
    if training is None and metrics is None:
        return ()
    said = ["Unit: one record, which is one row of a site's data file; added or removed."]
    if training is not None:
        delta = "1 / (10 n) at a site of n records" if training.delta is None else f"{training.delta:g}"
        said.append(
            f"Each site's updates of the whole run are together (epsilon {training.epsilon:g}, delta {delta})"
            "-differentially private for its training records, by DP-SGD, accounted and enforced by the site itself; "
            "so is every adapter that is made of them."
        )
    if metrics is not None:
        said.append(
            f"Sums of figures about held-out records carry Skellam noise of {metrics.multiplier:g} times the most that "
            "one record can add to each, from every member; that counts on members that are honest and stay."
        )
    said.append(
        "Nothing is promised for a person with several rows beyond as many times epsilon, for the sizes of training "
        "sets, and for the fact that an organisation takes part."
    )
    return tuple(said)


def told_sums(sums: Mapping[str, float], noise: MetricNoise | None) -> dict[str, float]:
    """A round's summed words as they are used: noise may have taken one below zero, which no loss or count is."""
    noisy = {part.word for part in noise.parts} if noise is not None else set()
    return {word: max(value, 0.0) if word in noisy else value for word, value in sums.items()}


def _training_mistakes(terms: PrivateTraining) -> Iterator[str]:
    if not 0 < terms.epsilon <= 100:
        yield "privacy.training.epsilon must be over 0 and at most 100: beyond that it promises nothing"
    if not (math.isfinite(terms.clip) and terms.clip > 0):
        yield "privacy.training.clip must be a positive number"
    if terms.delta is not None and not 0 < terms.delta <= 1e-3:
        yield "privacy.training.delta must be over 0 and at most 0.001: it is the chance that epsilon does not hold"
    if not 0 <= terms.spare_rounds <= 10_000:
        yield "privacy.training.spare_rounds must be from 0 to 10000"


def _noise_mistakes(noise: MetricNoise, wanted: Collection[str]) -> Iterator[str]:
    if not 0 < noise.multiplier <= MOST_MULTIPLIER:
        yield f"privacy.metrics.multiplier must be over 0 and at most {MOST_MULTIPLIER:g}"
    words = [part.word for part in noise.parts]
    if len(set(words)) < len(words):
        yield "privacy.metrics.parts must be of distinct words"
    if set(words) != set(wanted):
        odd = ", ".join(sorted(set(words) ^ set(wanted)))
        yield f"privacy.metrics.parts must name every word of the metric groups and no other; they differ in {odd}"
    others = [part.word for part in noise.parts if part.most != largest_part(part.word)]
    if others:
        # Sites cut records' parts to what is known here, not to what a plan says.
        names = ", ".join(others)
        yield f"privacy.metrics.parts: this version does not cut a record's part in {names} as the plan says"
