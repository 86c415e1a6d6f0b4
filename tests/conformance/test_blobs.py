"""What every `BlobStore` must do."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import InvalidArgument, NotFound, StorageFailed
from coordinator.store.opening import open_blobs

CONTENT = bytes(range(256)) * 40


def test_a_blob_comes_back_whole_and_from_any_offset(blobs):
    blobs.put("runs/r/1", CONTENT)
    assert blobs.read("runs/r/1") == CONTENT
    assert blobs.read("runs/r/1", 300) == CONTENT[300:]
    assert blobs.read("runs/r/1", 300, 7) == CONTENT[300:307]
    assert blobs.read("runs/r/1", len(CONTENT) - 2, 100) == CONTENT[-2:]
    assert blobs.read("runs/r/1", len(CONTENT)) == b""
    assert blobs.read("runs/r/1", len(CONTENT) + 5, 5) == b""
    assert blobs.read("runs/r/1", 3, 0) == b""
    assert blobs.size("runs/r/1") == len(CONTENT)
    assert blobs.exists("runs/r/1")


@pytest.mark.parametrize("content", [b"", b"x", memoryview(CONTENT)[3:9], memoryview(CONTENT).cast("Q"), bytearray(5)])
def test_any_bytes_can_be_put(blobs, content):
    blobs.put("key", content)
    assert blobs.read("key") == bytes(content)


def test_a_blob_survives_the_store_that_wrote_it(blobs, blobs_url):
    blobs.put("key", CONTENT)
    assert open_blobs(blobs_url).read("key") == CONTENT


def test_a_blob_that_is_given_in_pieces_is_one_blob(blobs):
    blobs.put("key", b"first ", memoryview(b"second "), b"", b"third")
    assert blobs.read("key") == b"first second third"


def test_putting_again_replaces_the_whole_blob(blobs):
    blobs.put("key", CONTENT)
    blobs.put("key", b"short")
    assert blobs.read("key") == b"short"
    assert blobs.size("key") == 5


@pytest.mark.parametrize(
    "ask",
    [
        lambda blobs, folder: blobs.read("gone"),
        lambda blobs, folder: blobs.read("gone/deeper", 3, 4),
        lambda blobs, folder: blobs.read("there/is/more"),
        lambda blobs, folder: blobs.read("there"),
        lambda blobs, folder: blobs.size("there"),
        lambda blobs, folder: blobs.fetch("gone", folder / "file"),
    ],
)
def test_what_is_not_there_is_not_found(blobs, tmp_path, ask):
    blobs.put("there/is", b"x")
    with pytest.raises(NotFound, match="there is no blob"):
        ask(blobs, tmp_path)
    assert list(tmp_path.glob("*file*")) == []


def test_a_prefix_of_a_key_is_no_blob(blobs):
    blobs.put("there/is", b"x")
    assert not blobs.exists("there")
    assert not blobs.exists("there/is/more")
    assert not blobs.exists("gone")


@pytest.mark.parametrize("key", ["", "/", "/etc/passwd", "a/", "a//b", "../a", "a/../b", "a/./b", ".", "..", ".hidden"])
def test_keys_that_could_lead_out_of_the_store_are_refused(blobs, tmp_path, key):
    refuse_everywhere(blobs, tmp_path, key)


@pytest.mark.parametrize("key", ["a b", "a\\b", "a\0", "a\n", "ä", "-a", "=a", "~", "*", "a" * 201, "a/" * 600 + "a"])
def test_keys_that_not_every_store_can_hold_are_refused(blobs, tmp_path, key):
    refuse_everywhere(blobs, tmp_path, key)


def refuse_everywhere(blobs, folder, key):
    source = folder / "source"
    source.write_bytes(b"mine")
    for use in (
        lambda: blobs.put(key, b"x"),
        lambda: blobs.put_file(key, source),
        lambda: blobs.read(key),
        lambda: blobs.fetch(key, folder / "target"),
        lambda: blobs.size(key),
        lambda: blobs.exists(key),
        lambda: blobs.delete(key),
    ):
        with pytest.raises(InvalidArgument, match="not a blob key"):
            use()
    assert source.read_bytes() == b"mine"
    assert list(blobs.keys("")) == []


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.text(max_size=12) | st.text("a./\\-", max_size=8))
def test_any_text_is_a_key_that_works_or_is_refused(blobs, blobs_url, tmp_path, key):
    try:
        blobs.put(key, b"x")
    except InvalidArgument:
        return
    assert list(blobs.keys("")) == [key]
    blobs.delete(key)


def test_negative_offsets_and_lengths_are_refused(blobs):
    blobs.put("key", CONTENT)
    for offset, length in ((-1, None), (0, -1)):
        with pytest.raises(InvalidArgument):
            blobs.read("key", offset, length)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_becomes_a_blob(blobs, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    blobs.put("key", b"old")
    blobs.put_file("key", source)
    assert blobs.read("key") == CONTENT


def test_a_file_that_is_not_there_is_said_by_name(blobs, tmp_path):
    with pytest.raises(StorageFailed, match="missing-file"):
        blobs.put_file("key", tmp_path / "missing-file")
    assert not blobs.exists("key")


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic link", "hard link"])
def test_a_blob_does_not_change_with_a_file_that_has_another_name(blobs, tmp_path, link):
    original, source = tmp_path / "original", tmp_path / "source"
    original.write_bytes(CONTENT)
    link(original, source)
    blobs.put_file("key", source)
    original.write_bytes(b"changed")
    assert blobs.read("key") == CONTENT


def test_a_fetched_file_has_the_blobs_bytes_and_replaces_what_was_there(blobs, tmp_path):
    blobs.put("key", CONTENT)
    target = tmp_path / "target"
    target.write_bytes(b"old")
    blobs.fetch("key", target)
    blobs.fetch("key", target)
    assert target.read_bytes() == CONTENT
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["target"]


def test_a_fetched_file_stays_as_it_is_when_the_blob_is_replaced_or_deleted(blobs, tmp_path):
    blobs.put("key", CONTENT)
    blobs.fetch("key", tmp_path / "target")
    blobs.put("key", b"new")
    blobs.delete("key")
    assert (tmp_path / "target").read_bytes() == CONTENT


# --- listings and deletion --------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(blobs):
    for key in ("runs/1/a", "runs/1/b/c", "runs/10/a", "runs-1/a", "adapters/x"):
        blobs.put(key, b"x")
    return blobs


def test_keys_are_sorted_as_texts_and_a_prefix_is_whole_segments(shelf):
    assert list(shelf.keys("")) == ["adapters/x", "runs-1/a", "runs/1/a", "runs/1/b/c", "runs/10/a"]
    assert list(shelf.keys("runs")) == ["runs/1/a", "runs/1/b/c", "runs/10/a"]
    assert list(shelf.keys("runs/1")) == ["runs/1/a", "runs/1/b/c"]
    assert list(shelf.keys("runs/1/a")) == ["runs/1/a"]
    assert list(shelf.keys("gone")) == []
    assert list(shelf.keys("runs/1/a/deeper")) == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.sets(st.lists(st.text("a.-_1", min_size=1, max_size=2), min_size=3, max_size=3).map("/".join), max_size=8)
)
def test_keys_come_in_the_order_of_their_text(blobs, keys):
    stored = []
    for key in keys:
        try:
            blobs.put(key, b"")
        except InvalidArgument:
            continue
        stored.append(key)
    assert list(blobs.keys("")) == sorted(stored)
    for key in stored:
        blobs.delete(key)


def test_deleting_takes_the_key_and_all_under_it_and_nothing_else(shelf):
    shelf.delete("runs/1")
    assert list(shelf.keys("")) == ["adapters/x", "runs-1/a", "runs/10/a"]
    shelf.delete("adapters/x")
    shelf.delete("adapters/x")
    shelf.delete("gone/deeper")
    shelf.delete("runs-1/a/deeper")
    assert list(shelf.keys("")) == ["runs-1/a", "runs/10/a"]
    shelf.put("runs/1", b"a key now")
    assert shelf.read("runs/1") == b"a key now"


# --- others at the same time ------------------------------------------------------------------------------------------


def test_a_reader_sees_one_whole_blob_while_writers_replace_it(blobs):
    blobs.put("key", bytes([0]) * 200_000)
    done = threading.Event()

    def write(value):
        for _ in range(20):
            blobs.put("key", bytes([value]) * (200_000 + value))

    def read():
        reads = 0
        while not done.is_set() or not reads:
            content = blobs.read("key")
            assert content == bytes([content[0]]) * (200_000 + content[0])
            reads += 1
        return reads

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            list(pool.map(write, (1, 2)))
        finally:
            done.set()
        assert all(reader.result() for reader in readers)


def test_writing_goes_on_while_others_delete_around_it(blobs):
    def write(index):
        for count in range(30):
            blobs.put(f"uploads/{index}/{count}", b"x")

    def delete(_):
        for _ in range(60):
            blobs.delete("uploads")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda job: job[0](job[1]), [(write, 1), (write, 2), (delete, 0)]))
    blobs.put("uploads/1/last", b"x")
    assert "uploads/1/last" in list(blobs.keys("uploads"))


def test_two_stores_on_one_place_see_each_others_blobs(blobs, blobs_url):
    other = open_blobs(blobs_url)
    other.put("a/one", b"1")
    blobs.put("a/two", b"2")
    assert list(blobs.keys("a")) == list(other.keys("a")) == ["a/one", "a/two"]
