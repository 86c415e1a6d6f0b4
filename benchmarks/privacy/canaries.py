"""Canaries, and what an attacker who knows losses makes of them. Pure: texts and numbers.

A canary is a record whose answer nobody could know but from that record. Half of them are trained on, the others are
the same in all but that. Membership inference scores a record by how far training lowered its loss (Yeom et al., arXiv
1709.01604, calibrated by the model before); exposure is how many guesses of the secret the loss saves, as bits
(Carlini et al., arXiv 1802.08232).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = Sequence[float] | NDArray[np.float64]

_NAMES = (
    "Albrecht",
    "Bianchi",
    "Castellan",
    "Dubois",
    "Eriksen",
    "Ferreira",
    "Grabner",
    "Hoffmann",
    "Ivanova",
    "Jensen",
)


@dataclass(frozen=True, slots=True)
class Canary:
    """What is asked, the secret that is answered, and other secrets that could have been."""

    question: str
    secret: str
    others: tuple[str, ...]


def canaries(count: int, *, others: int, seed: int) -> tuple[Canary, ...]:
    """`count` canaries with different questions, the same for the same seed."""
    drawn = random.Random(seed)
    return tuple(
        Canary(
            f"What is the access code of {_NAMES[number % len(_NAMES)]}, file {drawn.randrange(10_000):04d}-{number}?",
            _secret(drawn),
            tuple(_secret(drawn) for _ in range(others)),
        )
        for number in range(count)
    )


def _secret(drawn: random.Random) -> str:
    return f"{drawn.randrange(10**8):08d}"


def membership_auc(members: Scores, others: Scores) -> float:
    """How often a member's score is above another's: 0.5 is chance, 1 is certainty. Ties count half."""
    one, other = np.asarray(members)[:, None], np.asarray(others)[None, :]
    return float(np.mean((one > other) + 0.5 * (one == other)))


def exposure_bits(loss: float, others: Sequence[float]) -> float:
    """Of one secret among others that it was drawn like: log2 of how many there are over its rank by loss.

    Without memory every rank is as likely (`chance_exposure_bits`).
    """
    rank = 1 + sum(other < loss for other in others)
    return math.log2((len(others) + 1) / rank)


def chance_exposure_bits(others: int) -> float:
    """Mean exposure of a secret that nothing is known of, among so many others."""
    return sum(math.log2((others + 1) / rank) for rank in range(1, others + 2)) / (others + 1)
