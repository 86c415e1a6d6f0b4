"""The experiment of one preset, from where it stopped: results.json, a report in Markdown, and plots.

python -m experiments --preset small|full [--data FOLDER] [--out FOLDER]
python -m experiments --preset full --seeds 2 --rates rates.json    # one of several machines
python -m experiments --join one/results.json two/results.json --out FOLDER
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from rich.console import Console

from common import jsonform
from common.cores import usable_cores
from common.durable import write_durably
from common.errors import AccordError, InvalidArgument
from demo.founding import prepare_model
from experiments.arms import Arms
from experiments.experiment import RATES_FILE, Outcome, joined, run_experiment
from experiments.pool import Pool
from experiments.presets import PRESETS, Preset, preset_named
from experiments.rates import ChosenRates
from experiments.report import markdown_report, tables
from experiments.sites import make_sites

T = TypeVar("T")

DATA_VARIABLE: Final = "ACCORD_EXPERIMENT_DATA"
OUT: Final = Path("experiments/out")
CACHE: Final = Path(".cache/demo")
RESULTS_FILE: Final = "results.json"
REPORT_FILE: Final = "results.md"
PIPE_COLUMNS: Final = 160
FAILED: Final = 1
INTERRUPTED: Final = 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Does tuning together beat tuning alone? Measured, from where it stopped.",
    )
    parser.add_argument("--preset", default="small", help=f"{', '.join(PRESETS)} (%(default)s)")
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get(DATA_VARIABLE) or None,
        help="folder with clinc150, ncbi_disease, bc5cdr, dolly and medquad, each with train, validation and "
        f"test.jsonl; also as {DATA_VARIABLE}. Without it: the demo's records, three domains, too few for the claims",
    )
    parser.add_argument(
        "--seeds", type=_numbers, default=(), metavar="N,N", help="of the preset's seeds, only these (all)"
    )
    parser.add_argument(
        "--rates", type=Path, metavar="FILE", help=f"{RATES_FILE} of another run, in place of a search of the rates"
    )
    parser.add_argument(
        "--join",
        type=Path,
        nargs="+",
        default=(),
        metavar="FILE",
        help=f"train nothing: one report of several {RESULTS_FILE}, each of other seeds",
    )
    parser.add_argument("--out", type=Path, help=f"folder of all work ({OUT}/PRESET)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="base model (%(default)s)")
    parser.add_argument("--slots", type=int, default=usable_cores(), help="jobs at the same time (%(default)s)")
    parser.add_argument("--base-model", type=Path, metavar="FOLDER", help="another one: safetensors folder or .gguf")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.join and not options.out:
        parser.error("--join needs --out: the folder of the new report")
    # In a file or a pipe nobody has a width to tell us.
    console, began = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS), time.monotonic()

    def say(text: str) -> None:
        line = f"[{int(time.monotonic() - began):>6} s] {text}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    # Ended by a service manager as by Ctrl-C, and in the background too, where a shell has Ctrl-C ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        preset = preset_named(options.preset)
        place = (options.out or OUT / preset.name).resolve()
        if options.join:
            outcome = joined([_read(path, Outcome) for path in options.join])
        else:
            outcome = _run(preset, place, options, say)
        place.mkdir(parents=True, exist_ok=True)
        write_durably(place / RESULTS_FILE, jsonform.encode(outcome, Outcome).encode() + b"\n")
        # As it is read back, so that a report that is made of results again is the same.
        outcome = _read(place / RESULTS_FILE, Outcome)
        (place / REPORT_FILE).write_text(markdown_report(outcome, place), encoding="utf-8")
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here")
        return INTERRUPTED
    except AccordError as error:
        Console(stderr=True).print(f"error: {error.message}", markup=False, style="red", soft_wrap=True)
        return FAILED
    for table in tables(outcome):
        console.print(table)
    say(f"results: {place / RESULTS_FILE}, report: {place / REPORT_FILE}")
    return 0


def _run(preset: Preset, place: Path, options: argparse.Namespace, say: Callable[[str], None]) -> Outcome:
    model, base = prepare_model(options.cache, options.base_model)
    sites = make_sites(preset, place / "sites", data=options.data)
    say(f"{len(sites)} sites in {len({site.domain for site in sites})} domains, base model {model.name}")
    with Pool(place, base_model=base.folder, slots=options.slots) as pool:
        arms = Arms(preset=preset, place=place, sites=sites, model=model, base=base, pool=pool, say=say)
        chosen = _read(options.rates, ChosenRates) if options.rates else None
        return run_experiment(arms, numbers=options.seeds, chosen=chosen)


def _read(path: Path, of: type[T]) -> T:
    """Raises InvalidArgument if the file is not there, or is something else."""
    try:
        return jsonform.decode(path.read_bytes(), of, what=str(path))
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error.strerror}") from error


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


if __name__ == "__main__":
    # One thread a process: two spinning pools on two cores are slower than one thread each.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
