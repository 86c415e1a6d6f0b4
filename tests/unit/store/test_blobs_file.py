"""What is special to blobs as files: durability, leftovers, modes, and what the kernel refuses."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat

import pytest

from common.errors import ConfigInvalid, InvalidArgument, StorageFailed
from coordinator.store.blobs_file import FileBlobStore
from coordinator.store.opening import open_blobs

OLD, NEW = b"old" * 100_000, b"new!" * 100_000
STEPS = ("open", "fsync", "replace", "rename", "fchmod", "link", "mkdir")


def in_child(work) -> int:
    """Run `work` in a process of its own; the signal that ended it, negative, or its exit code."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_before_step(number):
    """Let this process be killed before its `number`-th call that changes the disk."""
    left = number

    def counted(call):
        def step(*arguments, **named):
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return call(*arguments, **named)

        return step

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


def leftovers(root):
    """Files below the folder that are no blobs, apart from locks."""
    return [path for path in (root / "incoming").rglob("*") if path.is_file() and path.name != "lock"]


def put(root, source):
    FileBlobStore(root).put("a/b/key", NEW)


def put_file(root, source):
    FileBlobStore(root).put_file("a/b/key", source)


def copy_file(root, source):
    os.link(source, source.with_suffix(".other"))
    put_file(root, source)


@pytest.mark.parametrize("old", [None, OLD], ids=["new key", "replaced key"])
@pytest.mark.parametrize("write", [put, put_file, copy_file])
def test_a_writer_killed_at_any_step_leaves_the_old_blob_or_the_new_one(tmp_path, write, old):
    outcomes = []
    for step in range(100):
        root, source = tmp_path / f"{step}" / "blobs", tmp_path / f"source-{step}"
        source.write_bytes(NEW)
        if old:
            FileBlobStore(root).put("a/b/key", old)

        def die(root=root, source=source, step=step):
            kill_before_step(step)
            write(root, source)

        ended = in_child(die)
        blobs = FileBlobStore(root)
        content = blobs.read("a/b/key") if blobs.exists("a/b/key") else None
        assert content in (old, NEW)
        assert leftovers(root) == []
        assert content == NEW or source.exists()  # A file on its way in is never lost between two names.
        outcomes.append(content)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    else:
        pytest.fail("the writer never came to its end")
    assert outcomes[-1] == NEW
    assert old in outcomes
    assert outcomes.index(NEW) < len(outcomes) - 1  # Killed after the rename, before the end.


def test_a_writer_killed_in_the_middle_of_the_bytes_leaves_the_old_blob_and_no_leftover(tmp_path):
    FileBlobStore(tmp_path).put("key", OLD)

    def die():
        blobs = FileBlobStore(tmp_path)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        blobs.put("key", NEW)

    assert in_child(die) == -signal.SIGXFSZ
    assert [path.stat().st_size for path in leftovers(tmp_path)] == [100_000]
    assert FileBlobStore(tmp_path).read("key") == OLD
    assert leftovers(tmp_path) == []


def test_what_a_deleter_killed_at_any_step_leaves_is_all_or_nothing(tmp_path):
    outcomes = set()
    for step in range(30):
        blobs = FileBlobStore(tmp_path / str(step))
        for key in ("r/a", "r/b/c", "s"):
            blobs.put(key, b"x")

        def die(blobs=blobs, step=step):
            kill_before_step(step)
            blobs.delete("r")

        ended = in_child(die)
        again = FileBlobStore(tmp_path / str(step))
        outcomes.add(tuple(again.keys("")))
        if ended == 0:
            break
    assert outcomes == {("r/a", "r/b/c", "s"), ("s",)}


def test_opening_clears_nothing_that_a_living_store_is_writing(tmp_path):
    ready, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            blobs = FileBlobStore(tmp_path)
            replace = os.replace

            def wait_then_replace(source, target):
                os.write(ready[1], b"x")
                os.read(go_on[0], 1)
                replace(source, target)

            vars(os)["replace"] = wait_then_replace
            blobs.put("key", NEW)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.read(ready[0], 1) == b"x"
    assert len(leftovers(tmp_path)) == 1
    blobs = FileBlobStore(tmp_path)
    assert len(leftovers(tmp_path)) == 1
    os.write(go_on[1], b"x")
    assert os.waitpid(child, 0)[1] == 0
    assert blobs.read("key") == NEW


