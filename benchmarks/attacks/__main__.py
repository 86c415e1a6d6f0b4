"""The three attacks that open Flower's SecAgg+, tried on Accord by a coordinator that lies and has one member's help.

    python -m benchmarks.attacks
    python -m benchmarks.attacks --json
    python -m benchmarks.attacks --flower .tools/flower/bin/python

Five organisations, one of which gives the coordinator all that it has. Each attack says what was sent, what the site
answered and what the attacker holds in the end, and then goes for the victim's update with all of it: every mask that
it can compute is taken off, and what is left is compared with the true update. The control is the same with the
victim's own masks: it shows that the comparison finds an update where there is one. Exit code 1 if an attack learns
something. --flower also runs the attacks on Flower's client functions, in a Python that has `flwr`.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks.attacks.alive_and_dead import alive_and_dead
from benchmarks.attacks.alone_with_threshold_one import alone_with_threshold_one
from benchmarks.attacks.attacker import NAMES, Finding
from benchmarks.attacks.invented_neighbours import invented_neighbours
from benchmarks.attacks.report import told, told_of_flower
from benchmarks.flower_secagg import CHECKOUT, FlowerMissing, flower_python
from benchmarks.lying_coordinator import World
from common import log

FLOWER_MODULE: Final = "benchmarks.peers.flower_attacks"
ATTACKS: Final = (alive_and_dead, alone_with_threshold_one, invented_neighbours)


def demonstrate(folder: Path) -> list[Finding]:
    """Every attack in a federation of its own below `folder`."""
    findings = []
    for at, attack in enumerate(ATTACKS):
        world = World(folder / attack.__name__, NAMES, seed=10 * at)
        try:
            findings.append(attack(world))
        finally:
            world.close()
    return findings


def attack_flower(python: Path) -> list[dict[str, Any]]:
    """The same attacks on Flower's client functions. Raises CalledProcessError."""
    ran = subprocess.run([str(python), "-m", FLOWER_MODULE], check=True, stdout=subprocess.PIPE, cwd=CHECKOUT)
    found: list[dict[str, Any]] = json.loads(ran.stdout)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attacks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON line instead of text")
    parser.add_argument("--flower", type=Path, metavar="PYTHON", help="a Python that has flwr, to compare with")
    options = parser.parse_args()
    try:
        python = None if options.flower is None else flower_python(options.flower)
    except FlowerMissing as error:
        parser.error(f"--flower: {error.message}")
    # What the sites log of the lies is in their answers.
    log.configure(form=log.LogForm.CONSOLE, level=logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="accord-attacks-") as folder:
        findings = demonstrate(Path(folder))
    flower = [] if python is None else attack_flower(python)
    if options.json:
        accord = [{**asdict(finding), "has_learned": finding.has_learned} for finding in findings]
        print(json.dumps({"accord": accord, "flower": flower}))
    else:
        print("\n\n".join([*map(told, findings), *map(told_of_flower, flower)]))
    return 1 if any(finding.has_learned for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
