"""A download: it goes on where it was cut off, and nothing wrong is ever at its target."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import pytest

from common.errors import DigestMismatch, TooLarge, Unavailable, UploadIncomplete
from common.rpc.chunks import download

CONTENT = os.urandom(10_000)


class Source:
    """Serves `content` in small chunks, notes the offsets asked for, and can break off."""

    def __init__(self, content: bytes = CONTENT, *, break_after: int | None = None) -> None:
        self.content = content
        self.break_after = break_after
        self.offsets: list[int] = []

    def __call__(self, offset: int) -> Iterator[bytes]:
        self.offsets.append(offset)
        for start in range(offset, len(self.content), 1000):
            if self.break_after is not None and start >= self.break_after:
                raise Unavailable("the network is gone")
            yield self.content[start : start + 1000]


def fetch(target, source, *, content=CONTENT):
    digest = hashlib.sha256(content).hexdigest()
    return download(target, sha256=digest, size_bytes=len(content), chunks_from=source)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "adapter.safetensors"


def test_a_download_is_whole_and_leaves_nothing_beside_it(target):
    assert fetch(target, Source()).read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_download_goes_on_where_it_was_cut_off(target):
    with pytest.raises(Unavailable):
        fetch(target, Source(break_after=4000))
    assert not target.exists()
    source = Source()

    fetch(target, source)

    assert source.offsets == [4000]
    assert target.read_bytes() == CONTENT


def test_what_is_there_already_is_not_asked_for_again(target):
    fetch(target, Source())
    source = Source()

    fetch(target, source)

    assert source.offsets == []


def test_a_file_of_the_right_length_and_other_content_is_fetched_again(target):
    target.write_bytes(b"x" * len(CONTENT))

    assert fetch(target, Source()).read_bytes() == CONTENT


def test_other_content_is_thrown_away_and_the_next_try_begins_anew(target):
    with pytest.raises(DigestMismatch):
        fetch(target, Source(b"y" * len(CONTENT)))
    assert list(target.parent.iterdir()) == []

    assert fetch(target, Source()).read_bytes() == CONTENT


def test_a_part_that_rotted_on_the_disk_is_noticed(target):
    with pytest.raises(Unavailable):
        fetch(target, Source(break_after=4000))
    (part,) = target.parent.iterdir()
    part.write_bytes(b"z" * 4000)

    with pytest.raises(DigestMismatch):
        fetch(target, Source())
    assert fetch(target, Source()).read_bytes() == CONTENT


def test_a_part_of_another_file_is_not_continued(target):
    other = os.urandom(8000)
    with pytest.raises(Unavailable):
        fetch(target, Source(break_after=4000))
    source = Source(other)

    fetch(target, source, content=other)

    assert source.offsets == [0]
    assert target.read_bytes() == other


def test_content_that_ends_early_is_incomplete_and_kept(target):
    with pytest.raises(UploadIncomplete, match="after 3000 of 10000 bytes"):
        fetch(target, Source(CONTENT[:3000]))
    source = Source()

    fetch(target, source)

    assert source.offsets == [3000]


def test_content_that_does_not_end_is_refused(target):
    with pytest.raises(TooLarge):
        fetch(target, Source(CONTENT + b"more"))
    assert not target.exists()


def test_a_download_that_was_killed_before_its_last_step_asks_for_nothing(target):
    with pytest.raises(Unavailable):
        fetch(target, Source(break_after=9000))
    (part,) = target.parent.iterdir()
    part.write_bytes(CONTENT)
    source = Source()

    fetch(target, source)

    assert source.offsets == []


def test_an_empty_file_is_a_file(target):
    fetch(target, Source(b""), content=b"")

    assert target.read_bytes() == b""
