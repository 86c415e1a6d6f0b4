"""The demo's folders and processes: nothing of an earlier demo is in the way, nothing of this one is left."""

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from demo.federation import Process, ProcessEnded, leashed
from demo.folders import (
    FINISHED_FILE,
    clear_leftovers,
    end_processes,
    fresh_folder,
    point_to_latest,
    processes_below,
)

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
ROOT = Path(__file__).parents[3]


def finished(root, name):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / FINISHED_FILE).write_text("{}")
    return folder


def test_two_demos_in_the_same_second_have_folders_of_their_own(tmp_path):
    with fresh_folder(tmp_path, now=NOW) as first, fresh_folder(tmp_path, now=NOW) as second:
        assert first.name == "run-20260131-120000"
        assert second.name == "run-20260131-120000-2"
        assert first.is_dir()


def test_what_did_not_finish_is_removed_and_of_what_did_the_newest_stay(tmp_path):
    for number in range(5):
        finished(tmp_path, f"run-2026013{number}-120000")
    (tmp_path / "run-20260139-120000").mkdir()
    with fresh_folder(tmp_path, now=NOW) as folder:
        kept = {path.name for path in tmp_path.glob("run-*")}
        assert kept == {folder.name, "run-20260133-120000", "run-20260134-120000"}


def test_a_living_demos_folder_is_not_touched(tmp_path):
    with fresh_folder(tmp_path, now=NOW) as folder:
        (folder / "half").write_text("done")
        clear_leftovers(tmp_path)
        assert (folder / "half").read_text() == "done"
    clear_leftovers(tmp_path)
    assert not folder.exists()


def test_latest_points_to_the_newest_also_when_it_pointed_elsewhere(tmp_path):
    first, second = finished(tmp_path, "run-1"), finished(tmp_path, "run-2")
    point_to_latest(tmp_path, first)
    point_to_latest(tmp_path, second)
    assert (tmp_path / "latest").resolve() == second.resolve()
    assert os.readlink(tmp_path / "latest") == "run-2"


@pytest.fixture
def program(tmp_path):
    """A module that sleeps, under one of the names that the demo starts."""
    (tmp_path / "code" / "participant").mkdir(parents=True)
    (tmp_path / "code" / "participant" / "__init__.py").touch()
    (tmp_path / "code" / "participant" / "__main__.py").write_text(
        "import time\nprint('up', flush=True)\ntime.sleep(600)"
    )
    return tmp_path / "code"


def is_alive(process):
    """Not one that has ended and that init has not taken note of."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start(program, *words):
    child = subprocess.Popen(
        [sys.executable, "-m", "participant", *words], cwd=program, stdout=subprocess.PIPE, start_new_session=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    return child


def test_processes_of_a_dead_demo_are_ended_and_no_others(tmp_path, program):
    dead, living = tmp_path / "root" / "run-1", tmp_path / "root" / "run-10"
    dead.mkdir(parents=True)
    left = start(program, "run", "--config", f"{dead}/sites/a/participant.toml")
    other = start(program, "run", "--config", f"{living}/sites/a/participant.toml")
    reader = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()", str(dead / "log")], stdin=subprocess.PIPE
    )
    try:
        assert [process.pid for process in processes_below(dead)] == [left.pid]
        assert end_processes(dead) == (left.pid,)
        assert left.wait(10) == -signal.SIGKILL
        assert other.poll() is None
        assert reader.poll() is None
    finally:
        for child in (left, other, reader):
            child.kill()
            child.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to its parent's life")
def test_a_process_dies_with_the_demo_that_was_killed(tmp_path, program):
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from demo.federation import Process\n"
        f"process = Process('site', [sys.executable, '-m', 'participant'], Path({str(tmp_path / 'log')!r}),"
        f" {{'PYTHONPATH': {str(program)!r}}})\n"
        f"import os; os.chdir({str(program)!r})\n"
        "process.start()\n"
        "print(process.child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    demo = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE)
    assert demo.stdout is not None
    site = psutil.Process(int(demo.stdout.readline()))
    demo.kill()
    demo.wait()
    give_up = time.monotonic() + 20
    while is_alive(site) and time.monotonic() < give_up:
        time.sleep(0.02)  # it is nobody's child any more: there is nothing to wait on
    assert not is_alive(site)


def test_a_command_started_beside_the_main_thread_is_not_tied_to_that_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(leashed(["program", "argument"])))
    thread.start()
    thread.join()
    assert found == [["program", "argument"]]
    assert leashed(["program", "argument"])[-2:] == ["program", "argument"]
    assert len(leashed(["program", "argument"])) > 2


def test_a_process_that_has_ended_is_told_with_its_last_words(tmp_path):
    process = Process(
        "clinic", [sys.executable, "-c", "print('the disk is full'); raise SystemExit(7)"], tmp_path / "log"
    )
    process.start()
    assert process.child is not None
    process.child.wait(30)
    with pytest.raises(ProcessEnded, match=r"clinic has ended with exit code 7(.|\n)*the disk is full"):
        process.require_running()
