"""The benchmark of blob stores does what it says and leaves nothing behind."""

from __future__ import annotations

from benchmarks.blobs import measure
from coordinator.store.blobs_file import FileBlobStore


def test_everything_that_a_round_does_is_measured_and_nothing_stays(tmp_path):
    blobs = FileBlobStore(tmp_path / "blobs")
    blobs.put("uploads/run/1", b"somebody's")
    found = measure(blobs, segments=2, streams=2, file_mebibytes=1)
    assert {name: figures["mebibytes"] for name, figures in found.items()} == {
        "put_segments": 8,
        "read_chunks": 8,
        "put_file": 1,
        "fetch_file": 1,
    }
    assert all(figures["mebibytes_per_second"] > 0 for figures in found.values())
    assert list(blobs.keys("")) == ["uploads/run/1"]
