"""Applies the mutants to a copy of the source, one at a time, and runs the tests that must fail of each.

    python -m tests.mutants [part of a name ...]

Prints a table; exits with 1 if a mutant survives, cannot be applied or does not even start, or if a test that is to
kill one fails without it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from tests.mutants.table import MUTANTS, Mutant

ROOT: Final = Path(__file__).parents[2]
COPIED: Final = ("common", "participant", "coordinator", "protos", "benchmarks", "demo", "tests", "pyproject.toml")
WORKERS: Final = min(2, os.cpu_count() or 1)
SECONDS: Final = 300
_FAILED: Final = re.compile(r"^(?:FAILED|ERROR) ([^\s\[]+::[^\s\[]+)", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    failed: frozenset[str]
    seconds: float
    output: str


def copy_tree(target: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name)


def run_tests(tree: Path, tests: Iterable[str]) -> Outcome:
    """Which of the tests failed. No byte code is written: two versions of a file may share a time stamp."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--tb=short"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""}
    found = subprocess.run(
        [*command, *sorted(set(tests))],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return Outcome(frozenset(_FAILED.findall(found.stdout)), time.monotonic() - began, found.stdout + found.stderr)


def try_mutant(tree: Path, mutant: Mutant) -> Outcome:
    """Leaves the tree as it was."""
    files = {edit.file: (tree / edit.file).read_text() for edit in mutant.edits}
    try:
        for edit in mutant.edits:
            edit.apply(tree)
        return run_tests(tree, mutant.killers)
    finally:
        for name, text in files.items():
            (tree / name).write_text(text)


def short(test: str) -> str:
    return test.rpartition("::")[2].removeprefix("test_")


def report(mutant: Mutant, outcome: Outcome) -> bool:
    """Print a row; whether the mutant is dead."""
    missing = [killer for killer in mutant.killers if killer not in outcome.failed]
    verdict = "survived" if missing else "killed"
    print(f"{verdict:9}{outcome.seconds:5.1f} s  {mutant.name}")
    for killer in mutant.killers:
        print(f"{'':18}{'by' if killer in outcome.failed else 'NOT by'} {short(killer)}")
    if missing:
        print("\n".join(f"{'':18}| {line}" for line in outcome.output.splitlines()[-8:]))
    return not missing


def main(wanted: Collection[str]) -> int:
    mutants = [one for one in MUTANTS if not wanted or any(part in one.name for part in wanted)]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(WORKERS) as pool:
        trees: SimpleQueue[Path] = SimpleQueue()
        for worker in range(WORKERS):
            copy_tree(Path(folder) / str(worker))
            trees.put(Path(folder) / str(worker))

        def in_a_tree(mutant: Mutant) -> Outcome:
            tree = trees.get()
            try:
                return try_mutant(tree, mutant)
            finally:
                trees.put(tree)

        healthy = run_tests(Path(folder) / "0", (killer for one in mutants for killer in one.killers))
        if healthy.failed or " passed" not in healthy.output:
            print(healthy.output)
            print("these tests must pass before mutants are made")
            return 1
        outcomes = pool.map(in_a_tree, mutants)
        dead = [report(mutant, outcome) for mutant, outcome in zip(mutants, outcomes, strict=True)]
    print(f"{sum(dead)} of {len(dead)} mutants killed")
    return 0 if all(dead) and dead else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
