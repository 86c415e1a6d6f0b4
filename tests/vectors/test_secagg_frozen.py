"""Frozen answers of our own: a changed label, order or width breaks every running federation, so it breaks here first.

When one of these changes on purpose, the protocol's tag or suite must change with it; `python -m
tests.vectors.test_secagg_frozen` prints the answers anew.
"""

from __future__ import annotations

import ast
import hashlib
import hmac
from pathlib import Path

import numpy as np
import pytest

from common.secagg import (
    Advertisement,
    ClipSlot,
    KeyEpoch,
    Members,
    MetricGroup,
    Packer,
    RoundContext,
    RoundKind,
    SecaggPlan,
    Signed,
    Start,
    StreamSum,
    graph,
    hashing,
    read_roster,
    shamir,
)
from common.secagg.identity import signature_input
from common.secagg.packing import pack_tail
from common.secagg.roster import _encode, sign_advertisement

A, B, C = (bytes([value]) * 32 for value in (0xA1, 0xB2, 0xC3))


def plan():
    return SecaggPlan(
        plan_hash=A,
        run_id=B,
        members_floor=3,
        members_limit=5,
        rounds_per_epoch=4,
        vectors=((ClipSlot(100, 0.5), ClipSlot(30, 0.25)), (ClipSlot(20, 0.125),)),
        schedule=(0, 0, 1),
        metrics=("loss",),
        lanes=4,
        chunk_words=16,
        metric_groups=(MetricGroup("ner", ("hits", "misses")), MetricGroup("held_out", ("tokens",))),
    )


EPOCH = KeyEpoch(plan(), 3, 40)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


FROZEN = {
    "digest": lambda: hashing.digest("plan", b"one", b"", b"two"),
    "first_chain": lambda: hashing.first_chain(A, B),
    "next_chain": lambda: hashing.next_chain(A, B),
    "self_key": lambda: hashing.self_key(A, B, 7),
    "escrow_key": lambda: hashing.escrow_key(A, B, 7),
    "self_polynomial_key": lambda: hashing.self_polynomial_key(A, B, 7),
    "escrow_polynomial_key": lambda: hashing.escrow_polynomial_key(A, B, 7),
    "pair_seed": lambda: hashing.pair_seed(A, B, 1, 2),
    "first_pair_chain": lambda: hashing.first_pair_chain(A, B, 1, 2),
    "pair_key": lambda: hashing.pair_key(A, B, 7),
    "graph_key": lambda: hashing.graph_key(A, B),
    "self_mask_seed": lambda: hashing.self_mask_seed(A, B, 1),
    "pair_mask_seed": lambda: hashing.pair_mask_seed(A, B, 1, 2),
    "group_key": lambda: hashing.group_key(A, B, 3),
    "group_mask_seed": lambda: hashing.group_mask_seed(A, B, 1, 2),
    "commit_self_key": lambda: hashing.commit_self_key(A, "org", 7, B),
    "commit_escrow_key": lambda: hashing.commit_escrow_key(A, "org", 7, B),
    "commit_pair_key": lambda: hashing.commit_pair_key(A, 1, 2, 7, B),
    "commit_escrow_share": lambda: hashing.commit_escrow_share(A, 1, 2, 7, bytes(33)),
    "commit_self_share": lambda: hashing.commit_self_share(A, 1, 2, 7, bytes(33)),
    "commit_shares": lambda: hashing.commit_shares(A, B),
    "upload_hash": lambda: hashing.upload_hash([A, B]),
    "plan": lambda: hashlib.sha256(plan().encode()).digest(),
    "epoch": lambda: KeyEpoch(plan(), 3, 40).hash,
    "advertisement": lambda: hashlib.sha256(advertisement().encode()).digest(),
    "members": lambda: hashlib.sha256(context().members.encode()).digest(),
    "context": lambda: context().hash,
    "share": lambda: shamir.split(A, (1, 2, 3), bytes(range(96)))[2],
    **{
        f"signature_{name}": lambda name=name: sha256(Signed.by_epoch_key(A, name, b"body").signature)  # type: ignore[misc]
        for name in ("share", "ready", "upload", "commit", "reveal")
    },
    "advertise_signature_input": lambda: sha256(advertise_signature_input()),
    "graph_order": lambda: bytes(graph.permutation(200, A)[:32]),
    "roster": lambda: read_roster(EPOCH, roster_message()).members.roster_hash,
    "masked_chunk": lambda: hashlib.sha256(masked_chunk().tobytes()).digest(),
    "masked_chunk_head": lambda: masked_chunk()[:2].tobytes(),
    "tail": lambda: tail().tobytes(),
}


