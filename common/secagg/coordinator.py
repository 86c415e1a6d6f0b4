"""The coordinator's part of a key epoch and of closing a round: checks and decisions, no secret anywhere.

Every function takes messages as they came and returns them checked; what to store, when to wait and whom to ask is
the caller's. Knows nothing of time, storage and of how a sum is opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from common.errors import MalformedMessage, ProtocolViolation, TooFewMembers
from common.secagg import hashing
from common.secagg.graph import holders, neighbours
from common.secagg.messages import Deposit, Ready, Reveal, SealedShare, Signed, Start
from common.secagg.plan import KeyEpoch, RoundKind
from common.secagg.roster import Members
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
    expected = holders(sender, len(members))
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
    """The signed envelopes that others have sealed to `holder`, in the order of their owners."""
    found = {
        deposit.owner: deposit.envelopes[holders(deposit.owner, len(members)).index(holder)]
        for deposit in deposits
        if deposit.owner in neighbours(holder, len(members))
    }
    return tuple(found[owner] for owner in sorted(found))


def check_ready(epoch: KeyEpoch, members: Members, message: bytes, *, sender: int) -> Ready:
    """What a member holds and escrows, well signed and complete. Raises ProtocolViolation."""
    signed = Signed.decode(message)
    members.check_signature(signed, "ready", sender)
    ready = Ready.decode(signed.body)
    if (ready.roster_hash, ready.index, ready.members) != (members.roster_hash, sender, len(members)):
        raise ProtocolViolation("a ready message is for another roster or in another member's name")
    if not set(ready.opened) <= set(holders(sender, len(members))) or sender not in ready.opened:
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

    Members with no Ready are out. While two members have no common key, the ones with most such pairs go: a liar who
    disagrees with everyone goes alone, and of a single bad pair both go, as nobody can tell which of them lied. Each
    that stays is held by at least t of those that stay.
    Raises TooFewMembers when fewer stay than must survive a round.
    """
    by_index = {ready.index: ready for ready in readies}
    thresholds = epoch.plan.thresholds(len(members))
    left_out = {index: "sent no Ready" for index in range(len(members)) if index not in by_index}
    bad = {index: set[int]() for index in by_index}
    unequal = []
    for low in sorted(by_index):
        for high in neighbours(low, len(members)):
            if high <= low or high not in by_index:
                continue
            agreement = _pair_agreement(by_index[low], by_index[high])
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
    usable = tuple(sorted(bad))
    weak = [index for index in usable if sum(index in by_index[holder].opened for holder in usable) < thresholds.shares]
    if weak or len(usable) < thresholds.survivors:
        reasons = "; ".join(f"{members.org_ids[index]} {why}" for index, why in sorted(left_out.items()))
        raise TooFewMembers(
            f"{len(usable)} of {len(members)} members can take part, {thresholds.survivors} must: {reasons}"
        )
    return Settlement(usable, left_out, tuple(unequal))


def _pair_agreement(low: Ready, high: Ready) -> bool | None:
    """True: same keys in every round. False: different keys. None: one of them does not hold the other."""
    if high.index not in low.opened or low.index not in high.opened:
        return None
    low_at, high_at = low.partners.index(high.index), high.partners.index(low.index)
    return all(
        mine[low_at] == theirs[high_at]
        for mine, theirs in zip(low.pair_commitments, high.pair_commitments, strict=True)
    )


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

    Raises TooFewMembers for a cohort below the floor, ProtocolViolation for a round outside the epoch.
    """
    listed = tuple(sorted(set(cohort)))
    floor = epoch.plan.thresholds(len(members)).survivors
    if len(listed) < floor:
        raise TooFewMembers(f"{len(listed)} members are ready, the round needs {floor}")
    start = Start(epoch.hash, members.roster_hash, round_number, kind, listed, len(members), model_hash)
    return RoundContext.of(epoch, members, start)


class CloseKind(Enum):
    """How a round's survivor set is agreed on."""

    FAST = "fast"
    SLOW = "slow"


def choose_close(context: RoundContext, uploaded: Iterable[int]) -> tuple[CloseKind, tuple[int, ...]]:
    """The way to close over those whose upload and receipt are complete, and the survivor set.

    FAST when the whole cohort uploaded: send all receipts. SLOW otherwise: send set and receipts, collect commits,
    send T of them. Store the answer before anyone is told: there is one survivor set a round, ever.
    Raises TooFewMembers below the floor.
    """
    survivors = tuple(sorted(set(uploaded)))
    floor = context.thresholds.survivors
    if len(survivors) < floor:
        raise TooFewMembers(f"{len(survivors)} updates have arrived, the round needs {floor}")
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


def share_commitments(context: RoundContext, deposits: Iterable[Deposit]) -> ShareCommitments:
    """What the cohort's owners have committed to for this round, from their deposits."""
    found = {}
    for deposit in deposits:
        if deposit.owner not in context.cohort:
            continue
        for envelope in deposit.envelopes:
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
    owners = [owner for owner in holders(sender, len(context.members)) if owner in context.cohort]
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
