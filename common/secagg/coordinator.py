"""The coordinator's part of a key epoch and of closing a round: checks and decisions, no secret anywhere.

Every function takes messages as they came and returns them checked; what to store, when to wait and whom to ask is
the caller's. Knows nothing of time, storage and of how a sum is opened.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from hashlib import sha256

from common.errors import MalformedMessage, ProtocolViolation, TooFewMembers
from common.secagg import hashing
from common.secagg.graph import Graph
from common.secagg.messages import Deposit, Ready, Reveal, SealedShare, Signed, Start
from common.secagg.plan import KeyEpoch, RoundKind
from common.secagg.roster import Members, graph_of
from common.secagg.round_context import RoundContext
from common.secagg.shamir import check_share

ShareCommitments = Mapping[tuple[int, int], bytes]
"""(owner, holder) -> the owner's commitment to the pair of shares it dealt to the holder, in one round."""


# --- key epoch --------------------------------------------------------------------------------------------------


def check_deposit(epoch: KeyEpoch, members: Members, message: bytes, *, sender: int) -> Deposit:
    """A deposit with one well-signed envelope for each holder. Raises ProtocolViolation.

    sender: index of the member whose certificate brought it.
    """
    deposit = Deposit.decode(message)
    if deposit.roster_hash != members.roster_hash or deposit.owner != sender:
        raise ProtocolViolation("a deposit is for another roster or in another member's name")
    expected = graph_of(epoch, members).holders(sender)
    if len(deposit.envelopes) != len(expected):
        raise ProtocolViolation(f"a deposit holds {len(deposit.envelopes)} envelopes, {len(expected)} are due")
    for holder, envelope in zip(expected, deposit.envelopes, strict=True):
        signed = Signed.decode(envelope)
        members.check_signature(signed, "share", sender)
        sealed = SealedShare.decode(signed.body)
        if (sealed.roster_hash, sealed.owner, sealed.holder) != (members.roster_hash, sender, holder):
            raise ProtocolViolation("an envelope of the deposit is for another place")
        if len(sealed.commitments) != epoch.plan.rounds_per_epoch:
            raise MalformedMessage(f"an envelope of the deposit is for {len(sealed.commitments)} rounds")
    return deposit


def envelopes_for(members: Members, deposits: Iterable[Deposit], holder: int) -> tuple[bytes, ...]:
    """The signed envelopes that others have sealed to `holder`, in the order of their owners.

    deposits: checked ones of the roster, of whomever; those that have no envelope for the holder are passed over.
    """
    found = {}
    for deposit in deposits:
        at = bisect_left(deposit.envelopes, holder, key=_holder_of)
        if deposit.roster_hash != members.roster_hash or deposit.owner == holder:
            continue
        if at < len(deposit.envelopes) and _holder_of(deposit.envelopes[at]) == holder:
            found[deposit.owner] = deposit.envelopes[at]
    return tuple(found[owner] for owner in sorted(found))


def _holder_of(envelope: bytes) -> int:
    return SealedShare.decode(Signed.decode(envelope).body).holder


def check_ready(epoch: KeyEpoch, members: Members, message: bytes, *, sender: int) -> Ready:
    """What a member holds and escrows, well signed and complete. Raises ProtocolViolation."""
    signed = Signed.decode(message)
    members.check_signature(signed, "ready", sender)
    ready = Ready.decode(signed.body)
    if (ready.roster_hash, ready.index, ready.members) != (members.roster_hash, sender, len(members)):
        raise ProtocolViolation("a ready message is for another roster or in another member's name")
    if not set(ready.opened) <= set(graph_of(epoch, members).holders(sender)) or sender not in ready.opened:
        raise ProtocolViolation("a ready message holds shares of members that are not its neighbours, or not its own")
    if len(ready.escrows) != epoch.plan.rounds_per_epoch:
        raise MalformedMessage(f"a ready message is for {len(ready.escrows)} rounds")
    return ready


@dataclass(frozen=True, slots=True)
class Settlement:
    """Who can take part in the epoch's rounds, and why the others cannot.

    unequal_pairs: pairs that both hold each other and have committed to different keys; one of the two lied.
    """

    usable: tuple[int, ...]
    left_out: Mapping[int, str]
    unequal_pairs: tuple[tuple[int, int], ...]