def advertise_signature_input() -> bytes:
    """What an identity key signs of an advertisement; the signature itself is randomised for most kinds of key."""
    seen: list[bytes] = []

    def signer(name: str, digest: bytes) -> bytes:
        seen.append(signature_input(name, digest))
        return b""

    sign_advertisement(advertisement(), signer)
    return seen[0]


def roster_message() -> bytes:
    return _encode(EPOCH.hash, (Signed(advertisement().encode(), bytes(64)).encode(),))


def context() -> RoundContext:
    members = Members(C, tuple(f"org-{i}" for i in range(4)), (A,) * 4, (("ner",),) * 4)
    epoch = KeyEpoch(plan(), 3, 40)
    return RoundContext.of(epoch, members, Start(epoch.hash, C, 41, RoundKind.TRAINING, (0, 1, 3), 4, B))


def advertisement() -> Advertisement:
    return Advertisement(A, "org-1", (b"leaf", b"ca"), B, C, bytes(1216), (A, B), (B, C), ("ner", "held_out"))


def tail() -> np.ndarray:
    metrics = {"loss": 1.5, "hits": 3.0, "misses": -2.0, "tokens": 9.0}
    return pack_tail(plan(), fixed_alpha=2**29, metrics=metrics, groups=("ner",))


def masked_chunk() -> np.ndarray:
    values = np.linspace(-0.6, 0.6, 130, dtype=np.float32)
    words, _ = Packer(plan(), round_=41, alpha=0.625, rounding_key=A).pack_chunk(1, values[64:128])
    StreamSum(plan().layout(RoundKind.TRAINING, 41), plus=[A, B], minus=[C]).add_into(1, words)
    return words


ANSWERS = {
    "digest": "8f07c30a1a838b129e6e89a02786dccf934bff4cfc5fb2d5b07fac7ced4866d1",
    "first_chain": "0e98adca58338ce535202088d99617dce9eb9464c85805d586fa4e516adeb79e",
    "next_chain": "2445e10b7a7ef9abf50bd4750e96f6be08abe691c093055e9c26c9b9abd20f2a",
    "self_key": "20697f80b9f12094a2f5238553420b9581d97e2833cc286bd186b06be7b64032",
    "escrow_key": "522c79f5e22e59031ea08b83a0baf6d1511de49debd126f13b132abed4e6f82c",
    "self_polynomial_key": "109e5078a78694316afc97fa17dcad3cc05640b6b2c019ccaaef95c2206ee536",
    "escrow_polynomial_key": "0bb2cd470ee59a7eee6118065d24fb762e25f01027bc1a6e720fc1598359c538",
    "pair_seed": "2c05339bccddffc297e4f5162209da46a40898f261f3648563b9ca172c3c2411",
    "first_pair_chain": "eb9118f7356b966ef9cd0ad2ac7372d1d8166ffb97f0e3a7c928a97ecc85cc95",
    "pair_key": "144f6e1d12c53333261cf2dd126d85db8a317fa3cc7eb1955c88e44a5fa09912",
    "graph_key": "86437375b566ceb815667b5880d68a7e49d7d3cee2cbfa7d719b5029ebc23e0f",
    "self_mask_seed": "743e4f0cff882e4c1957f62dedf1729fdd91bc687c10ad0e227da669f9f7f8fc",
    "pair_mask_seed": "58fac2248dd28e42fe08d001c039f71054b22dc7be5fdfb33970b8b628b51502",
    "group_key": "e79f69b23c3f43c166d6cc661f058fdb11da4eb20d6007847ebd32a6568a8c95",
    "group_mask_seed": "7a796881e5636e3691e85eaa288fafec6587b44333ee482bbbd6b9944e5ffc45",
    "commit_self_key": "4ec59c4e1a229dbe5c87f52f9a2231e1c1114b9db9f043ed5986fbe411987626",
    "commit_escrow_key": "da3efce7b2db82ed21d71aa17aaa1ca52e29cdc1efdf086e6a75b2bf9757d51b",
    "commit_pair_key": "e29372583bbdbc02811a62b538aed0fe13dcc430bfed1f8e58ff1997fe19a852",
    "commit_escrow_share": "2d802b247e67a6180539b229232ce0dbb1bda7fbcb1393dee883513ee4a715cc",
    "commit_self_share": "2cafc8e4a964745ec3720aeed3089bda7366ebd2511e5be2338ca5029dbddd53",
    "commit_shares": "1ae46cbf62c11b6c4230cfc1a02e4fc37341165f76e544a6e05154e2bbf6d096",
    "upload_hash": "0eae3f4d5b11d05e7e2e3c2d7078f6ee42ad04b7d00e57abb023502db8a77b86",
    "plan": "4ff5ba67aea7ab648dd8c96f944fa8620083919ff6f2a1affb4bfa4327ebff09",
    "epoch": "33c7dd793c853dbc2a060aefd3ad49c43336de8781560b4a14310ed538cac4c5",
    "advertisement": "12ec1642b1866c5778f33af543553b04aa3b9994ca3873e839811b0eb6f9e98e",
    "members": "935eef7036e28ae800d4fdd27862bc20037f020de58ec447eb502f0393c77a25",
    "context": "905bee68afc875486f257b9aaa1c0e17c3956596f47a70957915b4e34600f842",
    "share": "0014202c3844505c6874808c98a4b0bad19fb1c3d5e7fa0c1e30425466788a9c06",
    "signature_share": "6518479a153bb595458f43d84f4c303567597ec6ef578da7acba94c6b55438db",
    "signature_ready": "81533ab766ec00738ea2536414b700fedbd8af38da44ca7e7cfcfce35071f6af",
    "signature_upload": "fae4e1d4b0cf17ed4ce131738ff4682d4c0df5eac7502b1574ba9fc019f1beb8",
    "signature_commit": "6a22f62aa1a397acd14f46ba435e375e3ceb2d2a2aa6340d0d63f8a447e687cc",
    "signature_reveal": "1eda08ee7b0449ddc02a7c87c1fff4e6ac97519294d6b5c1df473da84e8f6be7",
    "advertise_signature_input": "9ffb2a80de56472fea72f7733e5dea863032d1cf83620d776eb94f2b179bac2e",
    "graph_order": "79260d688f44abbe4e2f746d8c80605b23157a2a1f39223f2bbb298876051121",
    "roster": "39501753bbcec64732393d58c24c6101a2e0ebc0bdd9d9459c5481853d25c5e3",
    "masked_chunk": "f7e70fe2b5ab470d3851a4c7587156eb573825ecf845e4af974522b045a381b6",
    "masked_chunk_head": "c6ad7ee3044e7695b373ede0261de8de",
    "tail": "00000020000000000100000000000000000018000000000000003000000000000000e0ffffffffff0000000000000000",
}


