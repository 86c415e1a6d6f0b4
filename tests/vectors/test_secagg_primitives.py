"""Known answers of the standards that the masking protocol stands on, as this machine's libraries give them."""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.secagg.prg import Keystream, keystream_by_counter


def h(text: str) -> bytes:
    return bytes.fromhex(text)


def test_hkdf_sha256_rfc_5869_cases_1_and_3():
    info, salt = h("f0f1f2f3f4f5f6f7f8f9"), h("000102030405060708090a0b0c")
    assert HKDF(hashes.SHA256(), 42, salt, info).derive(b"\x0b" * 22) == h(
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )
    assert HKDF(hashes.SHA256(), 42, None, b"").derive(b"\x0b" * 22) == h(
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


def test_aes_256_ctr_sp_800_38a_f_5_5():
    key = h("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plain = h(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    cipher = h(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    counter = h("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    assert Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor().update(plain) == cipher


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


def test_ed25519_rfc_8032_test_2():
    key = Ed25519PrivateKey.from_private_bytes(h("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
    public = h("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    assert key.public_key().public_bytes_raw() == public
    assert key.sign(b"\x72") == h(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )


def test_x25519_rfc_7748_5_2():
    scalar = X25519PrivateKey.from_private_bytes(h("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"))
    point = X25519PublicKey.from_public_bytes(h("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c"))
    assert scalar.exchange(point) == h("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552")
