"""A program with commands: reads the command line, runs one command, and turns its end into an exit code.

Knows no command; each is a module with `execute(options) -> int`, imported when it is asked for.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from common.cli.output import print_error
from common.errors import AccordError, StorageFailed

DONE: Final = 0
INTERRUPTED: Final = 130  # as shells count Ctrl-C


@dataclass(frozen=True, slots=True)
class Program:
    """name: as it is typed. commands: the package of the commands' modules. exit_of: the code for an error.

    The parser leaves in its options `version`, and `command`: which module is meant.
    """

    name: str
    commands: str
    build_parser: Callable[[], argparse.ArgumentParser]
    exit_of: Callable[[AccordError], int]

    def run(self, arguments: Sequence[str] | None = None) -> int:
        """The exit code of the command. Errors that a person can act on are printed, never shown as a traceback."""
        parser = self.build_parser()
        options = parser.parse_args(arguments)
        if options.version:
            from common.version import software_version

            sys.stdout.write(f"{self.name} {software_version()}\n")
            return DONE
        if not hasattr(options, "command"):
            # The name alone, or that of a group of commands: the help is the answer.
            words = list(sys.argv[1:] if arguments is None else arguments)
            parser.parse_args([*words, "--help"])
        return self._execute(options)

    def _execute(self, options: argparse.Namespace) -> int:
        module = importlib.import_module(f"{self.commands}.{options.command}")
        try:
            return int(module.execute(options))
        except AccordError as error:
            print_error(error, as_json=getattr(options, "json", False))
            return self.exit_of(error)
        except PermissionError as error:
            denied = StorageFailed(
                f"no permission for {error.filename}: run this as root, or as the service's own user"
            )
            print_error(denied, as_json=getattr(options, "json", False))
            return self.exit_of(denied)
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:
            # Whoever read the output has gone (| head); the interpreter must not complain about it at its end.
            sys.stdout = None
            return DONE
