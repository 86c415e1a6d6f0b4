"""The ring of masked vectors: uint64 words modulo 2**64, cut into chunks, each chunk of lanes or of tail words.

Chunks 0 .. lane_chunks - 1 carry the parameters in lanes; the last chunk carries the tail words alone (weight,
count, metrics), so a round without parameters is that one chunk. Knows nothing of masks and of what lanes mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import PlanInvalid, ShapeMismatch

Words = NDArray[np.uint64]

WORD_BITS: Final = 64
WORD_BYTES: Final = 8
CHUNK_WORDS: Final = 131072
"""1 MiB: one message of a stream, one keystream call, and it stays in a core's cache."""
LANE_CHOICES: Final = (8, 7, 6, 5, 4, 3, 2)
LANE_LIMIT_CAP: Final = 2**22
LANE_LIMIT_WANTED: Final = 512
STEPS_WANTED: Final = 10_000
"""Of L times the root of n_max, as a mean over n has an error of about clip / (L sqrt(6 n)). An AdamW round moves an
element by a tenth of its clip or so (root mean square), so this keeps the mean's relative L2 error near 0.05 %."""


def lane_bits(lanes: int) -> int:
    """B, bits of one lane."""
    return WORD_BITS // lanes


def lane_limit(lanes: int, members_limit: int) -> int:
    """L: a lane value is in [-L, L]. members_limit sums of 2L fit a lane, so no carry leaves it."""
    return min(((1 << lane_bits(lanes)) - 1) // (2 * members_limit), LANE_LIMIT_CAP)


def choose_lanes(members_limit: int) -> int:
    """Most lanes in a word (least bytes) that are fine enough: 4 up to 10 members, 3 up to 2,047.

    Raises PlanInvalid when not even two lanes are.
    """
    for lanes in LANE_CHOICES:
        limit = lane_limit(lanes, members_limit)
        if limit >= LANE_LIMIT_WANTED and limit * math.sqrt(members_limit) >= STEPS_WANTED:
            return lanes
    raise PlanInvalid(f"no packing fits {members_limit} members")


@dataclass(frozen=True, slots=True)
class VectorLayout:
    """Where parameters and tail words lie in the words of a masked vector.

    Chunk c holds parameters [c*m*M, (c+1)*m*M) with M = chunk_words; lane l of word w is parameter l*M' + w of its
    chunk, where M' is the chunk's words. The last lane chunk is shorter and padded with zeros.
    """

    parameters: int
    lanes: int
    tail_words: int
    chunk_words: int = CHUNK_WORDS

    @property
    def parameters_per_chunk(self) -> int:
        return self.lanes * self.chunk_words

    @property
    def lane_chunks(self) -> int:
        return -(-self.parameters // self.parameters_per_chunk)

    @property
    def chunks(self) -> int:
        """Lane chunks and the tail's chunk."""
        return self.lane_chunks + 1

    @property
    def tail_chunk(self) -> int:
        return self.lane_chunks

    @property
    def lane_words(self) -> int:
        full, rest = divmod(self.parameters, self.parameters_per_chunk)
        return full * self.chunk_words - (-rest // self.lanes)

    @property
    def words(self) -> int:
        return self.lane_words + self.tail_words

    @property
    def bytes(self) -> int:
        """Bytes of a masked update on the wire and in the spool."""
        return self.words * WORD_BYTES

    def check_chunk(self, chunk: int) -> None:
        """Raises ShapeMismatch unless the layout has this chunk."""
        if not 0 <= chunk < self.chunks:
            raise ShapeMismatch(f"chunk {chunk} is outside the vector's {self.chunks} chunks")

    def words_in(self, chunk: int) -> int:
        """Words of one chunk. Raises ShapeMismatch for a chunk outside."""
        self.check_chunk(chunk)
        if chunk == self.tail_chunk:
            return self.tail_words
        start, stop = self.parameters_in(chunk)
        return -(-(stop - start) // self.lanes)

    def parameters_in(self, chunk: int) -> tuple[int, int]:
        """First parameter of a chunk and the one after its last; empty for the tail's chunk."""
        self.check_chunk(chunk)
        start = min(chunk * self.parameters_per_chunk, self.parameters)
        return start, min(start + self.parameters_per_chunk, self.parameters)

    def byte_offset(self, chunk: int) -> int:
        """Where a chunk begins in the vector's bytes (uint64, little-endian, chunk after chunk)."""
        self.check_chunk(chunk)
        if chunk == self.tail_chunk:
            return self.lane_words * WORD_BYTES
        return chunk * self.chunk_words * WORD_BYTES

    def check_words(self, chunk: int, words: Words) -> None:
        """Raises ShapeMismatch unless `words` is uint64[words_in(chunk)]."""
        expected = self.words_in(chunk)
        if words.dtype != np.uint64 or words.shape != (expected,):
            raise ShapeMismatch(f"chunk {chunk} is {words.dtype}{list(words.shape)}, expected uint64[{expected}]")


def add_into(total: Words, words: Words) -> None:
    """Add one masked chunk to the running sum, in place, word by word, modulo 2**64.

    Raises ShapeMismatch if the lengths differ. Order does not matter, so neither does arrival (Bonawitz et al. 2017,
    masked input collection).
    """
    if total.shape != words.shape:
        raise ShapeMismatch(f"chunks of {total.shape} and {words.shape} words cannot be added")
    np.add(total, words, out=total)
