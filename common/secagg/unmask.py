"""Opening one sum: from revealed shares to the mask seeds, and taking the masks off chunk by chunk.

Bonawitz et al. 2017, round 4 (Unmasking), with escrowed pair keys in place of Diffie-Hellman keys. Makes no decision
about who survived. Knows nothing of storage; each chunk is unmasked by itself, in any order, again after a crash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from common.errors import AggregationFailed, MemberAtFault, ProtocolViolation, TooFewMembers
from common.secagg import hashing, sealing, shamir
from common.secagg.coordinator import CheckedReveal
from common.secagg.graph import pair
from common.secagg.hashing import KEY_BYTES
from common.secagg.messages import Ready
from common.secagg.packing import TailSums, read_tail
from common.secagg.prg import StreamSum
from common.secagg.ring import Words
from common.secagg.roster import Roster
from common.secagg.round_context import RoundContext


@dataclass(frozen=True, slots=True)
class Unmasking:
    """The seeds of every mask that is left in the sum over `survivors`; of nothing else."""

    context: RoundContext
    survivors: tuple[int, ...]
    added: tuple[bytes, ...] = field(repr=False)
    subtracted: tuple[bytes, ...] = field(repr=False)

    def unmasker(self) -> StreamSum:
        """`add_into(chunk, words)` takes the masks off one chunk of the summed words, in place."""
        return StreamSum(self.context.layout, plus=self.added, minus=self.subtracted)

    def check_tail(self, words: Words) -> TailSums:
        """Decode the unmasked tail chunk; of closed metric groups nothing.

        Raises AggregationFailed unless its count word is the number of survivors and 0 < A <= that number: a wrong
        unmask shows here with certainty up to 2**-64.
        """
        return read_tail(
            self.context.epoch.plan,
            words,
            survivors=len(self.survivors),
            groups=self.context.open_groups,
            lost=[group.name for group in self.context.lost_groups(self.survivors)],
        )


@dataclass(frozen=True, slots=True)
class OpenedKeys:
    """The keys that a round's reveals have opened; what is left in the sum follows from them and the context.

    self_keys: b[r] by survivor. pair_keys: by (dropped member, survivor that shares a mask with it).
    """

    self_keys: Mapping[int, bytes] = field(repr=False)
    pair_keys: Mapping[tuple[int, int], bytes] = field(repr=False)

    def unmasking(self, context: RoundContext, survivors: tuple[int, ...]) -> Unmasking:
        """The seeds of every mask that is left in the sum over `survivors`."""
        self_seeds = [hashing.self_mask_seed(key, context.hash, owner) for owner, key in sorted(self.self_keys.items())]
        added: list[bytes] = []
        subtracted: list[bytes] = []
        for (dropped, survivor), key in sorted(self.pair_keys.items()):
            seed = hashing.pair_mask_seed(key, context.hash, *pair(dropped, survivor))
            # The survivor added + if its index is the smaller one of the pair.
            (subtracted if survivor < dropped else added).append(seed)
        return Unmasking(context, survivors, tuple(added), (*self_seeds, *subtracted))


def open_masks(
    context: RoundContext,
    roster: Roster,
    survivors: tuple[int, ...],
    reveals: Iterable[CheckedReveal],
    readies: Mapping[int, Ready],
) -> Unmasking:
    """The seeds of every mask that is left in the sum. Arguments and errors as `open_keys`."""
    return open_keys(context, roster, survivors, reveals, readies).unmasking(context, survivors)


def open_keys(
    context: RoundContext,
    roster: Roster,
    survivors: tuple[int, ...],
    reveals: Iterable[CheckedReveal],
    readies: Mapping[int, Ready],
) -> OpenedKeys:
    """Interpolate b[r] of each survivor and K[r] of each dropped member, at the same t holders where possible.

    readies: by index, of the cohort. Raises TooFewMembers while fewer than t holders have revealed, MemberAtFault
    naming those whose dealt shares, escrow or pair keys are not what they committed to.
    """
    by_holder = {reveal.holder: reveal for reveal in reveals}
    opening = _Opening(context, roster, survivors, readies)
    self_keys: dict[int, bytes] = {}
    pair_keys: dict[tuple[int, int], bytes] = {}
    for owner in context.cohort:
        shares = _first_shares(context, by_holder, owner)
        if owner in survivors:
            self_keys[owner] = opening.self_key(owner, shares)
        else:
            pair_keys.update(((owner, survivor), key) for survivor, key in opening.pair_keys(owner, shares))
    opening.check()
    return OpenedKeys(self_keys, pair_keys)


def _first_shares(
    context: RoundContext, by_holder: Mapping[int, CheckedReveal], owner: int
) -> Sequence[tuple[int, bytes]]:
    """t of the shares of one owner, those of the smallest holders, so that Lagrange weights are made once."""
    threshold = context.thresholds.shares
    revealed = ((holder, by_holder[holder].shares) for holder in sorted(by_holder))
    found = [(holder, shares[owner]) for holder, shares in revealed if owner in shares]
    if len(found) < threshold:
        raise TooFewMembers(
            f"{len(found)} holders have revealed shares of {context.members.org_ids[owner]}, {threshold} must"
        )
    return found[:threshold]


class _Opening:
    """Opens secrets one by one and collects every member at fault, so that one failure names all of them."""

    def __init__(
        self, context: RoundContext, roster: Roster, survivors: tuple[int, ...], readies: Mapping[int, Ready]
    ) -> None:
        self._context = context
        self._roster = roster
        self._survivors = survivors
        self._readies = readies
        self._faults: dict[int, str] = {}

    def self_key(self, owner: int, shares: Sequence[tuple[int, bytes]]) -> bytes:
        advertised = self._roster.advertisements[owner]
        key = _interpolate(shares)
        context = self._context
        expected = advertised.self_commitments[context.round_offset]
        place = (advertised.epoch_hash, advertised.org_id, context.start.round)
        if key is None or hashing.commit_self_key(*place, key) != expected:
            # Every share was checked against the owner's own commitment, so only the owner can be wrong.
            self._faults[owner] = "dealt shares of another self mask than it committed to"
            return bytes(KEY_BYTES)
        return key

    def pair_keys(self, owner: int, shares: Sequence[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """(survivor, pair key) of each survivor that shares a mask with a dropped member."""
        try:
            return self._pair_keys(owner, shares)
        except ProtocolViolation as error:
            self._faults[owner] = error.message
            return []

    def _pair_keys(self, owner: int, shares: Sequence[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        context, advertised = self._context, self._roster.advertisements[owner]
        offset, round_ = context.round_offset, context.start.round
        key = _interpolate(shares)
        place = (advertised.epoch_hash, advertised.org_id, round_)
        if key is None or hashing.commit_escrow_key(*place, key) != advertised.escrow_commitments[offset]:
            raise ProtocolViolation("dealt shares of another escrow key than it committed to")
        roster_hash, ready = context.members.roster_hash, self._readies[owner]
        opened = sealing.open_escrow(key, ready.escrows[offset], roster_hash=roster_hash, owner=owner, round_=round_)
        if len(opened) != KEY_BYTES * len(ready.partners):
            raise ProtocolViolation("escrowed the wrong number of pair keys")
        escrowed = {other: opened[at * KEY_BYTES : (at + 1) * KEY_BYTES] for at, other in enumerate(ready.partners)}
        found = []
        for survivor in context.graph.neighbours(owner):
            if survivor not in self._survivors:
                continue
            ends = pair(owner, survivor)
            theirs = self._readies[survivor]
            expected = theirs.pair_commitments[offset][theirs.partners.index(owner)]
            pair_key = escrowed.get(survivor, b"")
            if hashing.commit_pair_key(roster_hash, *ends, round_, pair_key) != expected:
                raise ProtocolViolation(
                    f"escrowed another pair key with {context.members.org_ids[survivor]} than both committed to"
                )
            found.append((survivor, pair_key))
        return found

    def check(self) -> None:
        """Raises MemberAtFault if any secret did not open."""
        if self._faults:
            members = self._context.members
            said = "; ".join(f"{members.org_ids[index]} {why}" for index, why in sorted(self._faults.items()))
            raise MemberAtFault(f"the sum cannot be opened: {said}", members.names(sorted(self._faults)))


def _interpolate(shares: Sequence[tuple[int, bytes]]) -> bytes | None:
    try:
        return shamir.combine(tuple(holder + 1 for holder, _ in shares), [share for _, share in shares])
    except AggregationFailed:
        return None
