"""The demo's command line: a whole federation on this machine, from nothing to a tuned model, in minutes."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Final

from rich.console import Console

from common.durable import write_durably
from common.errors import AccordError
from common.methods import METHODS
from demo.figures import RunReport, to_json
from demo.folders import FINISHED_FILE, end_processes, fresh_folder, point_to_latest
from demo.progress import view_for
from demo.settings import DemoSettings, Judging, Training
from demo.tables import closing_lines, closing_tables

ROOT: Final = Path(".demo")
CACHE: Final = Path(".cache/demo")
FAILED: Final = 1
INTERRUPTED: Final = 130
PIPE_COLUMNS: Final = 120
HTML_FILE: Final = "report.html"

EPILOG: Final = """\
The three sites are a clinic (text classification), a smart-home maker (named entities) and a help desk (free
instructions), with records from texts inside small public packages. For your own:

  ACCORD_DEMO_DATA=folder    sub-folders with train.jsonl and test.jsonl, one record a line:
                             id, domain, task, instruction, input, output (+ label, or entities)
  ACCORD_DEMO_SETS=a,b,c     which three of them, one for each site

Runs lie below .demo (the newest that finished is .demo/latest), base model and records below .cache/demo.
demo/README.md says what is in report.json. Ctrl-C ends everything.

exit codes: 0 done, 1 failed, 2 the command line is wrong, 130 interrupted"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="One coordinator and three sites on this machine: enrolment, secure aggregation, training.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--method", choices=tuple(METHODS), default=Training().method, help="what is trained and sent (%(default)s)"
    )
    parser.add_argument("--rounds", type=_positive, default=Training().rounds, help="training rounds (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--folder", type=Path, default=ROOT, help="where runs go (%(default)s)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="base model and records (%(default)s)")
    parser.add_argument("--steps", type=_positive, default=Training().steps_per_round, help="a round (%(default)s)")
    parser.add_argument("--batch-size", type=_positive, default=Training().batch_size, help="records (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=Training().learning_rate, help="(%(default)s)")
    parser.add_argument(
        "--server-learning-rate", type=float, default=Training().server_learning_rate, help="(%(default)s)"
    )
    parser.add_argument("--records", type=_positive, help="at most so many records of each kind at a site")
    parser.add_argument("--base-model", type=Path, metavar="FOLDER", help="another one: safetensors folder or .gguf")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    settings = settings_of(options)
    # In a file or a pipe nobody has a width to tell us.
    console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)
    with contextlib.ExitStack() as parts:
        parts.enter_context(_interruptible())
        try:
            folder = parts.enter_context(fresh_folder(settings.root, now=datetime.now(UTC)))
            return _run(folder, settings, console)
        except KeyboardInterrupt:
            console.print("interrupted: everything has ended, and what was half done is removed", markup=False)
            return INTERRUPTED
        except AccordError as error:
            Console(stderr=True).print(
                f"error: {error.message}", markup=False, highlight=False, soft_wrap=True, style="red"
            )
            return FAILED


def settings_of(options: argparse.Namespace) -> DemoSettings:
    """The same as one value."""
    judging = Judging() if options.records is None else Judging().at_most(options.records)
    return DemoSettings(
        root=options.folder,
        cache=options.cache,
        json_file=options.json,
        base_model=options.base_model,
        records=options.records or 0,
        judging=judging,
        training=replace(
            Training(),
            method=options.method,
            rounds=options.rounds,
            steps_per_round=options.steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            server_learning_rate=options.server_learning_rate,
        ),
    )


def _run(folder: Path, settings: DemoSettings, console: Console) -> int:
    from demo.run import run_demo

    try:
        report = run_demo(folder, settings, view_for(console))
        html, json_file = _write(folder, report, settings)
        point_to_latest(settings.root, folder)
    except KeyboardInterrupt:
        end_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        end_processes(folder)
    console.print(closing_tables(report))
    for line in closing_lines(report, html=html, json_file=json_file):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def _write(folder: Path, report: RunReport, settings: DemoSettings) -> tuple[Path, Path]:
    """HTML and JSON beside the run, and the JSON where it was asked for; returns the paths."""
    from demo.report import html_report

    html, own = folder / HTML_FILE, folder / FINISHED_FILE
    html.write_text(html_report(report, finished=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"), encoding="utf-8")
    wanted = settings.json_file.resolve() if settings.json_file is not None else None
    content = to_json(report, files={"html": str(html), "json": str(wanted or own), "adapter": report.adapter.path})
    if wanted is not None:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        write_durably(wanted, content.encode())
    write_durably(own, content.encode())  # the last of all: it says that this run has finished
    return html, wanted or own


@contextmanager
def _interruptible() -> Iterator[None]:
    """The first signal that asks us to end is Ctrl-C, wherever we are; the others wait until all is put away."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        for name in signals:
            signal.signal(name, signal.SIG_IGN)
        raise KeyboardInterrupt

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {name: signal.signal(name, on_signal) for name in signals}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    # Every process of the demo has one thread, unless somebody knows better.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
