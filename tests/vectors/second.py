"""The protocol's arithmetic a second time, from its formulas: hashlib, hmac, single AES blocks and Python integers.

Shares no line with `common.secagg` but the names of things, so what both say was meant. It only computes; nothing is
checked that a participant or a coordinator must check.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

P = 2**256 + 297
WORD = 2**64


def digest(name: str, *parts: bytes) -> bytes:
    tag = b"xsa1/" + name.encode()
    return hashlib.sha256(
        bytes([len(tag)]) + tag + b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    ).digest()


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def derive(key: bytes, salt: bytes, label: str, *ids: int) -> bytes:
    info = b"xsa1/" + label.encode() + b"\0" + b"".join(map(u32, ids))
    return hmac.digest(hmac.digest(salt, key, "sha256"), info + b"\1", "sha256")


def stream(seed: bytes, chunk: int, size: int) -> bytes:
    """`size` bytes of AES-256 over u96be(chunk) || u32be(2), u32be(3), ..."""
    blocks = b"".join(chunk.to_bytes(12, "big") + u32(2 + at) for at in range(-(-size // 16)))
    single = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()
    return single.update(blocks)[:size]


def words(data: bytes) -> list[int]:
    return [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]


def added(total: Sequence[int], more: Sequence[int], sign: int = 1) -> list[int]:
    return [(one + sign * other) % WORD for one, other in zip(total, more, strict=True)]


def without_streams(chunk: int, masked: Sequence[int], *, plus: Iterable[bytes], minus: Iterable[bytes]) -> list[int]:
    """`masked` less the streams that were added, and with those again that were subtracted."""
    for sign, seeds in ((-1, plus), (1, minus)):
        for seed in seeds:
            masked = added(masked, words(stream(seed, chunk, 8 * len(masked))), sign)
    return list(masked)


# --- shares -----------------------------------------------------------------------------------------------------


def split(secret: bytes, points: Iterable[int], coefficients: bytes) -> list[bytes]:
    """Powers written out; 48 bytes a coefficient, of x first."""
    polynomial = [int.from_bytes(secret, "big")]
    polynomial += [int.from_bytes(coefficients[at : at + 48], "big") for at in range(0, len(coefficients), 48)]
    return [
        (sum(coefficient * point**power for power, coefficient in enumerate(polynomial)) % P).to_bytes(33, "big")
        for point in points
    ]


def combine(shares: dict[int, bytes]) -> int:
    """The polynomial's value at 0 by Gauss's elimination of its Vandermonde system, where Lagrange is the other way."""
    rows = [
        [pow(point, power, P) for power in range(len(shares))] + [int.from_bytes(share, "big")]
        for point, share in shares.items()
    ]
    for column in range(len(rows)):
        pivot = next(row for row in rows[column:] if row[column])
        rows.remove(pivot)
        rows.insert(column, pivot)
        scale = pow(pivot[column], -1, P)
        pivot[:] = [value * scale % P for value in pivot]
        for row in rows:
            if row is not pivot and row[column]:
                factor = row[column]
                row[:] = [(value - factor * other) % P for value, other in zip(row, pivot, strict=True)]
    return rows[0][-1]


# --- lanes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lanes:
    """B-bit lanes, `count` a word, each a value in [-limit, limit] moved up by `limit`."""

    count: int
    limit: int
    chunk_words: int

    def chunks(self, parameters: int) -> list[range]:
        size = self.count * self.chunk_words
        return [range(at, min(at + size, parameters)) for at in range(0, parameters, size)]

    def unpacked(self, chunk: Sequence[int]) -> list[int]:
        """Lane l of word w is element l * words + w."""
        bits = 64 // self.count
        return [(word >> (lane * bits)) % 2**bits for lane in range(self.count) for word in chunk]

    def rounded(self, value: float, *, clip: float, fixed_alpha: int, draw: int) -> int:
        """clip, weigh, scale by 2**F, round to the nearest; then to an integer by F random bits."""
        fraction = min(16, 30 - self.limit.bit_length())
        within = max(-Fraction(clip), min(Fraction(clip), Fraction(value)))
        exact = within * Fraction(fixed_alpha, 2**30) * self.limit * 2**fraction / Fraction(clip)
        nearest = (exact + Fraction(1, 2)).__floor__()
        return (nearest + (draw >> (16 - fraction))) >> fraction


# --- encodings --------------------------------------------------------------------------------------------------


class Fields:
    """Takes an encoded value apart: header of 7 bytes, then what the reader says."""

    def __init__(self, data: bytes, kind: int) -> None:
        assert data[:7] == b"XSA1\x02" + kind.to_bytes(2, "big")
        self.rest = data[7:]

    def take(self, size: int) -> bytes:
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def blob(self) -> bytes:
        return self.take(self.u32())


def signed_body(message: bytes) -> bytes:
    return Fields(message, 3).blob()
