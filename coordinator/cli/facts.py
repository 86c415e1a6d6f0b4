"""What the coordinator knows of a thing, as a person reads it: facts below each other, short digests, times, names."""

from __future__ import annotations

from collections.abc import Iterable

from common.cli.output import cell, print_text


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Names and values below each other; empty values are left out."""
    shown = [(name, cell(value)) for name, value in facts if value not in (None, "", [], ())]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print_text(f"{name:<{width}}  {value}")


def short(digest: str) -> str:
    """Enough of a digest to tell one from another."""
    return digest[:12]


def moment(time: str | None) -> str:
    """An RFC 3339 time without its fraction, "-" where there is none."""
    return "-" if not time else time.split(".")[0].rstrip("Z").replace("T", " ") + "Z"


def bare(name: str) -> str:
    """ "participants/bank" as "bank"."""
    return name.rsplit("/", 1)[-1]
