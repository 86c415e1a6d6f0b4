"""The one hash, the one key derivation and their labels.

Every digest and every key of the protocol is made here, so a label is written once and cannot be used for two things.
Knows nothing of messages and phases.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PREFIX: Final = "xsa1/"
DIGEST_BYTES: Final = 32
KEY_BYTES: Final = 32


def digest(name: str, *parts: bytes) -> bytes:
    """SHA-256 over u8 len(tag), tag = "xsa1/" + name, then u64be length and bytes of each part: injective framing."""
    tag = (PREFIX + name).encode()
    state = hashlib.sha256(struct.pack(">B", len(tag)) + tag)
    for part in parts:
        state.update(struct.pack(">Q", len(part)))
        state.update(part)
    return state.digest()


def derive(key: bytes, salt: bytes, label: str, *ids: int) -> bytes:
    """HKDF-SHA256 (RFC 5869) to 32 bytes; info = "xsa1/" + label, a zero byte, then each id as u32be.

    Labels hold no zero byte, so infos of different labels never meet ("pair" is the beginning of "pair-key").
    """
    info = (PREFIX + label).encode() + b"\0" + struct.pack(f">{len(ids)}I", *ids)
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(key)


# --- an organisation's own chain: one link a round, the old link forgotten (forward secrecy) --------------------


def first_chain(master: bytes, epoch_hash: bytes) -> bytes:
    """Chain key of the epoch's first round."""
    return derive(master, epoch_hash, "chain")


def next_chain(chain: bytes, run_id: bytes) -> bytes:
    """Chain key of the following round; serves an organisation's own chain and a pair's chain alike."""
    return derive(chain, run_id, "ratchet")


def self_key(chain: bytes, run_id: bytes, round_: int) -> bytes:
    """b[r], from which the self mask comes; opened only for a survivor."""
    return derive(chain, run_id, "round-b", round_)


def escrow_key(chain: bytes, run_id: bytes, round_: int) -> bytes:
    """K[r], under which the pair keys of a round are escrowed; opened only for a dropped member."""
    return derive(chain, run_id, "round-k", round_)


def self_polynomial_key(chain: bytes, roster_hash: bytes, round_: int) -> bytes:
    """Seed of the coefficients that share b[r]; bound to the roster, so two rosters never share on one polynomial."""
    return derive(chain, roster_hash, "poly-b", round_)


def escrow_polynomial_key(chain: bytes, roster_hash: bytes, round_: int) -> bytes:
    """Seed of the coefficients that share K[r]."""
    return derive(chain, roster_hash, "poly-k", round_)


def graph_key(roster_hash: bytes, epoch_hash: bytes) -> bytes:
    """What draws a sparse graph: nobody knows it before every member has advertised."""
    return derive(roster_hash, epoch_hash, "graph")


# --- pair chains ------------------------------------------------------------------------------------------------


def pair_seed(master: bytes, roster_hash: bytes, low: int, high: int) -> bytes:
    """What the smaller index of a pair seals to the larger; forgotten with `master`."""
    return derive(master, roster_hash, "pair-seed", low, high)


def first_pair_chain(seed: bytes, roster_hash: bytes, low: int, high: int) -> bytes:
    """Chain key of a pair at the epoch's first round."""
    return derive(seed, roster_hash, "pair-chain", low, high)


def pair_key(chain: bytes, run_id: bytes, round_: int) -> bytes:
    """Key of a pair in one round."""
    return derive(chain, run_id, "pair-key", round_)


def group_key(chain: bytes, run_id: bytes, round_: int) -> bytes:
    """Key of a pair in one round for the words of narrow metric groups: beside the pair key, and never escrowed."""
    return derive(chain, run_id, "group-key", round_)


# --- mask seeds: bound to the round's context, so members who were told different things share no mask -----------


def self_mask_seed(key: bytes, context: bytes, index: int) -> bytes:
    """Seed of a member's self mask in one round and context."""
    return derive(key, context, "self", index)


def pair_mask_seed(key: bytes, context: bytes, low: int, high: int) -> bytes:
    """Seed of a pair's mask in one round and context."""
    return derive(key, context, "pair", low, high)


def group_mask_seed(key: bytes, context: bytes, low: int, high: int) -> bytes:
    """Seed of a pair's further mask over the words of narrow metric groups, in one round and context."""
    return derive(key, context, "group", low, high)


# --- commitments ------------------------------------------------------------------------------------------------


def u32(value: int) -> bytes:
    """Fixed-width id in a digest."""
    return struct.pack(">I", value)


def commit_self_key(epoch_hash: bytes, org_id: str, round_: int, key: bytes) -> bytes:
    """Lets everyone recognise the right b[r] once it is interpolated."""
    return digest("commit-b", epoch_hash, org_id.encode(), u32(round_), key)


def commit_escrow_key(epoch_hash: bytes, org_id: str, round_: int, key: bytes) -> bytes:
    """Lets everyone recognise the right K[r]: AES-GCM alone does not commit to its key."""
    return digest("commit-k", epoch_hash, org_id.encode(), u32(round_), key)


def commit_pair_key(roster_hash: bytes, low: int, high: int, round_: int, key: bytes) -> bytes:
    """Both ends publish it; equal commitments mean equal pair keys."""
    return digest("pair-commit", roster_hash, u32(low), u32(high), u32(round_), key)


def commit_escrow_share(roster_hash: bytes, owner: int, holder: int, round_: int, share: bytes) -> bytes:
    """Leaf of the owner's commitment to the K-share that it dealt to a holder."""
    return digest("share-k", roster_hash, u32(owner), u32(holder), u32(round_), share)


def commit_self_share(roster_hash: bytes, owner: int, holder: int, round_: int, share: bytes) -> bytes:
    """Leaf of the owner's commitment to the b-share that it dealt to a holder."""
    return digest("share-b", roster_hash, u32(owner), u32(holder), u32(round_), share)


def commit_shares(escrow_leaf: bytes, self_leaf: bytes) -> bytes:
    """The commitment an owner signs: a two-leaf tree, so one share is shown without showing the other."""
    return digest("shares", escrow_leaf, self_leaf)


def upload_hash(chunk_digests: Sequence[bytes]) -> bytes:
    """Digest of a masked update, from the SHA-256 of each of its chunks in order."""
    return digest("upload-chunks", *chunk_digests)
