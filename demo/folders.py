"""The demo's folders: a fresh one for every federation, and an end to whatever an earlier one left behind.

    ROOT/run-20260131-120000/    one federation, its logs and its report; locked while its demo lives
    ROOT/latest                  a link to the newest one that finished

Knows nothing of what happens inside.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

import psutil

KEPT_RUNS: Final = 3
FINISHED_FILE: Final = "report.json"
LATEST: Final = "latest"
END_SECONDS: Final = 5.0
_PREFIX: Final = "run-"
_LOCK: Final = "lock"
_OUR_PROGRAMS: Final = ("coordinator", "participant", "demo.example")


@contextmanager
def fresh_folder(root: Path, *, now: datetime) -> Iterator[Path]:
    """A new folder for one federation, this demo's own until the end of the block.

    Ends processes and removes folders of demos that did not finish; of those that did, the newest few stay.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{_LOCK}").open("a") as door:
        fcntl.flock(door, fcntl.LOCK_EX)  # held for moments: no other demo clears away what is not yet locked
        clear_leftovers(root)
        folder = _new_folder(root.resolve(), now)
        lock = (folder / _LOCK).open("a")
        fcntl.flock(lock, fcntl.LOCK_EX)
    with lock:
        yield folder


def clear_leftovers(root: Path) -> None:
    """End and remove what dead demos have left; a living one is not touched."""
    finished: list[Path] = []
    for folder in sorted(root.resolve().glob(f"{_PREFIX}*")):
        if _is_locked(folder):
            continue
        end_processes(folder)
        if (folder / FINISHED_FILE).is_file():
            finished.append(folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    for folder in finished[: -(KEPT_RUNS - 1)]:
        shutil.rmtree(folder, ignore_errors=True)


def point_to_latest(root: Path, folder: Path) -> None:
    """Make ROOT/latest a link to the folder."""
    link = root / f".{LATEST}.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.replace(root / LATEST)


def end_processes(folder: Path) -> tuple[int, ...]:
    """SIGKILL to every process of ours that works below the folder; returns their ids once they are gone."""
    found = processes_below(folder)
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    give_up = time.monotonic() + END_SECONDS
    while not all(map(_is_gone, found)) and time.monotonic() < give_up:
        time.sleep(0.02)
    return tuple(process.pid for process in found)


def processes_below(folder: Path) -> list[psutil.Process]:
    """Coordinators, participants and their children whose command line names something below the folder."""
    inside = f"{folder.resolve()}{os.sep}"
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.pid != os.getpid() and _is_ours(process.info["cmdline"] or [], inside)
    ]


def _is_gone(process: psutil.Process) -> bool:
    """One that nobody has taken note of yet does nothing any more: whose child it was decides how long that takes."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _is_ours(command: list[str], inside: str) -> bool:
    """Not, for instance, the pager in which somebody reads a log."""
    modules = [after for word, after in itertools.pairwise(command) if word == "-m"]
    is_program = any(module == name or module.startswith(f"{name}.") for module in modules for name in _OUR_PROGRAMS)
    return is_program and any(inside in word for word in command)


def _is_locked(folder: Path) -> bool:
    try:
        with (folder / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # half made or half removed
    return False


def _new_folder(root: Path, now: datetime) -> Path:
    stem = f"{_PREFIX}{now:%Y%m%d-%H%M%S}"
    number = 1
    while True:
        folder = root / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            continue
        return folder