def test_file_and_folders_are_synced_before_put_returns(tmp_path, monkeypatch):
    """The order that a power failure cannot break: bytes and folders, then the name, then its folder."""
    blobs, calls, sync, replace = FileBlobStore(tmp_path), [], os.fsync, os.replace

    def recorded_sync(handle):
        calls.append(("sync", os.readlink(f"/proc/self/fd/{handle}").removeprefix(str(tmp_path))))
        sync(handle)

    def recorded_replace(source, target):
        calls.append(("rename", str(target).removeprefix(str(tmp_path))))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    blobs.put("a/b/key", NEW)
    assert calls[0][0] == "sync"
    assert calls[0][1].startswith("/incoming/")
    assert calls[1:] == [
        ("sync", "/blobs/a"),  # "b" was made in it,
        ("sync", "/blobs"),  # and "a" in that.
        ("rename", "/blobs/a/b/key"),
        ("sync", "/blobs/a/b"),
    ]


def test_a_write_that_the_kernel_refuses_says_what_to_do_and_keeps_the_old_blob(tmp_path):
    FileBlobStore(tmp_path).put("key", OLD)

    def refused():
        blobs = FileBlobStore(tmp_path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(StorageFailed, match="ulimit -f"):
            blobs.put("key", NEW)
        assert blobs.read("key") == OLD
        assert leftovers(tmp_path) == []

    assert in_child(refused) == 0


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "the disk is full: free space"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "mounted read-only"),
        (errno.EACCES, "permission denied: give the service's user"),
        (errno.EIO, "the disk reports an error"),
        (errno.EMFILE, "LimitNOFILE"),
        (errno.EINTR, "Interrupted"),
    ],
)
def test_every_refusal_names_the_place_and_what_to_do(tmp_path, monkeypatch, number, advice):
    blobs = FileBlobStore(tmp_path)

    def refuse(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageFailed, match=advice) as failed:
        blobs.put("runs/key", NEW)
    assert str(tmp_path) in str(failed.value)
    assert isinstance(failed.value.__cause__, OSError)
    assert leftovers(tmp_path) == []
    assert not blobs.exists("runs/key")


def test_blobs_and_folders_are_the_services_alone_and_fetched_files_cannot_be_written_to(tmp_path):
    blobs = FileBlobStore(tmp_path / "blobs")
    source = tmp_path / "source"
    source.write_bytes(NEW)
    source.chmod(0o664)
    blobs.put("a/one", NEW)
    blobs.put_file("a/two", source)
    blobs.fetch("a/one", tmp_path / "fetched")
    for path in (tmp_path / "blobs").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.name == "lock"
    for path in (tmp_path / "fetched", *(tmp_path / "blobs" / "blobs" / "a").iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o400


def test_a_file_is_moved_in_and_a_blob_is_fetched_without_copying_a_byte(tmp_path):
    blobs = FileBlobStore(tmp_path / "blobs")
    source = tmp_path / "source"
    source.write_bytes(NEW)
    inode = source.stat().st_ino
    blobs.put_file("key", source)
    blobs.fetch("key", tmp_path / "fetched")
    assert not source.exists()
    assert (tmp_path / "fetched").stat().st_ino == inode


def test_a_key_cannot_be_the_prefix_of_another_one(tmp_path):
    blobs = FileBlobStore(tmp_path)
    blobs.put("a/b", OLD)
    for key in ("a", "a/b/c", "a/b/c/d"):
        with pytest.raises(InvalidArgument, match="prefix"):
            blobs.put(key, NEW)
    assert list(blobs.keys("")) == ["a/b"]
    assert leftovers(tmp_path) == []


def test_a_folder_whose_place_is_taken_by_a_file_is_refused_by_name(tmp_path):
    (tmp_path / "taken").write_bytes(b"mine")
    with pytest.raises(StorageFailed, match="taken"):
        FileBlobStore(tmp_path / "taken")
    assert (tmp_path / "taken").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://bucket/prefix", "s3://bucket/prefix"),
        ("blobs", "file:///absolute/folder"),
        ("/var/lib/blobs", "file:///absolute/folder"),
        ("gs://bucket", "'gs'"),
        ("file://blobs", "three slashes"),
        ("file:blobs", "three slashes"),
        ("file:///", "three slashes"),
        ("file:///a?b=c", "%3F"),
        ("file:///a#b", "%23"),
        ("", "file:///absolute/folder"),
    ],
)
def test_a_url_of_no_blob_store_is_a_mistake_in_the_configuration(url, said):
    with pytest.raises(ConfigInvalid, match=said):
        open_blobs(url)


def test_a_url_may_hold_any_folder_name(tmp_path):
    open_blobs(f"file://{tmp_path}/with%20space%3F").put("key", NEW)
    assert (tmp_path / "with space?" / "blobs" / "key").read_bytes() == NEW