def settle_epoch(epoch: KeyEpoch, members: Members, readies: Iterable[Ready]) -> Settlement:
    """Largest plain set of members any of whom can be in a cohort together.

    Members with no Ready are out. While two neighbours have no common key, the ones with most such pairs go: a liar who
    disagrees with everyone goes alone, and of a single bad pair both go, as nobody can tell which of them lied. (To
    leave out the pair alone would hide no less, but then members would have to be shown why.) In a sparse graph those
    go, too, whose shares too few of the others hold, so each that stays is held by at least t of those that stay.
    Raises TooFewMembers when fewer stay than must survive a round, or stay so unevenly that a ring is not covered.
    """
    graph = graph_of(epoch, members)
    by_index = {ready.index: _Word.of(ready) for ready in readies}
    thresholds = epoch.plan.thresholds(len(members))
    left_out = {index: "sent no Ready" for index in range(len(members)) if index not in by_index}
    bad = {index: set[int]() for index in by_index}
    unequal = []
    for low in sorted(by_index):
        for high in graph.neighbours(low):
            if high <= low or high not in by_index:
                continue
            agreement = _pair_agreement(low, by_index[low], high, by_index[high])
            if agreement is not True:
                bad[low].add(high)
                bad[high].add(low)
            if agreement is False:
                unequal.append((low, high))
    while worst := max((len(partners) for partners in bad.values()), default=0):
        for index in [index for index, partners in bad.items() if len(partners) == worst]:
            names = ", ".join(members.names(sorted(bad.pop(index))))
            left_out[index] = f"has no common pair key with {names}"
        bad = {index: partners - left_out.keys() for index, partners in bad.items()}
    usable = _held_by_enough(graph, by_index, bad, left_out)
    reasons = "; ".join(f"{members.org_ids[index]} {why}" for index, why in sorted(left_out.items()))
    if len(usable) < thresholds.survivors:
        raise TooFewMembers(
            f"{len(usable)} of {len(members)} members can take part, {thresholds.survivors} must: {reasons}"
        )
    try:
        graph.check_cover(usable)
    except TooFewMembers as error:
        raise TooFewMembers(f"{error.message}: {reasons}") from error
    return Settlement(usable, left_out, tuple(unequal))


@dataclass(frozen=True, slots=True)
class _Word:
    """What settling needs of a Ready: a digest for each pair, of all its rounds, in place of the lists.

    The commitments of a thousand members to 180 partners each in ten rounds would be hundreds of megabytes.
    """

    opened: frozenset[int]
    partners: tuple[int, ...]
    digests: bytes = field(repr=False)

    @classmethod
    def of(cls, ready: Ready) -> _Word:
        of_pairs = zip(*ready.pair_commitments, strict=True)
        digests = b"".join(sha256(b"".join(commitments)).digest() for commitments in of_pairs)
        return cls(frozenset(ready.opened), ready.partners, digests)

    def of_pair(self, other: int) -> bytes | None:
        """Says all of the keys that it has with the other one; None if it has none."""
        at = bisect_left(self.partners, other)
        if at == len(self.partners) or self.partners[at] != other:
            return None
        return self.digests[at * hashing.DIGEST_BYTES : (at + 1) * hashing.DIGEST_BYTES]


def _held_by_enough(
    graph: Graph, words: Mapping[int, _Word], agreed: Iterable[int], left_out: dict[int, str]
) -> tuple[int, ...]:
    """Those of `agreed` who are held by enough of each other; the others are added to `left_out`.

    In a complete graph everyone of `agreed` holds everyone, and the floor on their number, which is no less than t,
    says it all.
    """
    usable = set(agreed)
    if graph.sparse is None:
        return tuple(sorted(usable))
    needed = graph.sparse.threshold + graph.sparse.spare
    while True:
        held = {
            index: sum(holder in usable and index in words[holder].opened for holder in graph.holders(index))
            for index in usable
        }
        weak = [index for index in usable if held[index] < needed]
        if not weak:
            return tuple(sorted(usable))
        # All at once: one that goes is a holder less for its neighbours, so the next turn counts again.
        left_out.update({index: f"only {held[index]} members hold its shares, {needed} must" for index in weak})
        usable.difference_update(weak)


def _pair_agreement(low: int, lows: _Word, high: int, highs: _Word) -> bool | None:
    """True: same keys in every round. False: different keys. None: one of them does not hold the other."""
    mine, theirs = lows.of_pair(high), highs.of_pair(low)
    if mine is None or theirs is None:
        return None
    return mine == theirs


# --- round ------------------------------------------------------------------------------------------------------


def make_start(
    epoch: KeyEpoch,
    members: Members,
    *,
    round_number: int,
    kind: RoundKind,
    cohort: Iterable[int],
    model_hash: bytes,
) -> RoundContext:
    """Open a round: `context.start.encode()` is the message. cohort: usable members with an update ready.

    Raises TooFewMembers for a cohort below the floor or, in a sparse graph, with too few neighbours for some member;
    ProtocolViolation for a round outside the epoch.
    """
    listed = tuple(sorted(set(cohort)))
    floor = epoch.plan.thresholds(len(members)).survivors
    if len(listed) < floor:
        raise TooFewMembers(f"{len(listed)} members are ready, the round needs {floor}")
    graph_of(epoch, members).check_cover(listed)
    start = Start(epoch.hash, members.roster_hash, round_number, kind, listed, len(members), model_hash)
    context = RoundContext.of(epoch, members, start)
    _check_openable(context, listed)
    return context


