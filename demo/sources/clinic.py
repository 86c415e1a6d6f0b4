"""The clinic: which part of medicine a diagnosis belongs to.

Diagnoses and chapters of ICD-10-CM (a work of the United States government) as the package simple-icd-10-cm has them.
Eight chapters whose names an outsider understands; the label is the chapter in one or two plain words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Final

import simple_icd_10_cm as icd

from demo.sources.records import Parts, Record, classification, join, split

SITE: Final = "clinic"
DOMAIN: Final = "medicine"
INSTRUCTION: Final = "Which part of medicine does this diagnosis belong to? Answer with its name only."
CHAPTERS: Final = {
    "2": "tumor",
    "5": "mental health",
    "7": "eye",
    "9": "circulation",
    "10": "breathing",
    "11": "digestion",
    "15": "pregnancy",
    "19": "injury",
}

# A code of three characters is a category, of four a case of it; longer ones say which side and which visit.
_CODE_LENGTHS: Final = (3, 4)
_TEXT_LENGTHS: Final = range(8, 71)
_CASES_OF_A_CATEGORY: Final = 4
# Phrases that file a diagnosis instead of naming it.
_FILING: Final = re.compile(
    r"\b(elsewhere|unspecified|other specified|specified as|classified|sequela|NEC|NOS)\b", re.I
)


def build(*, train: int, held_out: int) -> Parts:
    """Equally many records of every chapter; a category and its cases are in one part only."""
    labels = len(CHAPTERS)
    return join(
        split(_of_chapter(chapter, label), train=train // labels, held_out=held_out // labels)
        for chapter, label in CHAPTERS.items()
    )


def _of_chapter(chapter: str, label: str) -> Iterator[tuple[str, Record]]:
    """Category and record."""
    taken: Counter[str] = Counter()
    for code in icd.get_descendants(chapter):
        text = icd.get_description(code)
        category = code[:3]
        if "-" in code or len(code.replace(".", "")) not in _CODE_LENGTHS or len(text) not in _TEXT_LENGTHS:
            continue
        if _FILING.search(text) or taken[category] == _CASES_OF_A_CATEGORY:
            continue
        taken[category] += 1
        yield category, classification(SITE, DOMAIN, instruction=INSTRUCTION, input_text=text, label=label)
