"""`track`: a run's published figures in an experiment tracker, once or for as long as the run goes on."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import closing, redirect_stdout
from pathlib import Path

from common.cli.output import print_json, print_note
from common.errors import InvalidArgument, Unavailable
from common.identifiers import run_name
from coordinator.cli.connection import open_client
from coordinator.cli.exits import Exit
from coordinator.services.admin_client import AdminClient
from coordinator.tracking.board import TensorBoard
from coordinator.tracking.ml_flow import MlFlow
from coordinator.tracking.points import OVER, Subject, Tracker, points_of, subject_of


def execute(options: argparse.Namespace) -> Exit:
    name = run_name(options.run.removeprefix("runs/"))
    with open_client(options) as client:
        federation = client.federation()["federation"]
        subject = subject_of(federation, client.run(name))
        # What the trackers' libraries print of themselves is not the command's result.
        with redirect_stdout(sys.stderr), closing(_open(options.to, subject)) as tracker:
            sent = 0
            while True:
                try:
                    subject, more = _bring(client, name, federation, tracker)
                except Unavailable as error:
                    if not options.follow:
                        raise
                    print_note(f"trying again: {error.message}")
                else:
                    sent += more
                    if more and not options.json:
                        print_note(f"{more} rounds of {name}; {subject.state}")
                    if not options.follow or subject.state in OVER:
                        break
                time.sleep(options.every)
    if options.json:
        print_json({"run": name, "to": options.to, "rounds_sent": sent, "state": subject.state})
    return Exit.OK


def _bring(client: AdminClient, name: str, federation: str, tracker: Tracker) -> tuple[Subject, int]:
    """Send what is new, and how the run stands. The run is asked first: its end is told after its last round."""
    subject = subject_of(federation, client.run(name))
    points = points_of(client.rounds(name, with_names=False), known=tracker.known_steps())
    tracker.add(points)
    tracker.describe(subject)
    return subject, len(points)


def _open(target: str, subject: Subject) -> Tracker:
    kind, _, where = target.partition(":")
    if kind == "tensorboard" and where:
        return TensorBoard(Path(where).expanduser(), subject)
    if kind == "mlflow" and where:
        return MlFlow(where, subject)
    raise InvalidArgument(
        f"--to {target}: write tensorboard:FOLDER, or mlflow:URI such as mlflow:https://mlflow.example.org or "
        "mlflow:sqlite:////srv/mlflow.db"
    )
