"""Shamir's secret sharing of 32-byte secrets over the prime field of p = 2**256 + 297.

p is the smallest prime above 2**256, so every 32-byte secret is a field element; a share has 33 bytes.
Knows nothing of what is shared and with whom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from common.errors import AggregationFailed, ProtocolViolation

PRIME: Final = 2**256 + 297
SHARE_BYTES: Final = 33
SECRET_BYTES: Final = 32
COEFFICIENT_BYTES: Final = 48
"""384 random bits reduced modulo p: the bias is below 2**-127."""


def split(secret: bytes, points: Sequence[int], coefficients: bytes) -> tuple[bytes, ...]:
    """Shares of `secret` at `points`, in their order.

    coefficients: 48 random bytes for each of the threshold - 1 coefficients above the constant one.
    """
    if len(secret) != SECRET_BYTES or len(coefficients) % COEFFICIENT_BYTES:
        raise ValueError("a secret has 32 bytes and a coefficient 48")
    polynomial = [
        int.from_bytes(coefficients[at : at + COEFFICIENT_BYTES], "big") % PRIME
        for at in range(0, len(coefficients), COEFFICIENT_BYTES)
    ]
    constant = int.from_bytes(secret, "big")
    shares = []
    for point in points:
        value = 0
        for coefficient in reversed(polynomial):
            # Points are small, so products stay near 266 bits and one reduction at the end of a step is cheap.
            value = (value * point + coefficient) % PRIME
        shares.append(((value * point + constant) % PRIME).to_bytes(SHARE_BYTES, "big"))
    return tuple(shares)


def check_share(share: bytes) -> None:
    """Raises ProtocolViolation unless the bytes are a field element."""
    if len(share) != SHARE_BYTES or int.from_bytes(share, "big") >= PRIME:
        raise ProtocolViolation("a share is not an element of the field")


@lru_cache(maxsize=4096)
def lagrange_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Weights that interpolate at 0 from values at `points`; cached, as one holder set opens many secrets."""
    if len(set(points)) != len(points) or 0 in points:
        raise ValueError("points must be distinct and not zero")
    # Points are small: products of the whole numbers, reduced once, are several times faster than reduced products.
    product = math.prod(points)
    denominators = [point * math.prod(other - point for other in points if other != point) for point in points]
    return tuple(product * pow(denominator, -1, PRIME) % PRIME for denominator in denominators)


def combine(points: tuple[int, ...], shares: Sequence[bytes]) -> bytes:
    """The 32-byte secret whose shares at `points` these are; exactly as many as the threshold.

    Raises AggregationFailed when they lie on no polynomial with a 32-byte secret. Most wrong shares give a wrong
    secret instead: the caller compares with a commitment.
    """
    weights = lagrange_at_zero(points)
    total = sum(weight * int.from_bytes(share, "big") for weight, share in zip(weights, shares, strict=True))
    secret = total % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise AggregationFailed("the shares do not belong to one secret")
    return secret.to_bytes(SECRET_BYTES, "big")
