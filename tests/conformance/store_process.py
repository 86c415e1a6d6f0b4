"""A process of its own that works on a store, for tests that race it or kill it.

python -m tests.conformance.store_process URL count TIMES    adds one to a counter, TIMES transactions
python -m tests.conformance.store_process URL race TIMES     the same, reading first and writing later
python -m tests.conformance.store_process URL log            writes for ever, and says each commit on stdout
python -m tests.conformance.store_process URL die POINT      is killed at a point of one transaction
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace

from sqlalchemy import Engine, event

from common.errors import VersionConflict
from coordinator.store.interface import Store, Writer
from coordinator.store.opening import open_store
from tests.conformance.samples import NOW


def count(store: Store, times: int) -> None:
    for _ in range(times):
        with store.write() as writer:
            run = writer.run("run-1")
            writer.update_run(replace(run, latest_round=run.latest_round + 1, version=run.version + 1))


def race(store: Store, times: int) -> None:
    for _ in range(times):
        while True:
            with store.read() as reader:
                run = reader.run("run-1")
            try:
                with store.write() as writer:
                    writer.update_run(replace(run, latest_round=run.latest_round + 1, version=run.version + 1))
                break
            except VersionConflict:
                continue


def log_step(writer: Writer, number: int) -> None:
    """Three tables that say the same number, if a transaction is one."""
    run = writer.run("run-1")
    writer.update_run(replace(run, latest_round=number, version=run.version + 1))
    writer.put_answer("logger", str(number), b"x" * 50_000, at=NOW)
    writer.append_audit(time=NOW, actor="logger", action="step", subject=str(number), details="{}")


def log(store: Store) -> None:
    number = 0
    while True:
        number += 1
        with store.write() as writer:
            log_step(writer, number)
        print(number, flush=True)


def die(store: Store, point: str) -> None:
    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if point == "before_commit":
        event.listen(Engine, "commit", kill)
    with store.write() as writer:
        if point == "begun":
            kill()
        run = writer.run("run-1")
        writer.update_run(replace(run, latest_round=1, version=run.version + 1))
        if point == "half":
            kill()
        writer.put_answer("logger", "1", b"x" * 5_000_000, at=NOW)
        writer.append_audit(time=NOW, actor="logger", action="step", subject="1", details="{}")
    kill()


def main(url: str, command: str, argument: str = "") -> None:
    store = open_store(url)
    match command:
        case "count":
            count(store, int(argument))
        case "race":
            race(store, int(argument))
        case "log":
            log(store)
        case "die":
            die(store, argument)
        case _:
            raise SystemExit(f"unknown command {command!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