def _check_openable(context: RoundContext, present: Collection[int]) -> None:
    """Never raises in a complete graph, where the floor is no less than t."""
    if closed := context.unopenable(present):
        raise TooFewMembers(
            f"the {len(present)} members that are left could not open the sum: fewer than {context.thresholds.shares} "
            f"of them hold the shares of {', '.join(context.members.names(closed))}"
        )


class CloseKind(Enum):
    """How a round's survivor set is agreed on."""

    FAST = "fast"
    SLOW = "slow"


def choose_close(context: RoundContext, uploaded: Iterable[int]) -> tuple[CloseKind, tuple[int, ...]]:
    """The way to close over those whose upload and receipt are complete, and the survivor set.

    FAST when the whole cohort uploaded: send all receipts. SLOW otherwise: send set and receipts, collect commits,
    send T of them. Store the answer before anyone is told: there is one survivor set a round, ever.
    Raises TooFewMembers below the floor and, in a sparse graph, where the survivors could not open every secret or do
    not cover the ring.
    """
    survivors = tuple(sorted(set(uploaded)))
    floor = context.thresholds.survivors
    if len(survivors) < floor:
        raise TooFewMembers(f"{len(survivors)} updates have arrived, the round needs {floor}")
    context.graph.check_cover(survivors)
    _check_openable(context, survivors)
    context.check_survivors(survivors)
    return (CloseKind.FAST if survivors == context.cohort else CloseKind.SLOW), survivors


def verify_commit(context: RoundContext, survivors: tuple[int, ...], message: bytes, *, sender: int) -> None:
    """Raises ProtocolViolation unless this is the sender's commit to this set.

    A well-signed commit to another set is proof of the sender's misbehaviour: keep the message.
    """
    commit = context.check_commit(message)
    if commit.index != sender:
        raise ProtocolViolation("a commit is in another member's name")
    if commit.survivors != survivors:
        raise ProtocolViolation(f"{context.members.org_ids[sender]} committed to another survivor set")


def share_commitments(context: RoundContext, envelopes: Iterable[bytes]) -> ShareCommitments:
    """What owners have committed to for this round, from the envelopes of their deposits.

    A reveal is checked with those that were sealed to its sender alone.
    """
    found = {}
    for envelope in envelopes:
        sealed = SealedShare.decode(Signed.decode(envelope).body)
        found[sealed.owner, sealed.holder] = sealed.commitments[context.round_offset]
    return found


@dataclass(frozen=True, slots=True)
class CheckedReveal:
    """One holder's shares by owner, each of them the one that its owner dealt."""

    holder: int
    shares: Mapping[int, bytes] = field(repr=False)


def verify_reveal(
    context: RoundContext,
    survivors: tuple[int, ...],
    message: bytes,
    *,
    sender: int,
    commitments: ShareCommitments,
) -> CheckedReveal:
    """Check each opened share against its owner's signed commitment: a wrong one is the sender's fault, provably.

    Raises ProtocolViolation; do not count the sender's reveal, ask other holders.
    """
    signed = Signed.decode(message)
    context.members.check_signature(signed, "reveal", sender)
    reveal = Reveal.decode(signed.body)
    name = context.members.org_ids[sender]
    if (reveal.context, reveal.index, reveal.members) != (context.hash, sender, len(context.members)):
        raise ProtocolViolation(f"{name} reveals for another round or in another member's name")
    if reveal.survivors != survivors:
        raise ProtocolViolation(f"{name} reveals for another survivor set")
    cohort = set(context.cohort)
    owners = [owner for owner in context.graph.holders(sender) if owner in cohort]
    if len(reveal.shares) != len(owners):
        raise ProtocolViolation(f"{name} reveals {len(reveal.shares)} shares, {len(owners)} are due")
    shares = {}
    for owner, opened in zip(owners, reveal.shares, strict=True):
        check_share(opened.share)
        place = (context.members.roster_hash, owner, sender, context.start.round)
        if owner in survivors:
            found = hashing.commit_shares(opened.sibling, hashing.commit_self_share(*place, opened.share))
        else:
            found = hashing.commit_shares(hashing.commit_escrow_share(*place, opened.share), opened.sibling)
        if found != commitments[owner, sender]:
            raise ProtocolViolation(f"{name} reveals a share of {context.members.org_ids[owner]} that was not dealt")
        shares[owner] = opened.share
    return CheckedReveal(sender, shares)
