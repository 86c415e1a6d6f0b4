"""docs/troubleshooting.md has an entry for every reason that the product can give, and no other."""

import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import common
import coordinator
import participant
from common.errors import AccordError

PAGE = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^### ([A-Z_]+)$", PAGE, re.MULTILINE)
REASON = re.compile(r"[A-Z]+(_[A-Z]+)*")
# Here such a constant is a reason: of a drop, of a failed round or run, of being awaited, or a label of a metric.
_OF_REASONS = ("coordinator.rounds.", "coordinator.driver.", "coordinator.metrics", "participant.metrics")


_PRODUCT = (common, coordinator, participant)


def modules() -> list[ModuleType]:
    found = []
    for package in _PRODUCT:
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            # The training stack and what starts a program are no place of errors that an operator sees.
            elsewhere = info.name.startswith(("participant.training.", "coordinator.store.migrations"))
            if not elsewhere and not info.name.endswith("__main__"):
                found.append(importlib.import_module(info.name))
    return found


def kinds_of(kind: type[AccordError]) -> set[type[AccordError]]:
    return {kind}.union(*(kinds_of(one) for one in kind.__subclasses__()))


@pytest.fixture(scope="module")
def reasons() -> set[str]:
    loaded = modules()
    names = {package.__name__ for package in _PRODUCT}
    of_errors = {kind.reason for kind in kinds_of(AccordError) if kind.__module__.split(".")[0] in names}
    of_rounds = {
        value
        for module in loaded
        if module.__name__.startswith(_OF_REASONS)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str) and REASON.fullmatch(value)
    }
    return of_errors | of_rounds


def test_every_reason_has_an_entry_and_every_entry_is_a_reason(reasons):
    assert {"QUORUM_MISSED", "NOT_FOUND", "NO_IMPROVEMENT"} <= reasons
    assert sorted(ENTRIES) == sorted(reasons)


def test_every_entry_says_who_acts_and_what_it_means():
    for entry in re.split(r"^### [A-Z_]+\n", PAGE, flags=re.MULTILINE)[1:]:
        text = re.split(r"^## ", entry, flags=re.MULTILINE)[0]
        assert text.startswith("*("), text[:60]
        assert len(text.split()) > 12, text
