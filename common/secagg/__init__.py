"""Secure aggregation: the coordinator opens one sum over enough members, or nothing.

Pure: no I/O, no clock, no logging, no protobuf. README.md has the protocol in one sitting; the names below are the
ones that services use. Messages are opaque bytes; a participant's phase is journalled before its `message` is sent.
"""

from __future__ import annotations

from common.secagg.audit import ChunkAudit, OwnUpload, ShownRound, ShownUpload, chance_to_catch
from common.secagg.coordinator import (
    CheckedReveal,
    CloseKind,
    Settlement,
    ShareCommitments,
    check_deposit,
    check_ready,
    choose_close,
    envelopes_for,
    make_start,
    settle_epoch,
    share_commitments,
    verify_commit,
    verify_reveal,
)
from common.secagg.hashing import upload_hash
from common.secagg.identity import (
    IdentitySigner,
    MemberVerifier,
    PinnedMember,
    PinnedMembers,
    identity_signer,
    sign_as_identity,
    spki_sha256,
    verify_identity,
)
from common.secagg.messages import Advertisement, Commit, Deposit, Ready, Receipt, Reveal, SealedShare, Signed, Start
from common.secagg.packing import Clipping, Packer, TailSums, decode_chunk, fixed_weight
from common.secagg.participant_epoch import Advertising, Dealt, EpochKeys, RandomBytes, Refusal, begin_epoch
from common.secagg.participant_round import Bound, Masked, Masking, Revealed
from common.secagg.plan import ClipSlot, KeyEpoch, MetricGroup, RoundKind, SecaggPlan, Thresholds
from common.secagg.prg import StreamSum
from common.secagg.ring import CHUNK_WORDS, VectorLayout, Words, add_into, choose_lanes, lane_limit
from common.secagg.roster import Members, Roster, assemble_roster, check_advertisement, check_roster, read_roster
from common.secagg.round_context import ClosedGroup, RoundContext
from common.secagg.unmask import OpenedKeys, Unmasking, open_keys, open_masks

__all__ = [
    "CHUNK_WORDS",
    "Advertisement",
    "Advertising",
    "Bound",
    "CheckedReveal",
    "ChunkAudit",
    "ClipSlot",
    "Clipping",
    "CloseKind",
    "ClosedGroup",
    "Commit",
    "Dealt",
    "Deposit",
    "EpochKeys",
    "IdentitySigner",
    "KeyEpoch",
    "Masked",
    "Masking",
    "MemberVerifier",
    "Members",
    "MetricGroup",
    "OpenedKeys",
    "OwnUpload",
    "Packer",
    "PinnedMember",
    "PinnedMembers",
    "RandomBytes",
    "Ready",
    "Receipt",
    "Refusal",
    "Reveal",
    "Revealed",
    "Roster",
    "RoundContext",
    "RoundKind",
    "SealedShare",
    "SecaggPlan",
    "Settlement",
    "ShareCommitments",
    "ShownRound",
    "ShownUpload",
    "Signed",
    "Start",
    "StreamSum",
    "TailSums",
    "Thresholds",
    "Unmasking",
    "VectorLayout",
    "Words",
    "add_into",
    "assemble_roster",
    "begin_epoch",
    "chance_to_catch",
    "check_advertisement",
    "check_deposit",
    "check_ready",
    "check_roster",
    "choose_close",
    "choose_lanes",
    "decode_chunk",
    "envelopes_for",
    "fixed_weight",
    "identity_signer",
    "lane_limit",
    "make_start",
    "open_keys",
    "open_masks",
    "read_roster",
    "settle_epoch",
    "share_commitments",
    "sign_as_identity",
    "spki_sha256",
    "upload_hash",
    "verify_commit",
    "verify_identity",
    "verify_reveal",
]
