"""Files that are whole or not there."""

from __future__ import annotations

import os

import pytest

from common.durable import OWNER_ONLY, write_durably


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    write_durably(path, b"new")

    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_file_has_its_mode_whatever_the_umask_is(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_durably(tmp_path / "key", b"x", mode=OWNER_ONLY)
        write_durably(tmp_path / "certificate", b"x")
    finally:
        os.umask(before)

    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "certificate").stat().st_mode & 0o777 == 0o644


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "inside").write_bytes(b"x")

    with pytest.raises(OSError, match="folder"):
        write_durably(target, b"new")

    assert (target / "inside").read_bytes() == b"x"
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
