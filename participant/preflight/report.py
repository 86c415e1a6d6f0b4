"""What a preflight check is and what it says: one finding each, and whatever depends on a failed one is skipped.

Knows no single check and no command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, TypeVar

from common.errors import AccordError

S = TypeVar("S")


class Verdict(StrEnum):
    """WARNING: the daemon would run, and somebody should look. FAILED: it would not, or not for long."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and what to do about it ("" where there is nothing to do).

    reason: of a failure, as in docs/troubleshooting.md; "" where the check's name says it all.
    """

    check: str
    verdict: Verdict
    found: str
    action: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """The same before it has its check's name."""

    verdict: Verdict
    found: str
    action: str = ""
    reason: str = ""


def ok(found: str) -> Result:
    return Result(Verdict.OK, found)


def warning(found: str, action: str) -> Result:
    return Result(Verdict.WARNING, found, action)


def failed(found: str, action: str, *, kind: type[AccordError] | None = None) -> Result:
    """kind: the error that the daemon would run into."""
    return Result(Verdict.FAILED, found, action, kind.reason if kind is not None else "")


def skipped(reason: str) -> Result:
    return Result(Verdict.SKIPPED, reason)


@dataclass(frozen=True, slots=True)
class Check(Generic[S]):
    """One check of a site. needs: names of checks without which this one has nothing to look at.

    action: what to do when `look` raises, where the error's own message does not say.
    """

    name: str
    look: Callable[[S], Result]
    needs: tuple[str, ...] = ()
    action: str = ""


NOT_CHOSEN: Final = "not asked for"


def run_checks(
    checks: Sequence[Check[S]],
    site: S,
    *,
    chosen: Callable[[str], bool] = lambda name: True,
    on_start: Callable[[str], None] = lambda name: None,
) -> Iterator[Finding]:
    """Findings in the order of the checks, each as soon as it is known.

    A check that raises an AccordError has failed. One whose needs failed, or were skipped for such a reason, is
    skipped; one that is merely not chosen does not keep others from looking.
    """
    missing: set[str] = set()
    for check in checks:
        if not chosen(check.name):
            yield Finding(check.name, Verdict.SKIPPED, NOT_CHOSEN)
            continue
        lost = [name for name in check.needs if name in missing]
        if lost:
            missing.add(check.name)
            yield Finding(check.name, Verdict.SKIPPED, f"needs {', '.join(lost)}")
            continue
        on_start(check.name)
        try:
            result = check.look(site)
        except AccordError as error:
            result = failed(error.message, check.action, kind=type(error))
        if result.verdict is Verdict.FAILED:
            missing.add(check.name)
        yield Finding(check.name, result.verdict, result.found, result.action, result.reason)
