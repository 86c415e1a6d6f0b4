"""What both programs do with a command line and with the end of a command, whatever the command is."""

from __future__ import annotations

import argparse
import io
import json
import sys
from types import ModuleType

import pytest

from common.cli import output
from common.cli.parser import Parser
from common.cli.program import DONE, INTERRUPTED, Program
from common.errors import NotFound, Unavailable
from coordinator.cli.parser import build_parser as coordinator_parser
from participant.cli.parser import build_parser as participant_parser


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="accord-lab")
    parser.add_argument("--version", action="store_true")
    commands = parser.add_subparsers(parser_class=Parser)
    measure = commands.add_parser("measure")
    measure.add_argument("--json", action="store_true")
    measure.set_defaults(command="measure")
    return parser


PROGRAM = Program("accord-lab", "lab.cli", build_parser, lambda error: 6 if isinstance(error, NotFound) else 1)


@pytest.fixture
def measure(monkeypatch):
    """Make `accord-lab measure` end in a certain way."""

    def ends(way: int | BaseException) -> None:
        def execute(options: argparse.Namespace) -> int:
            if isinstance(way, BaseException):
                raise way
            return way

        module = ModuleType("lab.cli.measure")
        module.execute = execute  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "lab.cli.measure", module)

    return ends


def test_the_exit_code_is_the_commands(measure):
    measure(3)
    assert PROGRAM.run(["measure"]) == 3


def test_an_error_is_a_line_on_standard_error_and_a_code_of_its_own(measure, capsys):
    measure(NotFound("there is no run seven"))
    assert PROGRAM.run(["measure"]) == 6
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "error: there is no run seven\n"


def test_with_json_an_error_is_also_a_result(measure, capsys):
    measure(Unavailable("nobody listens"))
    assert PROGRAM.run(["measure", "--json"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out) == {"error": {"reason": "UNAVAILABLE", "message": "nobody listens"}}
    assert told.err == "error: nobody listens\n"


def test_ctrl_c_and_a_closed_pipe_end_without_a_traceback(measure, monkeypatch):
    measure(KeyboardInterrupt())
    assert PROGRAM.run(["measure"]) == INTERRUPTED

    monkeypatch.setattr(sys, "stdout", io.StringIO())
    measure(BrokenPipeError())
    assert PROGRAM.run(["measure"]) == DONE
    assert sys.stdout is None


def test_a_program_without_a_command_shows_its_help(capsys):
    with pytest.raises(SystemExit) as ended:
        PROGRAM.run([])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: accord-lab")


@pytest.mark.parametrize(
    ("parser", "words"),
    [
        (coordinator_parser, ["audit", "verify", "--dig", "ab"]),
        (participant_parser, ["charter", "pin", "--dig", "ab"]),
    ],
    ids=["coordinator", "participant"],
)
def test_an_option_is_never_guessed_from_its_beginning(parser, words, capsys):
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(words)
    assert ended.value.code == 2
    assert "--dig" in capsys.readouterr().err


def test_a_table_in_a_pipe_has_no_colours_and_says_where_nothing_is(capsys):
    output.print_table(("site", "state", "loss", "seen"), [("bank", "failed", 1.23456, None), ("spa", "ok", 2.0, "")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["site", "state", "loss", "seen"], ["bank", "failed", "1.235", "-"], ["spa", "ok", "2", "-"]]
