"""`accord-coordinator`: reads the command line, runs one command, and turns its end into an exit code."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from coordinator.cli.parser import build_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the command. Errors that a person can act on are printed, never shown as a traceback."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.version:
        from common.version import software_version

        sys.stdout.write(f"accord-coordinator {software_version()}\n")
        return 0
    if not hasattr(options, "command"):
        # "accord-coordinator" or "accord-coordinator run" alone: the help is the answer.
        words = list(sys.argv[1:] if arguments is None else arguments)
        parser.parse_args([*words, "--help"])
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    from common.errors import AccordError
    from coordinator.cli.exits import Exit, exit_of
    from coordinator.cli.output import print_error

    module = importlib.import_module(f"coordinator.cli.{options.command}")
    try:
        return int(module.execute(options))
    except AccordError as error:
        print_error(error, as_json=getattr(options, "json", False))
        return exit_of(error)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone (| head); the interpreter must not complain about it at its end.
        sys.stdout = None
        return Exit.OK


if __name__ == "__main__":
    sys.exit(main())
