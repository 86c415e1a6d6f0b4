"""Mask streams: a seekable pseudo-random generator and the loop that adds many streams to a chunk in place.

stream(seed, chunk c) is AES-256-CTR under `seed` from counter block u96be(c) || u32be(2), read as little-endian
uint64. That is the AES-256-GCM keystream of nonce u96be(c), so the GCM path of OpenSSL (VAES, twice as fast as its
CTR path) makes it; the tag is thrown away, and `keystream_by_counter` is the definition that a test compares with.
Knows nothing of who shares which seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from mmap import ACCESS_READ, mmap
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from common.secagg.ring import WORD_BYTES, VectorLayout, Words

NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
FIRST_BLOCK: Final = 2
"""GCM keeps counter 1 for its tag."""
MOST_CIPHERS: Final = 1024
"""A cipher is 2 KiB and takes as long to make as 60 KiB of its stream; beyond so many they are not kept."""


def keystream_by_counter(seed: bytes, chunk: int, size: int) -> bytes:
    """The definition of the stream: `size` bytes of AES-256-CTR (NIST SP 800-38A)."""
    block = chunk.to_bytes(NONCE_BYTES, "big") + FIRST_BLOCK.to_bytes(4, "big")
    return Cipher(algorithms.AES(seed), modes.CTR(block)).encryptor().update(bytes(size))


def tail_stream(seed: bytes, count: int) -> Words:
    """uint64[count]: the first words of a seed's stream, for a mask over tail words alone."""
    stream = keystream_by_counter(seed, 0, count * WORD_BYTES)
    return np.frombuffer(stream, dtype="<u8").astype(np.uint64)


class Keystream:
    """Writes streams into one buffer that is reused, so a vector of any length needs one chunk of memory.

    Not safe for use by several threads at once; make one for each.
    """

    __slots__ = ("_buffer", "_zeros")

    def __init__(self, most_bytes: int) -> None:
        # Anonymous pages that are never written are all the kernel's one page of zeros: no memory, always in the cache.
        self._zeros = memoryview(mmap(-1, max(most_bytes, 1), access=ACCESS_READ))
        self._buffer = np.empty(most_bytes + TAG_BYTES, dtype=np.uint8)

    def bytes(self, cipher: AESGCM, chunk: int, size: int) -> NDArray[np.uint8]:
        """uint8[size], a view that the next call overwrites."""
        nonce = chunk.to_bytes(NONCE_BYTES, "big")
        cipher.encrypt_into(nonce, self._zeros[:size], None, self._buffer[: size + TAG_BYTES].data)
        return self._buffer[:size]

    def words(self, cipher: AESGCM, chunk: int, count: int) -> Words:
        """uint64[count], a view that the next call overwrites."""
        return self.bytes(cipher, chunk, count * WORD_BYTES).view(np.dtype("<u8"))


class _MadeWhenUsed:
    """Ciphers of many seeds, one at a time."""

    __slots__ = ("_seeds",)

    def __init__(self, seeds: Sequence[bytes]) -> None:
        self._seeds = tuple(seeds)

    def __iter__(self) -> Iterator[AESGCM]:
        return map(AESGCM, self._seeds)


def _ciphers(seeds: Sequence[bytes], *, at_once: bool) -> Iterable[AESGCM]:
    return tuple(map(AESGCM, seeds)) if at_once else _MadeWhenUsed(seeds)


class StreamSum:
    """A signed sum of mask streams over one vector: sum of `plus` minus sum of `minus`, modulo 2**64.

    Each chunk is independent of the others, so chunks may be done in any order, again, or by several threads that
    have one StreamSum each (`copy`).
    """

    __slots__ = ("_keystream", "_layout", "_minus", "_plus")

    def __init__(self, layout: VectorLayout, *, plus: Sequence[bytes], minus: Sequence[bytes]) -> None:
        self._layout = layout
        self._plus = _ciphers(plus, at_once=len(plus) + len(minus) <= MOST_CIPHERS)
        self._minus = _ciphers(minus, at_once=len(plus) + len(minus) <= MOST_CIPHERS)
        self._keystream = self._new_keystream(layout)

    @staticmethod
    def _new_keystream(layout: VectorLayout) -> Keystream:
        widest = layout.words_in(0) if layout.lane_chunks else 0
        return Keystream(max(widest, layout.tail_words) * WORD_BYTES)

    def copy(self) -> StreamSum:
        """The same streams with a buffer of its own, for another thread."""
        other = object.__new__(StreamSum)
        other._layout, other._plus, other._minus = self._layout, self._plus, self._minus
        other._keystream = self._new_keystream(self._layout)
        return other

    def add_into(self, chunk: int, words: Words) -> None:
        """Add the streams of one chunk to `words` in place.

        words: uint64[layout.words_in(chunk)]. Raises ShapeMismatch for another length or a chunk outside.
        """
        self._layout.check_words(chunk, words)
        for cipher in self._plus:
            np.add(words, self._keystream.words(cipher, chunk, words.size), out=words)
        for cipher in self._minus:
            np.subtract(words, self._keystream.words(cipher, chunk, words.size), out=words)
