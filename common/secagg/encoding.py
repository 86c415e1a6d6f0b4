"""The one encoding of everything that is signed, hashed or journalled: fixed-width big-endian, length-prefixed bytes.

A value has exactly one encoding, so a digest names a value. Parsing is strict: magic, suite, kind, every length and
the end of the input are checked, and any failure is MalformedMessage. Knows no message.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Final

from common.errors import MalformedMessage

MAGIC: Final = b"XSA1"
SUITE: Final = 2
"""Hybrid post-quantum set-up: HPKE with ML-KEM-768 + X25519, HKDF-SHA256, AES-256-GCM; Ed25519; Shamir; AES-256-CTR."""

MAX_MEMBERS: Final = 1024
MAX_ROUNDS: Final = 1024
MAX_TEXT_BYTES: Final = 256
MAX_CERTIFICATE_BYTES: Final = 16 * 1024
MAX_CERTIFICATES: Final = 8
MAX_MESSAGE_BYTES: Final = 256 * 1024 * 1024


class Kind(IntEnum):
    """What an encoded value is: the last two bytes of its header."""

    PLAN = 1
    EPOCH = 2
    SIGNED = 3
    ADVERTISEMENT = 4
    ROSTER = 5
    SEALED_SHARE = 6
    DEPOSIT = 7
    READY = 8
    START = 9
    RECEIPT = 10
    COMMIT = 11
    REVEAL = 12
    STATE_ADVERTISING = 32
    STATE_DEALT = 33
    STATE_EPOCH_KEYS = 34
    STATE_MASKING = 35
    STATE_MASKED = 36
    STATE_BOUND = 37
    STATE_REVEALED = 38
    MEMBERS = 39
    ROUND_CONTEXT = 40


class Writer:
    """Appends fields to one encoded value."""

    def __init__(self, kind: Kind) -> None:
        self._parts: list[bytes] = [MAGIC, struct.pack(">BH", SUITE, kind)]

    def u8(self, value: int) -> None:
        self._parts.append(struct.pack(">B", value))

    def u32(self, value: int) -> None:
        self._parts.append(struct.pack(">I", value))

    def f64(self, value: float) -> None:
        self._parts.append(struct.pack(">d", value))

    def fixed(self, value: bytes, size: int) -> None:
        """Bytes whose length both sides know. Raises ValueError if ours is wrong: a bug, not bad input."""
        if len(value) != size:
            raise ValueError(f"field has {len(value)} bytes, its width is {size}")
        self._parts.append(bytes(value))

    def blob(self, value: bytes) -> None:
        self.u32(len(value))
        self._parts.append(bytes(value))

    def text(self, value: str) -> None:
        self.blob(value.encode())

    def blobs(self, values: Sequence[bytes]) -> None:
        self.u32(len(values))
        for value in values:
            self.blob(value)

    def texts(self, values: Sequence[str]) -> None:
        self.u32(len(values))
        for value in values:
            self.text(value)

    def indices(self, values: Iterable[int], members: int) -> None:
        """A set of roster indices as a bitmap of `members` bits."""
        self.u32(members)
        self._parts.append(bitmap(values, members))

    def done(self) -> bytes:
        return b"".join(self._parts)


class Reader:
    """Takes the fields of one encoded value, in order. Every method raises MalformedMessage if the bytes do not fit."""

    def __init__(self, data: bytes, kind: Kind) -> None:
        self._data = data
        self._at = 0
        self._name = kind.name.lower()
        if len(data) > MAX_MESSAGE_BYTES:
            raise MalformedMessage(f"{self._name}: {len(data)} bytes are over the limit of {MAX_MESSAGE_BYTES}")
        if self._take(len(MAGIC)) != MAGIC:
            raise MalformedMessage(f"{self._name}: not a masking message of this version")
        suite, found = struct.unpack(">BH", self._take(3))
        if suite != SUITE:
            raise MalformedMessage(f"{self._name}: suite {suite} is unknown here, this version speaks suite {SUITE}")
        if found != kind:
            raise MalformedMessage(f"{self._name}: the message is of kind {found}, expected {int(kind)}")

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise MalformedMessage(f"{self._name}: ends after {len(self._data)} bytes, {end} are needed")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def u8(self) -> int:
        return self._take(1)[0]

    def u32(self, limit: int = 2**32 - 1) -> int:
        value = int.from_bytes(self._take(4), "big")
        if value > limit:
            raise MalformedMessage(f"{self._name}: {value} is over the limit of {limit}")
        return value

    def f64(self) -> float:
        value: float = struct.unpack(">d", self._take(8))[0]
        return value

    def fixed(self, size: int) -> bytes:
        return self._take(size)

    def blob(self, limit: int = MAX_MESSAGE_BYTES) -> bytes:
        return self._take(self.u32(limit))

    def text(self, limit: int = MAX_TEXT_BYTES) -> str:
        raw = self.blob(limit)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise MalformedMessage(f"{self._name}: text is not UTF-8") from error

    def blobs(self, count: int, limit: int = MAX_MESSAGE_BYTES) -> tuple[bytes, ...]:
        """At most `count` blobs of at most `limit` bytes each."""
        return tuple(self.blob(limit) for _ in range(self.u32(count)))

    def texts(self, count: int) -> tuple[str, ...]:
        """At most `count` texts."""
        return tuple(self.text() for _ in range(self.u32(count)))

    def by_index(self, value: Callable[[], bytes]) -> dict[int, bytes]:
        """Values under roster indices, which ascend: in another order, or twice, one value would have two encodings."""
        found: dict[int, bytes] = {}
        last = -1
        for _ in range(self.u32(MAX_MEMBERS)):
            index = self.u32(MAX_MEMBERS)
            if index <= last:
                raise MalformedMessage(f"{self._name}: index {index} follows {last}")
            found[index], last = value(), index
        return found

    def indices(self) -> tuple[tuple[int, ...], int]:
        """A set of roster indices, ascending, and the roster's size."""
        members = self.u32(MAX_MEMBERS)
        raw = self._take((members + 7) // 8)
        found = tuple(i for i in range(8 * len(raw)) if raw[i // 8] >> (7 - i % 8) & 1)
        if found and found[-1] >= members:
            raise MalformedMessage(f"{self._name}: a bitmap names index {found[-1]} of {members}")
        return found, members

    def done(self) -> None:
        """Raises MalformedMessage if bytes are left."""
        if self._at != len(self._data):
            raise MalformedMessage(f"{self._name}: {len(self._data) - self._at} bytes too many")


def bitmap(indices: Iterable[int], members: int) -> bytes:
    """Roster indices as bits, index 0 the highest bit of the first byte. Raises ValueError for an index outside."""
    raw = bytearray((members + 7) // 8)
    for index in indices:
        if not 0 <= index < members:
            raise ValueError(f"index {index} is outside a roster of {members}")
        raw[index // 8] |= 1 << (7 - index % 8)
    return bytes(raw)
