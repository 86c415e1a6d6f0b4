"""How one answer is judged: entity lines against mentions, and ROUGE-L. Pure functions over text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

NONE_ANSWER: Final = "None"

_WORD: Final = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Mention:
    """An entity as an answer names it."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class SpanCounts:
    """Strict counts for one text."""

    true_positives: int
    false_positives: int
    false_negatives: int
    malformed_lines: int


def mention_lines(mentions: Sequence[Mention]) -> str:
    """The answer that names these mentions, one "Label: mention" a line, or "None"."""
    return "\n".join(f"{mention.label}: {mention.text}" for mention in mentions) or NONE_ANSWER


def parse_mentions(answer: str) -> tuple[Counter[Mention], int]:
    """Mentions in an answer, and how many of its lines are neither a mention nor "None".

    Labels compare without regard to case, mentions by their words: white space is folded, nothing else.
    """
    mentions: Counter[Mention] = Counter()
    malformed = 0
    for line in answer.splitlines():
        text = " ".join(line.split())
        if not text or text.casefold().rstrip(".") == NONE_ANSWER.casefold():
            continue
        label, colon, mention = text.partition(":")
        if colon and label.strip() and mention.strip():
            mentions[normalised(Mention(label, mention))] += 1
        else:
            malformed += 1
    return mentions, malformed


def normalised(mention: Mention) -> Mention:
    """The form in which mentions are compared."""
    return Mention(" ".join(mention.label.split()).casefold(), " ".join(mention.text.split()))


def count_spans(answer: str, wanted: Sequence[Mention]) -> SpanCounts:
    """Strict counts: a mention is right if label and words are, as often as it is wanted.

    A mention that repeats one already found is a false positive; "None" finds nothing.
    """
    found, malformed = parse_mentions(answer)
    gold = Counter(normalised(mention) for mention in wanted)
    right = sum((found & gold).values())
    return SpanCounts(
        true_positives=right,
        false_positives=found.total() - right,
        false_negatives=gold.total() - right,
        malformed_lines=malformed,
    )


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L F1 over lower-case words, without stemming (Lin 2004, longest common subsequence). 0 to 1."""
    found, wanted = _WORD.findall(answer.lower()), _WORD.findall(reference.lower())
    common = _longest_common_subsequence(found, wanted)
    return 2.0 * common / (len(found) + len(wanted)) if common else 0.0


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    previous = [0] * (len(second) + 1)
    for word in first:
        row = [0]
        for column, other in enumerate(second):
            row.append(previous[column] + 1 if word == other else max(row[column], previous[column + 1]))
        previous = row
    return previous[-1]
