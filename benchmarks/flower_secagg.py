"""Side by side with Flower's SecAgg+: the same parameters, participants and dropouts, in one run on one machine.

    python -m benchmarks.flower_secagg --parameters 1000000 --participants 10 --dropouts 1

Both run their own code, participant and coordinator in a process of their own; CPU time is over all threads. Flower's
client masks with `secaggplus_mod` and its server collects and unmasks with `SecAggPlusWorkflow`; Accord's with
`write_masked` and `OpenSum`. Nothing goes over a network, and agreeing on keys and shares is not in the times. Flower
quantises to its usual 2**22 steps, Accord to those that its lanes leave (2 * 3276 for ten members).

Flower gets a venv of its own, below .tools, made at the first run; --python takes another one. Prints one JSON line;
`ratio` is Flower's figure by Accord's. Exit code 3: Flower is not to be had here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

from common.errors import AccordError

FLOWER_VERSION: Final = "1.41.0"
CHECKOUT: Final = Path(__file__).resolve().parents[1]
DEFAULT_VENV: Final = CHECKOUT / ".tools" / "flower"
FLOWER_MODULE: Final = "benchmarks.peers.flower_masking"
ACCORD_MODULE: Final = "benchmarks.peers.accord_masking"
SIDES: Final = ("participant", "coordinator")
NOT_TO_BE_HAD: Final = 3
# Above it Accord's graph is sparse, and the two would not do the same work.
MOST_PARTICIPANTS: Final = 128

Figures = dict[str, float]


class FlowerMissing(AccordError):
    """Flower cannot be installed or started here."""

    reason = "FLOWER_MISSING"


def flower_python(chosen: Path | None) -> Path:
    """A Python that has flwr: the chosen one, or that of our own venv, made where it is not there yet.

    Raises FlowerMissing that says what was tried.
    """
    # Absolute, as it is started from the checkout; not resolved: a venv's Python is a link, known by its place.
    python = (chosen or DEFAULT_VENV / "bin" / "python").absolute()
    if chosen is None and not _has_flower(python):
        venv.create(DEFAULT_VENV, with_pip=True)
        # Never into the checkout's own venv: Flower's versions of grpcio and protobuf are not ours.
        _run([str(python), "-m", "pip", "install", "--quiet", f"flwr=={FLOWER_VERSION}"])
    if not _has_flower(python):
        raise FlowerMissing(f"{python} cannot import flwr: install flwr=={FLOWER_VERSION} there or name another Python")
    return python


def _has_flower(python: Path) -> bool:
    if not python.exists():
        return False
    return subprocess.run([str(python), "-c", "import flwr"], capture_output=True, check=False).returncode == 0


def _run(command: list[str]) -> str:
    """What it prints. Raises FlowerMissing with its last words."""
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CHECKOUT)
    if ran.returncode:
        raise FlowerMissing(f"{' '.join(command[:4])} failed: {ran.stderr.strip()[-1000:]}")
    return ran.stdout


def figures_of(command: list[str], arguments: list[str]) -> Figures:
    """Both sides' figures, each side in a process of its own. Raises FlowerMissing when one fails."""
    found: Figures = {}
    for side in SIDES:
        found |= json.loads(_run([*command, side, *arguments]).splitlines()[-1])
    return found


def compared(flower: Figures, accord: Figures) -> Figures:
    """Flower's figure by Accord's, of each that both have. A memory below a MiB counts as one."""
    return {
        name: round(flower[name] / max(value, 1.0 if name.endswith("_mib") else 0.0), 1)
        for name, value in accord.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flower_secagg",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--participants", type=int, default=10)
    parser.add_argument("--dropouts", type=int, default=1)
    parser.add_argument("--python", type=Path, help="a Python that has flwr")
    options = parser.parse_args()
    if options.parameters < 1 or not 4 <= options.participants <= MOST_PARTICIPANTS:
        parser.error(f"at least one parameter, and 4 to {MOST_PARTICIPANTS} participants")
    if not 0 <= options.dropouts <= (options.participants - 1) // 3:
        parser.error("at most a third of the participants drop out: more, and neither side opens a sum")
    arguments = [str(value) for value in (options.parameters, options.participants, options.dropouts)]
    try:
        python = str(flower_python(options.python))
        version = _run([python, "-c", "from importlib.metadata import version; print(version('flwr'))"]).strip()
        flower = figures_of([python, "-m", FLOWER_MODULE], arguments)
    except FlowerMissing as error:
        print(f"Flower is not to be had here, so there is nothing to compare with: {error.message}", file=sys.stderr)
        return NOT_TO_BE_HAD
    accord = figures_of([sys.executable, "-m", ACCORD_MODULE], arguments)
    print(
        json.dumps(
            {
                "parameters": options.parameters,
                "participants": options.participants,
                "dropouts": options.dropouts,
                "flower_version": version,
                "flower": {name: round(value, 4) for name, value in flower.items()},
                "accord": {name: round(value, 4) for name, value in accord.items()},
                "ratio": compared(flower, accord),
                "cores": os.cpu_count(),
                "load": round(os.getloadavg()[0], 1),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
