"""Known answers of the standards that the masking protocol stands on, as this machine's libraries give them.

The vectors of `standards.json` are published ones (README.md says whose); those of one line stand here.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PSS
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_der_public_key
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ProtocolViolation
from common.secagg import identity, sealing
from common.secagg.prg import Keystream, keystream_by_counter
from tests.vectors.hpke import AES_256_GCM, CHACHA20_POLY1305, KemSeed, decapsulate, key_schedule, open_box

STANDARDS = json.loads(Path(__file__).with_name("standards.json").read_text())


def h(text: str) -> bytes:
    return bytes.fromhex(text)


def by_id(vector: dict[str, Any]) -> str:
    return str(vector.get("id", ""))


def each(group: str):
    """One test for each published vector of a group."""
    assert STANDARDS[group]
    return pytest.mark.parametrize("vector", STANDARDS[group], ids=by_id)


# --- hash, key derivation ---------------------------------------------------------------------------------------


@each("hkdf_sha256_rfc_5869")
def test_hkdf_sha256_rfc_5869_a_1_to_a_3(vector):
    salt, info, length = h(vector["salt"]), h(vector["info"]), int(vector["L"])
    assert HKDF(hashes.SHA256(), length, salt, info).derive(h(vector["IKM"])) == h(vector["OKM"])
    assert hmac.digest(salt, h(vector["IKM"]), "sha256") == h(vector["PRK"])


# --- AES --------------------------------------------------------------------------------------------------------

SP_800_38A_KEY = h("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
SP_800_38A_COUNTER = h("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
SP_800_38A_PLAIN = h(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
SP_800_38A_CIPHER = h(
    "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
    "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
)


def test_aes_256_ctr_sp_800_38a_f_5_5_and_f_5_6():
    cipher = Cipher(algorithms.AES(SP_800_38A_KEY), modes.CTR(SP_800_38A_COUNTER))
    assert cipher.encryptor().update(SP_800_38A_PLAIN) == SP_800_38A_CIPHER
    assert cipher.decryptor().update(SP_800_38A_CIPHER) == SP_800_38A_PLAIN


@each("aes_256_gcm_nist")
def test_aes_256_gcm_nist_cavp(vector):
    sealed = AESGCM(h(vector["Key"])).encrypt(h(vector["IV"]), h(vector["PT"]), h(vector["AAD"]))
    assert sealed == h(vector["CT"]) + h(vector["Tag"])
    with pytest.raises(InvalidTag):
        AESGCM(h(vector["Key"])).decrypt(h(vector["IV"]), sealed[:-1] + bytes([sealed[-1] ^ 1]), h(vector["AAD"]))


def test_aes_256_gcm_of_zeros_is_the_counter_keystream_from_block_two():
    # McGrew and Viega's GCM test case 14: zero key, zero nonce, one zero block.
    assert AESGCM(bytes(32)).encrypt(bytes(12), bytes(16), None)[:16] == h("cea7403d4d606b6e074ec5d3baf39d18")
    assert keystream_by_counter(bytes(32), 0, 16) == h("cea7403d4d606b6e074ec5d3baf39d18")
    seed = bytes(range(32))
    keystream = Keystream(1 << 20)
    for chunk in (0, 1, 255, 2**32 + 7):
        for size in (8, 40, 1 << 20):
            found = bytes(keystream.bytes(AESGCM(seed), chunk, size))
            assert found == keystream_by_counter(seed, chunk, size)


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**96 - 1), st.integers(1, 300))
def test_the_gcm_keystream_of_any_nonce_is_the_counter_stream_from_block_two_on(seed, chunk, size):
    assert bytes(Keystream(300).bytes(AESGCM(seed), chunk, size)) == keystream_by_counter(seed, chunk, size)


def test_the_stream_of_sp_800_38as_key_written_out_block_by_block():
    """The definition once more, from single AES blocks alone."""
    single = Cipher(algorithms.AES(SP_800_38A_KEY), modes.ECB()).encryptor()
    assert single.update(SP_800_38A_PLAIN[:16]) == h("f3eed1bdb5d2a03c064b5a7e3db181f8")  # F.1.5
    blocks = (single.update((7).to_bytes(12, "big") + number.to_bytes(4, "big")) for number in range(2, 6))
    assert keystream_by_counter(SP_800_38A_KEY, 7, 64) == b"".join(blocks)


# --- X25519, ML-KEM, HPKE ---------------------------------------------------------------------------------------


def x25519(scalar: bytes, point: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(scalar).exchange(X25519PublicKey.from_public_bytes(point))


@pytest.mark.parametrize(
    ("scalar", "point", "shared"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ],
)
def test_x25519_rfc_7748_5_2(scalar, point, shared):
    assert x25519(h(scalar), h(point)) == h(shared)


def test_x25519_rfc_7748_5_2_iterated_a_thousand_times():
    scalar = point = (9).to_bytes(32, "little")
    found = {}
    for turn in range(1, 1001):
        scalar, point = x25519(scalar, point), scalar
        found[turn] = scalar
    assert found[1] == h("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079")
    assert found[1000] == h("684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51")


def test_x25519_rfc_7748_6_1():
    alice = X25519PrivateKey.from_private_bytes(h("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    bob = X25519PrivateKey.from_private_bytes(h("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    assert alice.public_key().public_bytes_raw() == h(
        "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    )
    assert bob.public_key().public_bytes_raw() == h("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    shared = h("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert alice.exchange(bob.public_key()) == bob.exchange(alice.public_key()) == shared


@each("x25519_wycheproof")
def test_x25519_wycheproof(vector):
    if "ZeroSharedSecret" in vector["flags"]:
        with pytest.raises(ValueError, match="shared key"):
            x25519(h(vector["private"]), h(vector["public"]))
    else:
        assert x25519(h(vector["private"]), h(vector["public"])) == h(vector["shared"])


@pytest.mark.parametrize(
    "point", sorted({one["public"] for one in STANDARDS["x25519_wycheproof"] if "ZeroSharedSecret" in one["flags"]})
)
def test_a_kem_key_with_any_point_of_low_order_is_refused(point):
    good = sealing.public_key(bytes(range(96)))
    with pytest.raises(ProtocolViolation):
        sealing.check_public_key(good[: sealing.MLKEM_PUBLIC_BYTES] + h(point))


@each("ml_kem_768")
def test_ml_kem_768_fips_203(vector):
    key = MLKEM768PrivateKey.from_seed_bytes(h(vector["d"]) + h(vector["z"]))
    assert key.public_key().public_bytes_raw() == h(vector["pk"])
    assert key.decapsulate(h(vector["ct"])) == h(vector["ss"])


@each("hpke_ml_kem_768_x25519")
def test_hpke_with_ml_kem_768_and_x25519(vector):
    """Our KEM and KDF as published, by the second implementation that opens our own boxes below."""
    # The published private key is the 32-byte seed that SHAKE256 expands to ours.
    seed = hashlib.shake_256(h(vector["skRm"])).digest(sealing.SEED_BYTES)
    assert sealing.public_key(seed) == h(vector["pkRm"])
    shared = decapsulate(KemSeed(seed), h(vector["enc"]))
    assert shared == h(vector["shared_secret"])
    key, nonce = key_schedule(shared, h(vector["info"]), CHACHA20_POLY1305)
    assert (key, nonce) == (h(vector["key"]), h(vector["base_nonce"]))
    (first,) = vector["encryptions"]
    opened = CHACHA20_POLY1305.cipher(key).decrypt(nonce, h(first["ct"]), h(first["aad"]))
    assert opened == h(first["pt"])


@pytest.mark.parametrize("size", [0, 1, 4000])
def test_a_sealed_share_opens_by_rfc_9180_written_out(size):
    seed, roster, plaintext = bytes(range(96)), b"R" * 32, bytes(size)
    box = sealing.seal_share(sealing.public_key(seed), plaintext, roster_hash=roster, owner=3, holder=5)
    info = b"xsa1/share\0" + roster + (3).to_bytes(4, "big") + (5).to_bytes(4, "big")
    assert open_box(KemSeed(seed), box, info, AES_256_GCM) == plaintext
    assert len(box) == size + 1120 + 16


# --- signatures -------------------------------------------------------------------------------------------------


@each("ed25519_rfc_8032")
def test_ed25519_rfc_8032_7_1(vector):
    key = Ed25519PrivateKey.from_private_bytes(h(vector["seed"]))
    assert key.public_key().public_bytes_raw() == h(vector["public"])
    assert key.sign(h(vector["message"])) == h(vector["signature"])
    key.public_key().verify(h(vector["signature"]), h(vector["message"]))
    bent = bytes([h(vector["signature"])[0] ^ 1]) + h(vector["signature"])[1:]
    with pytest.raises(InvalidSignature):
        key.public_key().verify(bent, h(vector["message"]))


def test_the_ed25519_vectors_begin_with_those_of_the_rfc():
    seeds = [one["seed"][:8] for one in STANDARDS["ed25519_rfc_8032"]]
    assert seeds[:3] == ["9d61b19d", "4ccd089b", "c5aa8df4"]
    assert len(h(STANDARDS["ed25519_rfc_8032"][-1]["message"])) == 1023  # TEST 1024
    assert all(one != other for one, other in pairwise(seeds))


def verify(vector: dict[str, Any]) -> None:
    """As `identity.verify_identity` verifies, with its own hash and padding; raises InvalidSignature."""
    key = load_der_public_key(h(vector["publicKeyDer"]))
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(h(vector["sig"]), h(vector["msg"]), ec.ECDSA(identity._curve_hash(key)))
    else:
        assert isinstance(key, rsa.RSAPublicKey)
        key.verify(h(vector["sig"]), h(vector["msg"]), identity._pss(PSS.DIGEST_LENGTH), hashes.SHA256())


def check_signature(vector: dict[str, Any]) -> None:
    if vector["result"] == "valid":
        verify(vector)
    else:
        with pytest.raises(InvalidSignature):
            verify(vector)


@each("ecdsa_p256_wycheproof")
def test_ecdsa_p256_wycheproof(vector):
    check_signature(vector)


@each("ecdsa_p384_wycheproof")
def test_ecdsa_p384_wycheproof(vector):
    check_signature(vector)


@each("rsa_pss_3072_wycheproof")
def test_rsa_pss_3072_wycheproof(vector):
    check_signature(vector)
