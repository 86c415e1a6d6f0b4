"""A participant's part in one round: Masking -> Masked -> (Bound ->) Revealed.

Each phase is a frozen value that is journalled before its `message` leaves. There is no way back: a masked update is
sealed once, a survivor set is accepted once, and what is opened is one share for each owner, chosen when the set is.
Knows nothing of keys of other rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from common.errors import ProtocolViolation, SecondSurvivorSet
from common.secagg import hashing, packing
from common.secagg.encoding import MAX_MEMBERS, Kind, Reader, Writer
from common.secagg.hashing import DIGEST_BYTES, KEY_BYTES
from common.secagg.messages import Commit, OpenedShare, Receipt, Reveal, Signed
from common.secagg.prg import StreamSum, tail_stream
from common.secagg.ring import Words
from common.secagg.round_context import RoundContext
from common.secagg.shamir import SHARE_BYTES


@dataclass(frozen=True, slots=True)
class Masking:
    """The round's mask seeds are here; the update is masked into a spool. No message.

    A crash before `seal` may mask again, even another vector: nothing has left. After `seal` the seeds are gone.
    """

    context: RoundContext
    index: int
    signing_seed: bytes = field(repr=False)
    self_seed: bytes = field(repr=False)
    pair_seeds: Mapping[int, bytes] = field(repr=False)
    shares: Mapping[int, bytes] = field(repr=False)
    group_seeds: Mapping[int, bytes] = field(repr=False)

    def masker(self) -> StreamSum:
        """Adds self mask and pair masks to packed words, chunk by chunk: + for the smaller index of a pair."""
        plus = [self.self_seed, *(seed for other, seed in self.pair_seeds.items() if self.index < other)]
        minus = [seed for other, seed in self.pair_seeds.items() if self.index > other]
        return StreamSum(self.context.layout, plus=plus, minus=minus)

    def pack_tail(self, *, fixed_alpha: int, metrics: Mapping[str, float]) -> Words:
        """The tail chunk, uint64[tail_words]: weight, count, and of the metrics what this site shares in this round.

        That is every word of the plan's `metrics`, and those of open groups that this site has declared; the others
        are zeros, whatever `metrics` says. A coordinator has no say in it: plan, declarations and cohort are under the
        context hash. Words of narrow groups are masked here once more, with each other contributor. fixed_alpha,
        metrics and errors as in `packing.pack_tail`.
        """
        groups = self.context.groups_filled_by(self.index)
        words = packing.pack_tail(self.context.epoch.plan, fixed_alpha=fixed_alpha, metrics=metrics, groups=groups)
        for other, names in self.context.narrow_with(self.index).items():
            places = packing.places_of(self.context.epoch.plan, names)
            stream = tail_stream(self.group_seeds[other], words.size)[places]
            words[places] += stream if self.index < other else -stream
        return words

    def seal(self, upload_hash: bytes) -> Masked:
        """Name the one masked update of the round by `hashing.upload_hash` of its chunks' SHA-256; make the receipt.

        Journal the result before the first byte of the upload leaves.
        """
        receipt = Receipt(self.context.hash, self.index, upload_hash)
        message = Signed.by_epoch_key(self.signing_seed, "upload", receipt.encode()).encode()
        return Masked(self.context, self.index, self.signing_seed, self.shares, upload_hash, message)

    def abandon(self) -> Masked:
        """Upload nothing in this round (the spool is lost, the update is not to be had) but help to open the sum."""
        return Masked(self.context, self.index, self.signing_seed, self.shares, None, b"")

    def to_bytes(self) -> bytes:
        writer = Writer(Kind.STATE_MASKING)
        _write_common(writer, self.context, self.index, self.signing_seed, self.shares)
        writer.fixed(self.self_seed, KEY_BYTES)
        writer.u32(len(self.pair_seeds))
        for other in sorted(self.pair_seeds):
            writer.u32(other)
            writer.fixed(self.pair_seeds[other], KEY_BYTES)
        writer.u32(len(self.group_seeds))
        for other in sorted(self.group_seeds):
            writer.u32(other)
            writer.fixed(self.group_seeds[other], KEY_BYTES)
        return writer.done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        reader = Reader(data, Kind.STATE_MASKING)
        context, index, signing_seed, shares = _read_common(reader)
        self_seed = reader.fixed(KEY_BYTES)
        pair_seeds = reader.by_index(lambda: reader.fixed(KEY_BYTES))
        group_seeds = reader.by_index(lambda: reader.fixed(KEY_BYTES))
        reader.done()
        return cls(context, index, signing_seed, self_seed, pair_seeds, shares, group_seeds)


@dataclass(frozen=True, slots=True)
class Masked:
    """The update is sealed (or abandoned: upload_hash is None); `message` is the receipt. Waits for the close."""

    context: RoundContext
    index: int
    signing_seed: bytes = field(repr=False)
    shares: Mapping[int, bytes] = field(repr=False)
    upload_hash: bytes | None
    message: bytes

    def accept_fast_close(self, receipts: Iterable[bytes]) -> Revealed:
        """Everyone in the cohort uploaded: every receipt, under this context, is evidence enough. Opens the shares.

        Raises ProtocolViolation.
        """
        survivors = self.context.check_survivors(self.context.cohort)
        self._check_receipts(survivors, receipts)
        return _reveal(self.context, self.index, self.signing_seed, self.shares, survivors)

    def bind(self, survivors: Iterable[int], receipts: Iterable[bytes]) -> Bound:
        """Bind this member to one survivor set, for ever; `message` of the result is the Commit.

        Raises ProtocolViolation.
        """
        found = self.context.check_survivors(survivors)
        self._check_receipts(found, receipts)
        commit = Commit(self.context.hash, self.index, found, len(self.context.members))
        message = Signed.by_epoch_key(self.signing_seed, "commit", commit.encode()).encode()
        return Bound(self.context, self.index, self.signing_seed, self.shares, found, message)

    def _check_receipts(self, survivors: tuple[int, ...], receipts: Iterable[bytes]) -> None:
        for receipt in self.context.check_receipts(survivors, receipts):
            if receipt.index == self.index and receipt.upload_hash != self.upload_hash:
                raise ProtocolViolation("the receipts name another upload of this site than the one it sealed")

    def to_bytes(self) -> bytes:
        writer = Writer(Kind.STATE_MASKED)
        _write_common(writer, self.context, self.index, self.signing_seed, self.shares)
        writer.blob(self.upload_hash or b"")
        writer.blob(self.message)
        return writer.done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        reader = Reader(data, Kind.STATE_MASKED)
        context, index, signing_seed, shares = _read_common(reader)
        state = cls(context, index, signing_seed, shares, reader.blob(DIGEST_BYTES) or None, reader.blob())
        reader.done()
        return state


@dataclass(frozen=True, slots=True)
class Bound:
    """Bound to `survivors`; `message` is the Commit. Waits for the commits of a quorum."""

    context: RoundContext
    index: int
    signing_seed: bytes = field(repr=False)
    shares: Mapping[int, bytes] = field(repr=False)
    survivors: tuple[int, ...]
    message: bytes

    def bind(self, survivors: Iterable[int], receipts: Iterable[bytes]) -> Bound:
        """The same state for the same set. Raises SecondSurvivorSet for any other."""
        del receipts
        _check_same(self.context, self.survivors, survivors)
        return self

    def accept(self, commits: Iterable[bytes]) -> Revealed:
        """Open the shares once T members have committed to this set. Raises ProtocolViolation."""
        self.context.check_quorum(self.survivors, commits)
        return _reveal(self.context, self.index, self.signing_seed, self.shares, self.survivors)

    def accept_fast_close(self, receipts: Iterable[bytes]) -> Revealed:
        """As Masked does, where the set is the whole cohort. Raises SecondSurvivorSet otherwise."""
        _check_same(self.context, self.survivors, self.context.cohort)
        self.context.check_receipts(self.survivors, receipts)
        return _reveal(self.context, self.index, self.signing_seed, self.shares, self.survivors)

    def to_bytes(self) -> bytes:
        writer = Writer(Kind.STATE_BOUND)
        _write_common(writer, self.context, self.index, self.signing_seed, self.shares)
        writer.indices(self.survivors, len(self.context.members))
        writer.blob(self.message)
        return writer.done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        reader = Reader(data, Kind.STATE_BOUND)
        context, index, signing_seed, shares = _read_common(reader)
        survivors, _ = reader.indices()
        state = cls(context, index, signing_seed, shares, survivors, reader.blob())
        reader.done()
        return state


@dataclass(frozen=True, slots=True)
class Revealed:
    """`message` opens one share for each owner; the other share of each owner is gone. Nothing follows."""

    context: RoundContext
    index: int
    survivors: tuple[int, ...]
    message: bytes = field(repr=False)

    def bind(self, survivors: Iterable[int], receipts: Iterable[bytes]) -> Revealed:
        """The same state for the same set. Raises SecondSurvivorSet for any other."""
        del receipts
        _check_same(self.context, self.survivors, survivors)
        return self

    def to_bytes(self) -> bytes:
        writer = Writer(Kind.STATE_REVEALED)
        writer.blob(self.context.encode())
        writer.u32(self.index)
        writer.indices(self.survivors, len(self.context.members))
        writer.blob(self.message)
        return writer.done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        reader = Reader(data, Kind.STATE_REVEALED)
        context, index = RoundContext.decode(reader.blob()), reader.u32(MAX_MEMBERS)
        survivors, _ = reader.indices()
        state = cls(context, index, survivors, reader.blob())
        reader.done()
        return state


def _check_same(context: RoundContext, bound: tuple[int, ...], survivors: Iterable[int]) -> None:
    if tuple(sorted(survivors)) != bound:
        raise SecondSurvivorSet(
            f"round {context.start.round} is bound to {', '.join(context.members.names(bound))}; "
            "a second survivor set could open one member's update, so this site answers none"
        )


def _reveal(
    context: RoundContext,
    index: int,
    signing_seed: bytes,
    shares: Mapping[int, bytes],
    survivors: tuple[int, ...],
) -> Revealed:
    """Choose for each owner the one share that the survivor set allows; the other ends here, as a digest."""
    opened = []
    for owner in sorted(shares):
        escrow_share, self_share = shares[owner][:SHARE_BYTES], shares[owner][SHARE_BYTES:]
        place = (context.members.roster_hash, owner, index, context.start.round)
        if owner in survivors:
            opened.append(OpenedShare(self_share, hashing.commit_escrow_share(*place, escrow_share)))
        else:
            opened.append(OpenedShare(escrow_share, hashing.commit_self_share(*place, self_share)))
    reveal = Reveal(context.hash, index, survivors, len(context.members), tuple(opened))
    message = Signed.by_epoch_key(signing_seed, "reveal", reveal.encode()).encode()
    return Revealed(context, index, survivors, message)


def _write_common(
    writer: Writer, context: RoundContext, index: int, signing_seed: bytes, shares: Mapping[int, bytes]
) -> None:
    writer.blob(context.encode())
    writer.u32(index)
    writer.fixed(signing_seed, KEY_BYTES)
    writer.u32(len(shares))
    for owner in sorted(shares):
        writer.u32(owner)
        writer.fixed(shares[owner], 2 * SHARE_BYTES)


def _read_common(reader: Reader) -> tuple[RoundContext, int, bytes, dict[int, bytes]]:
    context, index = RoundContext.decode(reader.blob()), reader.u32(MAX_MEMBERS)
    signing_seed = reader.fixed(KEY_BYTES)
    shares = reader.by_index(lambda: reader.fixed(2 * SHARE_BYTES))
    return context, index, signing_seed, shares
