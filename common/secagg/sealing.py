"""Sealed boxes: the hybrid post-quantum KEM of the set-up and the escrow of pair keys.

HPKE (RFC 9180) with ML-KEM-768 + X25519, HKDF-SHA256 and AES-256-GCM: confidential while either of the two holds.
The box says nothing about who made it; senders sign their boxes. Knows nothing of what is inside.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from common.errors import ProtocolViolation
from common.secagg.hashing import PREFIX, u32
from common.secagg.prg import NONCE_BYTES

MLKEM_SEED_BYTES: Final = 64
X25519_BYTES: Final = 32
SEED_BYTES: Final = MLKEM_SEED_BYTES + X25519_BYTES
MLKEM_PUBLIC_BYTES: Final = 1184
PUBLIC_BYTES: Final = MLKEM_PUBLIC_BYTES + X25519_BYTES

_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def _private_key(seed: bytes) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    return (
        MLKEM768PrivateKey.from_seed_bytes(seed[:MLKEM_SEED_BYTES]),
        X25519PrivateKey.from_private_bytes(seed[MLKEM_SEED_BYTES:]),
    )


def public_key(seed: bytes) -> bytes:
    """Public key (1216 bytes, ML-KEM-768 then X25519) of the private key with this 96-byte seed."""
    mlkem, x25519 = _private_key(seed)
    return mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()


def check_public_key(key: bytes) -> None:
    """Raises ProtocolViolation for a key that no box can be sealed to: wrong length, unreduced, of low order."""
    seal(key, b"", b"check")


def _info(roster_hash: bytes, sender: int, receiver: int) -> bytes:
    return (PREFIX + "share").encode() + b"\0" + roster_hash + u32(sender) + u32(receiver)


def seal(key: bytes, plaintext: bytes, info: bytes) -> bytes:
    """HPKE base mode, one shot. Randomised: the same input never gives the same box. Raises ProtocolViolation."""
    if len(key) != PUBLIC_BYTES:
        raise ProtocolViolation(f"a KEM key has {len(key)} bytes, not {PUBLIC_BYTES}")
    try:
        public = MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(key[:MLKEM_PUBLIC_BYTES]),
            X25519PublicKey.from_public_bytes(key[MLKEM_PUBLIC_BYTES:]),
        )
        return _SUITE.encrypt(plaintext, public, info)
    except ValueError as error:
        raise ProtocolViolation("a KEM key is malformed or of low order") from error


def seal_share(key: bytes, plaintext: bytes, *, roster_hash: bytes, owner: int, holder: int) -> bytes:
    """The box of `owner`'s shares for `holder`; opens under this roster and between these two alone."""
    return seal(key, plaintext, _info(roster_hash, owner, holder))


def open_share(seed: bytes, box: bytes, *, roster_hash: bytes, owner: int, holder: int) -> bytes:
    """What `owner` sealed to us. Raises ProtocolViolation for a box that is damaged or was made for another place."""
    private = MLKEM768X25519PrivateKey(*_private_key(seed))
    try:
        return _SUITE.decrypt(box, private, _info(roster_hash, owner, holder))
    except (InvalidTag, ValueError) as error:
        raise ProtocolViolation("a sealed share does not open") from error


def _escrow_data(roster_hash: bytes, owner: int, round_: int) -> bytes:
    return roster_hash + u32(owner) + u32(round_)


def seal_escrow(key: bytes, pair_keys: bytes, *, roster_hash: bytes, owner: int, round_: int) -> bytes:
    """AES-256-GCM under K[r], which seals exactly once: the nonce is the round."""
    nonce = round_.to_bytes(NONCE_BYTES, "big")
    return AESGCM(key).encrypt(nonce, pair_keys, _escrow_data(roster_hash, owner, round_))


def open_escrow(key: bytes, box: bytes, *, roster_hash: bytes, owner: int, round_: int) -> bytes:
    """The pair keys of a dropped member. Raises ProtocolViolation when the tag fails."""
    nonce = round_.to_bytes(NONCE_BYTES, "big")
    try:
        return AESGCM(key).decrypt(nonce, box, _escrow_data(roster_hash, owner, round_))
    except InvalidTag as error:
        raise ProtocolViolation("an escrow does not open under its committed key") from error
