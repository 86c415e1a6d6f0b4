"""`accord-participant check`: the preflight checks, as a table that grows or as JSON."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from common.cli.output import print_json, print_note, print_table
from common.clock import SystemClock
from common.errors import InvalidArgument
from participant.cli.exits import Exit
from participant.preflight import CHECK_NAMES, Finding, Site, Verdict, before_start, preflight
from participant.training.result import Progress


def execute(options: argparse.Namespace) -> Exit:
    """Run the checks that were asked for. FAILED if one of them has failed."""
    findings = tuple(_findings(options))
    has_failed = any(finding.verdict is Verdict.FAILED for finding in findings)
    if options.json:
        print_json({"ok": not has_failed, "checks": [asdict(finding) for finding in findings]})
    else:
        _print(findings)
    return Exit.FAILED if has_failed else Exit.OK


def _findings(options: argparse.Namespace) -> Iterator[Finding]:
    only, skip = _known(options.only or []), _known(options.skip or [])
    site = Site(options.config, clock=SystemClock(), on_progress=_tell)
    on_start = _tell_start if sys.stderr.isatty() and not options.json else lambda name: None
    if not options.before_start:
        return preflight(site, chosen=lambda name: name not in skip and (not only or name in only), on_start=on_start)
    if only or skip:
        raise InvalidArgument("--before-start is a choice of checks; leave out --only and --skip")
    token: Path | None = options.join_token_file
    return before_start(site, will_enroll=token is not None and token.exists(), on_start=on_start)


def _known(names: Sequence[str]) -> frozenset[str]:
    unknown = sorted(set(names) - set(CHECK_NAMES))
    if unknown:
        raise InvalidArgument(f"there is no check {', '.join(unknown)}; there are {', '.join(CHECK_NAMES)}")
    return frozenset(names)


def _print(findings: Sequence[Finding]) -> None:
    print_table(
        ["check", "verdict", "found, and what to do"],
        [
            [finding.check, finding.verdict.value, finding.found + (f"\n→ {finding.action}" if finding.action else "")]
            for finding in findings
        ],
    )
    counts = Counter(finding.verdict for finding in findings)
    print_note(", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict]))


def _tell_start(name: str) -> None:
    sys.stderr.write(f"\r\x1b[Kchecking {name} ...\r")


def _tell(progress: Progress) -> None:
    print_note(f"base model: {progress.detail or progress.phase.value}")
