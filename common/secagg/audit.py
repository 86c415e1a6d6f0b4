"""Checking some chunks of a finished round: from what the coordinator shows of it to the sum that it must have had.

Nothing shown is trusted. The round's context is the auditor's own; receipts and commits are signed under it, chunks
hash to what the receipts name, and opened keys to what their owners committed to. So what passes here is what the
members sent, and its sum is theirs. README.md ("Chunk audit") says what this proves, what it does not, and why showing
it is harmless. Knows nothing of the adapter that was made from the sum.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from common.errors import AggregationFailed, AuditFailed, ProtocolViolation
from common.secagg import hashing
from common.secagg.coordinator import check_ready
from common.secagg.graph import pair
from common.secagg.messages import Ready
from common.secagg.packing import TailSums
from common.secagg.ring import Words, add_into
from common.secagg.roster import Roster
from common.secagg.round_context import RoundContext
from common.secagg.unmask import OpenedKeys, Unmasking


@dataclass(frozen=True, slots=True)
class ShownUpload:
    """What is shown of a survivor's masked update beside its chunks. chunk_digests: SHA-256 of each, in order."""

    receipt: bytes
    chunk_digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ShownRound:
    """What a coordinator shows of a finished round; members are indices of the roster.

    uploads: of each survivor. commits: of a slow close. keys: what the reveals have opened. readies: signed Ready
    messages of dropped members and of the survivors that share a mask with one.
    """

    uploads: Mapping[int, ShownUpload]
    commits: tuple[bytes, ...]
    keys: OpenedKeys = field(repr=False)
    readies: Mapping[int, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class OwnUpload:
    """The auditor's own masked update in the round, from its own notes."""

    index: int
    chunk_digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ChunkAudit:
    """A finished round of which all signatures and opened keys are right. Make it with `of`, which checks."""

    context: RoundContext
    survivors: tuple[int, ...]
    chunk_digests: Mapping[int, tuple[bytes, ...]] = field(repr=False)
    unmasking: Unmasking = field(repr=False)

    @classmethod
    def of(cls, context: RoundContext, roster: Roster, shown: ShownRound, *, own: OwnUpload | None) -> ChunkAudit:
        """context: the auditor's own. roster: of the same key epoch. own: None where it had uploaded nothing.

        Raises AuditFailed that names whose receipt, commit or key is wrong.
        """
        if roster.members != context.members:
            raise AuditFailed("the key roster is not the one that this site's keys are for")
        with _said_of("the survivor set"):
            survivors = context.check_survivors(shown.uploads)
        for index in survivors:
            _check_upload(context, index, shown.uploads[index])
        if survivors != context.cohort:
            with _said_of("the commits to the survivor set"):
                context.check_quorum(survivors, shown.commits)
        if own is not None and own.index in survivors and shown.uploads[own.index].chunk_digests != own.chunk_digests:
            raise AuditFailed("the upload that is shown in this site's name is not the one that it sent")
        _check_self_keys(context, roster, survivors, shown.keys)
        _check_pair_keys(context, survivors, shown)
        digests = {index: shown.uploads[index].chunk_digests for index in survivors}
        return cls(context, survivors, digests, shown.keys.unmasking(context, survivors))

    def sum_of(self, chunk: int, shown: Iterable[tuple[int, bytes]]) -> Words:
        """uint64[words of the chunk]: the survivors' sum without masks.

        shown: (survivor, the chunk of its upload), one for each in any order, taken one at a time. Raises AuditFailed.
        """
        layout = self.context.layout
        total = np.zeros(layout.words_in(chunk), dtype=np.uint64)
        missing = set(self.survivors)
        for index, content in shown:
            if index not in missing:
                raise AuditFailed(f"chunk {chunk} is shown twice, or of somebody who did not survive")
            missing.remove(index)
            if hashlib.sha256(content).digest() != self.chunk_digests[index][chunk]:
                raise AuditFailed(f"chunk {chunk} of {self._name(index)} is not the one that its receipt is for")
            if len(content) != total.nbytes:
                raise AuditFailed(
                    f"chunk {chunk} of {self._name(index)} has {len(content)} bytes: it sent no such chunk"
                )
            add_into(total, np.frombuffer(content, dtype="<u8").astype(np.uint64, copy=False))
        if missing:
            names = ", ".join(self.context.members.names(sorted(missing)))
            raise AuditFailed(f"chunk {chunk} of {names} is not shown")
        self.unmasking.unmasker().add_into(chunk, total)
        return total

    def tail(self, words: Words) -> TailSums:
        """Weight, count and metrics, from `sum_of` the tail chunk. Raises AuditFailed if they cannot be."""
        try:
            return self.unmasking.check_tail(words)
        except AggregationFailed as error:
            raise AuditFailed(f"the tail chunk's sum is impossible: {error.message}") from error

    def _name(self, index: int) -> str:
        return self.context.members.org_ids[index]


def chance_to_catch(*, wrong: int, chunks: int, audited: int) -> float:
    """How likely `audited` of `chunks` chunks, drawn at random, hold at least one of the `wrong` ones."""
    return 1.0 - math.comb(chunks - wrong, audited) / math.comb(chunks, audited)


def _check_upload(context: RoundContext, index: int, shown: ShownUpload) -> None:
    name = context.members.org_ids[index]
    with _said_of(f"the receipt of {name}"):
        receipt = context.check_receipt(shown.receipt)
    if receipt.index != index:
        raise AuditFailed(f"the receipt of {name} is in the name of {context.members.org_ids[receipt.index]}")
    if len(shown.chunk_digests) != context.layout.chunks:
        raise AuditFailed(f"{len(shown.chunk_digests)} chunk digests of {name} are shown, not {context.layout.chunks}")
    if receipt.upload_hash != hashing.upload_hash(shown.chunk_digests):
        raise AuditFailed(f"the receipt of {name} is for another upload than the one that is shown")


def _check_self_keys(context: RoundContext, roster: Roster, survivors: Sequence[int], keys: OpenedKeys) -> None:
    if set(keys.self_keys) != set(survivors):
        raise AuditFailed("the opened self keys are not one for each survivor")
    for index, key in keys.self_keys.items():
        advertised = roster.advertisements[index]
        found = hashing.commit_self_key(advertised.epoch_hash, advertised.org_id, context.start.round, key)
        if found != advertised.self_commitments[context.round_offset]:
            raise AuditFailed(f"the opened self key of {advertised.org_id} is not the one that it committed to")


def _check_pair_keys(context: RoundContext, survivors: tuple[int, ...], shown: ShownRound) -> None:
    members = context.members
    dropped = [index for index in context.cohort if index not in survivors]
    readies = {index: _ready(context, index, shown.readies) for index in dropped}
    due = {(one, other) for one in dropped for other in readies[one].partners if other in survivors}
    if set(shown.keys.pair_keys) != due:
        raise AuditFailed("the opened pair keys are not one for each mask that a dropped member has left in the sum")
    readies |= {index: _ready(context, index, shown.readies) for index in sorted({other for _, other in due})}
    for (one, other), key in sorted(shown.keys.pair_keys.items()):
        place = (members.roster_hash, *pair(one, other), context.start.round)
        for end, partner in ((one, other), (other, one)):
            if _pair_commitment(context, readies[end], partner) != hashing.commit_pair_key(*place, key):
                raise AuditFailed(
                    f"the opened pair key of {members.org_ids[one]} and {members.org_ids[other]} is not the one that "
                    f"{members.org_ids[end]} committed to"
                )


def _ready(context: RoundContext, index: int, readies: Mapping[int, bytes]) -> Ready:
    name = context.members.org_ids[index]
    if index not in readies:
        raise AuditFailed(f"the commitments of {name} to its pair keys are not shown")
    with _said_of(f"the commitments of {name} to its pair keys"):
        return check_ready(context.epoch, context.members, readies[index], sender=index)


def _pair_commitment(context: RoundContext, ready: Ready, partner: int) -> bytes:
    if partner not in ready.partners:
        return b""
    return ready.pair_commitments[context.round_offset][ready.partners.index(partner)]


@contextmanager
def _said_of(what: str) -> Iterator[None]:
    """A message that breaks the protocol is a wrong exhibit here."""
    try:
        yield
    except ProtocolViolation as error:
        raise AuditFailed(f"{what}: {error.message}") from error
