"""A replica's name outlives a kill, and is never used by two."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import StorageFailed
from coordinator.replica import REPLICA_FILE, Replica, is_in_use

PROGRAM = """
import sys
from pathlib import Path
from coordinator.replica import Replica
replica = Replica.claim(Path(sys.argv[1]))
print(replica.name, flush=True)
sys.stdin.read()
"""


def test_a_folder_that_was_never_served_is_not_in_use(tmp_path):
    assert not is_in_use(tmp_path)


def test_the_process_after_a_killed_one_has_its_name(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert is_in_use(tmp_path)
        beside = Replica.claim(tmp_path)
        process.send_signal(signal.SIGKILL)
    assert not is_in_use(tmp_path)
    after = Replica.claim(tmp_path)
    assert beside.name != name
    assert after.name == name


@pytest.mark.parametrize("content", [b"", b"not a name\n", b"\xff\xfe", b"ABCDEF0123456789\n"])
def test_a_damaged_name_is_replaced_for_good(tmp_path: Path, content: bytes):
    (tmp_path / REPLICA_FILE).write_bytes(content)
    first = Replica.claim(tmp_path)
    name = first.name
    del first
    assert len(name) == 16
    assert Replica.claim(tmp_path).name == name


def test_a_folder_that_is_not_there_is_said_to_be(tmp_path):
    with pytest.raises(StorageFailed, match=r"cannot write to .*replica"):
        Replica.claim(tmp_path / "gone")