@pytest.mark.parametrize("name", sorted(FROZEN))
def test_frozen_answer(name):
    assert FROZEN[name]().hex() == ANSWERS[name]


def test_no_two_labels_give_one_key():
    derived = [name for name in FROZEN if name not in ("masked_chunk", "masked_chunk_head", "tail")]
    assert len({ANSWERS[name] for name in derived}) == len(derived)


LABELS = {
    "derive": (
        "chain graph group group-key pair pair-chain pair-key pair-seed poly-b poly-k ratchet round-b round-k self"
    ),
    "digest": "advertise body commit-b commit-k epoch pair-commit roster round share-b share-k shares upload-chunks",
    "by_epoch_key": "commit ready reveal share upload",
    "check_signature": "ready reveal share",
}


@pytest.mark.parametrize("function", LABELS)
def test_every_label_in_the_source_is_one_of_these(function):
    """A new label needs a frozen answer above, and a look whether it is the beginning of another."""
    found = set()
    for path in Path(hashing.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and function in (
                getattr(node.func, "attr", None),
                getattr(node.func, "id", None),
            ):
                found |= {
                    one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)
                }
    assert " ".join(sorted(found)) == LABELS[function]


def test_the_framing_of_digests_and_keys_written_out_by_hand():
    """A second implementation, of the standard library alone."""
    tag = b"xsa1/plan"
    framed = bytes([len(tag)]) + tag + (3).to_bytes(8, "big") + b"one" + bytes(8) + (3).to_bytes(8, "big") + b"two"
    assert hashlib.sha256(framed).hexdigest() == ANSWERS["digest"]
    extracted = hmac.digest(B, A, "sha256")
    info = b"xsa1/pair\0" + (1).to_bytes(4, "big") + (2).to_bytes(4, "big")
    assert hmac.digest(extracted, info + b"\1", "sha256").hex() == ANSWERS["pair_mask_seed"]


if __name__ == "__main__":
    for name, answer in FROZEN.items():
        print(f'    "{name}": "{answer().hex()}",')
