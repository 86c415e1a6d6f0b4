"""Notes every secret that the masking makes while it runs, and finds it in a text in whatever form it is written.

Secrets come out of three places: the randomness of `begin_epoch`, the key derivation, and the sharing.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from common.secagg import hashing, participant_epoch, shamir

PUBLIC_LABELS = ("graph",)
PART = 12
"""Bytes of a secret that give it away; the forms of a text are compared by as many."""


@dataclass
class Spy:
    secrets: set[bytes] = field(default_factory=set)

    def found_in(self, text: str) -> list[str]:
        """Forms of secrets that stand in the text: raw, escaped, hex, base64 at each of its three alignments."""
        lowered = text.lower()
        found = []
        for secret in self.secrets:
            for form, written in forms(secret):
                if written in (lowered if form == "hex" else text):
                    found.append(f"{form} of {secret[:2].hex()}...")
        return found


def forms(secret: bytes) -> Iterator[tuple[str, str]]:
    # A share begins with a zero byte that says nothing.
    middle = secret[1 : 1 + PART]
    yield "hex", middle.hex()
    yield "escaped", repr(middle)[2:-1]
    yield "raw", middle.decode("latin-1")
    yield "number", str(int.from_bytes(secret, "big"))
    for skip in range(3):
        piece = secret[1 + skip : 1 + skip + PART]
        yield "base64", base64.b64encode(piece).decode()
        yield "base64url", base64.urlsafe_b64encode(piece).decode()


@contextmanager
def spying() -> Iterator[Spy]:
    """Inside, everything that is derived, shared or drawn for an epoch's keys is noted."""
    spy = Spy()
    derive, split, begin = hashing.derive, shamir.split, participant_epoch.begin_epoch

    def noting_derive(key: bytes, salt: bytes, label: str, *ids: int) -> bytes:
        found = derive(key, salt, label, *ids)
        if label not in PUBLIC_LABELS:
            spy.secrets.add(found)
        return found

    def noting_split(secret: bytes, points: Any, coefficients: bytes) -> tuple[bytes, ...]:
        found = split(secret, points, coefficients)
        spy.secrets.update(found)
        return found

    def noting_begin(*args: Any, random_bytes: Any, **rest: Any) -> Any:
        drawn: list[bytes] = []

        def draw(size: int) -> bytes:
            drawn.append(random_bytes(size))
            return drawn[-1]

        state = begin(*args, random_bytes=draw, **rest)
        # The fourth is the advertisement's nonce, which is public.
        spy.secrets.update(drawn[:3])
        return state

    with (
        patch.object(hashing, "derive", noting_derive),
        patch.object(shamir, "split", noting_split),
        patch.object(participant_epoch, "begin_epoch", noting_begin),
        patch("participant.masking.begin_epoch", noting_begin),
        patch("tests.unit.secagg.federation.begin_epoch", noting_begin),
    ):
        yield spy


def pieces(values: Iterable[bytes]) -> set[bytes]:
    """Shares of several rounds that stand one after the other, each by itself."""
    return {value[at : at + 33] for value in values for at in range(0, len(value), 33)}
