"""HPKE's base mode (RFC 9180) with ML-KEM-768 + X25519, written out a second time: only to open.

The hybrid KEM is X-Wing's: both secrets, X25519's ciphertext and public key under one SHA3-256.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

KEM_ID, HKDF_SHA256_ID = 0x647A, 1
MLKEM_CIPHERTEXT_BYTES = 1088
ENCAPSULATION_BYTES = MLKEM_CIPHERTEXT_BYTES + 32
XWING_LABEL = bytes.fromhex("5c2e2f2f5e5c")


@dataclass(frozen=True)
class Aead:
    id: int
    cipher: Callable[[bytes], AESGCM | ChaCha20Poly1305]


AES_256_GCM = Aead(2, AESGCM)
CHACHA20_POLY1305 = Aead(3, ChaCha20Poly1305)


@dataclass(frozen=True)
class KemSeed:
    """96 bytes: 64 of ML-KEM-768, 32 of X25519."""

    seed: bytes

    @property
    def mlkem(self) -> MLKEM768PrivateKey:
        return MLKEM768PrivateKey.from_seed_bytes(self.seed[:64])

    @property
    def x25519(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(self.seed[64:])


def decapsulate(seed: KemSeed, encapsulation: bytes) -> bytes:
    first, second = encapsulation[:MLKEM_CIPHERTEXT_BYTES], encapsulation[MLKEM_CIPHERTEXT_BYTES:]
    own = seed.x25519.public_key().public_bytes_raw()
    shared = seed.mlkem.decapsulate(first) + seed.x25519.exchange(X25519PublicKey.from_public_bytes(second))
    return hashlib.sha3_256(shared + second + own + XWING_LABEL).digest()


def key_schedule(shared: bytes, info: bytes, aead: Aead) -> tuple[bytes, bytes]:
    """Key and first nonce."""
    suite = b"HPKE" + KEM_ID.to_bytes(2, "big") + HKDF_SHA256_ID.to_bytes(2, "big") + aead.id.to_bytes(2, "big")

    def extract(salt: bytes, label: bytes, secret: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + secret, "sha256")

    def expand(secret: bytes, label: bytes, context: bytes, length: int) -> bytes:
        labelled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + context
        return hmac.digest(secret, labelled + b"\1", "sha256")[:length]

    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared, b"secret", b"")
    return expand(secret, b"key", context, 32), expand(secret, b"base_nonce", context, 12)


def open_box(seed: KemSeed, box: bytes, info: bytes, aead: Aead) -> bytes:
    """The plaintext of encapsulation || ciphertext, the first message of its context. Raises InvalidTag."""
    shared = decapsulate(seed, box[:ENCAPSULATION_BYTES])
    key, nonce = key_schedule(shared, info, aead)
    return aead.cipher(key).decrypt(nonce, box[ENCAPSULATION_BYTES:], b"")
