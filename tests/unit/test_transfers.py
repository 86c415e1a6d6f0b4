"""What uploads and downloads hold in memory: the more there are at once, the less each."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.services import adapter
from coordinator.uploads import CHUNKS_ON_THEIR_WAY, MOST_CHUNKS_IN_MEMORY, SEGMENT_CHUNKS, segment_chunks


def test_an_upload_that_is_alone_collects_a_whole_segment():
    assert segment_chunks(1) == SEGMENT_CHUNKS


@given(st.integers(1, MOST_CHUNKS_IN_MEMORY // (CHUNKS_ON_THEIR_WAY + 1)))
def test_uploads_together_hold_no_more_than_their_common_share(open_uploads: int):
    assert open_uploads * (segment_chunks(open_uploads) + CHUNKS_ON_THEIR_WAY) <= MOST_CHUNKS_IN_MEMORY


@given(st.integers(1, 2000))
def test_however_many_uploads_there_are_each_goes_on(open_uploads: int):
    assert 1 <= segment_chunks(open_uploads) <= SEGMENT_CHUNKS


@given(st.integers(1, adapter.HELD_BYTES // adapter.LEAST_CHUNK_BYTES))
def test_downloads_together_hold_no_more_than_their_common_share(open_downloads: int):
    assert open_downloads * adapter.chunk_bytes(open_downloads) <= adapter.HELD_BYTES


@given(st.integers(1, 2000))
def test_however_many_downloads_there_are_each_goes_on(open_downloads: int):
    assert adapter.LEAST_CHUNK_BYTES <= adapter.chunk_bytes(open_downloads) <= adapter.MOST_CHUNK_BYTES
