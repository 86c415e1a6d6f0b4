"""`blobs copy`: from any store into any other, whatever happens on the way."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from common.errors import AlreadyExists, DigestMismatch, StorageUnreachable
from coordinator.__main__ import main
from coordinator.blob_copy import BlobsCopied, copy_blobs
from coordinator.runs import adapter_key
from coordinator.store.blobs import BlobStore
from coordinator.store.blobs_file import FileBlobStore
from coordinator.store.opening import open_blobs
from tests.seaweedfs import ACCESS_KEY, SECRET_KEY

ADAPTER = os.urandom(300_000)
BLOBS = {
    "uploads/run/1/site-0/00000000-0004": os.urandom(100_000),
    "uploads/run/1/site-1/00000000-0002": b"",
    adapter_key(hashlib.sha256(ADAPTER).hexdigest()): ADAPTER,
    "optimizer/run/abc/momentum": b"state",
}
BYTES = sum(map(len, BLOBS.values()))


@pytest.fixture
def source(tmp_path) -> FileBlobStore:
    store = FileBlobStore(tmp_path / "source")
    for key, content in BLOBS.items():
        store.put(key, content)
    return store


def contents(store: BlobStore) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.keys("")}


def tree(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything that a change of a file would change."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock")
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_everything_is_copied_and_the_source_is_as_it_was(source, blobs, tmp_path):
    before = tree(tmp_path / "source")
    said: list[BlobsCopied] = []
    assert copy_blobs(source, blobs, scratch=tmp_path / "scratch", progress=said.append) == BlobsCopied(4, BYTES)
    assert contents(blobs) == BLOBS
    assert tree(tmp_path / "source") == before
    assert [one.copied for one in said] == [1, 2, 3, 4]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_it_can_be_copied_back(source, blobs, tmp_path):
    copy_blobs(source, blobs, scratch=tmp_path / "scratch")
    back = FileBlobStore(tmp_path / "back")
    copy_blobs(blobs, back, scratch=tmp_path / "scratch")
    assert contents(back) == contents(blobs) == BLOBS


def test_a_copy_that_was_ended_goes_on_with_what_is_there(source, blobs, tmp_path, monkeypatch):
    put, left = type(blobs).put_file, [2]

    def failing(store, key, path):
        if not left[0]:
            raise StorageUnreachable("gone")
        left[0] -= 1
        put(store, key, path)

    with monkeypatch.context() as patched:
        patched.setattr(type(blobs), "put_file", failing)
        with pytest.raises(StorageUnreachable):
            copy_blobs(source, blobs, scratch=tmp_path / "scratch")
    there = contents(blobs)
    assert len(there) == 2
    size = sum(map(len, there.values()))
    again = copy_blobs(source, blobs, scratch=tmp_path / "scratch")
    assert again == BlobsCopied(2, BYTES - size, 2, size)
    assert contents(blobs) == BLOBS


def test_other_bytes_at_the_target_are_left_alone_and_said(source, blobs, tmp_path):
    blobs.put("optimizer/run/abc/momentum", b"theirs")
    with pytest.raises(AlreadyExists, match=r"optimizer/run/abc/momentum: the target has other bytes"):
        copy_blobs(source, blobs, scratch=tmp_path / "scratch")
    assert contents(blobs) == {**BLOBS, "optimizer/run/abc/momentum": b"theirs"}


def test_a_damaged_adapter_is_not_copied_and_said(source, blobs, tmp_path):
    key = adapter_key(hashlib.sha256(ADAPTER).hexdigest())
    source.put(key, ADAPTER[:-1] + b"?")
    with pytest.raises(DigestMismatch, match=f"{key}: damaged; everything else was copied"):
        copy_blobs(source, blobs, scratch=tmp_path / "scratch")
    assert contents(blobs) == {name: content for name, content in BLOBS.items() if name != key}


def test_what_comes_back_as_something_else_is_not_called_copied(source, blobs, tmp_path, monkeypatch):
    read = type(blobs).read
    monkeypatch.setattr(
        blobs, "read", lambda key, *where: read(blobs, key, *where).replace(b"state", b"statf"), raising=False
    )
    with pytest.raises(DigestMismatch, match="optimizer/run/abc/momentum"):
        copy_blobs(source, blobs, scratch=tmp_path / "scratch")


def test_a_blob_that_the_coordinator_deletes_meanwhile_is_counted_as_gone(source, blobs, tmp_path):
    def delete(done: BlobsCopied) -> None:
        if done.copied == 1:
            source.delete("uploads/run/1")

    copied = copy_blobs(source, blobs, scratch=tmp_path / "scratch", progress=delete)
    assert (copied.copied, copied.gone) == (2, 2)


def accord(folder: Path, *words: str) -> tuple[int, str, str]:
    with chdir(folder), redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = main(words)
    return int(code or 0), out.getvalue(), err.getvalue()


def test_an_operator_moves_the_blobs_by_the_commands(seaweedfs, tmp_path):
    (tmp_path / "s3.ini").write_text(
        f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    place = seaweedfs.url(f"moved-{tmp_path.name}")
    reach = f'endpoint = "{seaweedfs.endpoint}"\ncredentials_file = "s3.ini"\n'
    config = tmp_path / "coordinator.toml"
    start = 'federation = "lab"\ndata_folder = "data"\n[blobs]\n'
    config.write_text(start + reach)
    old = FileBlobStore(tmp_path / "data" / "blobs")
    for key, content in BLOBS.items():
        old.put(key, content)

    code, out, _ = accord(tmp_path, "blobs", "copy", "--to", place, "--json")
    assert (code, json.loads(out)["copied"], json.loads(out)["to"]) == (0, len(BLOBS), place)
    code, out, err = accord(tmp_path, "blobs", "copy", "--to", place)
    assert code == 0
    assert f'url = "{place}"' in err
    config.write_text(f'{start}url = "{place}"\n{reach}')
    assert accord(tmp_path, "check-config")[0] == 0
    assert accord(tmp_path, "blobs", "copy", "--to", place)[0] == 3
    config.write_text(f'{start.replace("lab", "other")}url = "{place}"\n{reach}')
    code, _, err = accord(tmp_path, "blobs", "copy", "--to", f"file://{tmp_path}/stolen")
    assert code == 3
    assert "has the blobs of federation 'lab'" in err
    (tmp_path / "s3.ini").write_text("[default]\naws_access_key_id = A\naws_secret_access_key = tell-nobody\n")
    code, out, err = accord(tmp_path, "check-config")
    assert code == 3
    assert "blobs.url: " in err
    assert "does not know this access key" in err
    assert "tell-nobody" not in out + err
    assert contents(open_blobs((tmp_path / "data" / "blobs").as_uri())) == BLOBS
