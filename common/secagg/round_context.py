"""One round as both sides see it: who, under which plan, on which model; and the checks that follow from it.

The context hash enters every mask, receipt, commit and reveal: members who were told different things (another model,
another cohort, another plan) share no mask and accept none of each other's signatures, so Start needs no signature.
Knows no secret.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Self

from common.errors import ProtocolViolation, TooFewMembers
from common.secagg.encoding import Kind, Reader, Writer, bitmap
from common.secagg.graph import Graph
from common.secagg.hashing import digest, u32
from common.secagg.messages import Commit, Receipt, Signed, Start
from common.secagg.plan import KeyEpoch, Thresholds
from common.secagg.ring import VectorLayout
from common.secagg.roster import Members, graph_of


@dataclass(frozen=True, slots=True)
class ClosedGroup:
    """A metric group of which nothing is summed: it has `contributors` in the cohort, and `needed` it would take."""

    name: str
    contributors: int
    needed: int


@dataclass(frozen=True, slots=True)
class RoundContext:
    """A started round. Make it with `of`, which checks; `hash` is ctx of every derivation and signature."""

    epoch: KeyEpoch
    members: Members
    start: Start
    hash: bytes

    @classmethod
    def of(cls, epoch: KeyEpoch, members: Members, start: Start) -> Self:
        """Raises ProtocolViolation unless Start is for this epoch and roster and its cohort can be summed.

        It must reach the floor and, in a sparse graph, cover the ring: a member whose neighbours are all left out of
        the cohort would have its self mask alone.
        """
        epoch_hash = epoch.hash
        if start.epoch_hash != epoch_hash or start.roster_hash != members.roster_hash:
            raise ProtocolViolation("the round starts under another plan, key epoch or roster")
        epoch.check_round(start.round)
        if start.members != len(members):
            raise ProtocolViolation(f"the round names a roster of {start.members}, it has {len(members)}")
        floor = epoch.plan.thresholds(len(members)).survivors
        if len(start.cohort) < floor:
            raise ProtocolViolation(f"a cohort of {len(start.cohort)} is below the floor of {floor}")
        _check_cover(graph_of(epoch, members), start.cohort, "cohort")
        context_hash = digest(
            "round",
            members.roster_hash,
            epoch_hash,
            u32(start.round),
            bytes([start.kind]),
            bitmap(start.cohort, len(members)),
            start.model_hash,
        )
        return cls(epoch, members, start, context_hash)

    @property
    def cohort(self) -> tuple[int, ...]:
        return self.start.cohort

    @property
    def thresholds(self) -> Thresholds:
        return self.epoch.plan.thresholds(len(self.members))

    @property
    def graph(self) -> Graph:
        return graph_of(self.epoch, self.members)

    @property
    def layout(self) -> VectorLayout:
        return self.epoch.plan.layout(self.start.kind, self.start.round)

    @property
    def round_offset(self) -> int:
        """Place of the round in the epoch's lists."""
        return self.start.round - self.epoch.first_round

    @property
    def contributors_of_wide(self) -> int:
        """Contributors in the cohort from which on a metric group withstands dropouts.

        Where as many as may drop out after masking, all of them contributors, those that are left are still enough. So
        nothing has to be decided when the sum is opened, and no dropout closes what was open. A group to which every
        member contributes is always wide: the least survivors are never fewer than the least contributors.
        """
        thresholds = self.thresholds
        return thresholds.contributors + len(self.cohort) - thresholds.survivors

    @property
    def contributors_needed(self) -> int:
        """Contributors in the cohort from which on a metric group is summed: in a complete graph as many as the sum of
        a group must have, since there narrow groups can be masked once more; in a sparse one, where not every two
        contributors have a key in common, those of a wide group.
        """
        return self.thresholds.contributors if self.graph.sparse is None else self.contributors_of_wide

    @property
    def narrow_groups(self) -> tuple[str, ...]:
        """Open groups that a dropout might leave with too few. Each pair of their contributors masks these words once
        more, by keys that are never opened: the group's sum can be read if all of them survive, and is noise if not.
        """
        wide = self.contributors_of_wide
        return tuple(name for name in self.open_groups if len(self.contributors(name)) < wide)

    def contributors(self, group: str) -> tuple[int, ...]:
        """Members of the cohort that have declared a group, ascending."""
        return tuple(index for index in self.cohort if group in self.members.metric_groups[index])

    def lost_groups(self, survivors: Collection[int]) -> tuple[ClosedGroup, ...]:
        """Narrow groups of which these survivors leave nothing but noise, as a contributor is missing."""
        found = []
        for name in self.narrow_groups:
            declared = self.contributors(name)
            there = sum(index in survivors for index in declared)
            if there < len(declared):
                found.append(ClosedGroup(name, there, len(declared)))
        return tuple(found)

    def narrow_with(self, index: int) -> dict[int, tuple[str, ...]]:
        """By other member of the cohort the narrow groups to which both contribute."""
        own = [name for name in self.narrow_groups if name in self.members.metric_groups[index]]
        shared = {
            other: tuple(name for name in own if name in self.members.metric_groups[other])
            for other in self.cohort
            if other != index
        }
        return {other: names for other, names in shared.items() if names}

    @property
    def open_groups(self) -> tuple[str, ...]:
        """Metric groups whose contributors fill their words in this round; of every other there are only zeros.

        Follows from what the context hash covers: plan, roster with its declarations, cohort. Both sides ask here.
        """
        closed = {group.name for group in self.closed_groups}
        return tuple(group.name for group in self.epoch.plan.metric_groups if group.name not in closed)

    @property
    def closed_groups(self) -> tuple[ClosedGroup, ...]:
        """The others, with the reason."""
        declared, needed = self.members.metric_groups, self.contributors_needed
        counts = {
            group.name: sum(group.name in declared[index] for index in self.cohort)
            for group in self.epoch.plan.metric_groups
        }
        return tuple(ClosedGroup(name, count, needed) for name, count in counts.items() if count < needed)

    def groups_filled_by(self, index: int) -> tuple[str, ...]:
        """Open groups that a member has declared: the only ones whose words it may fill."""
        return tuple(name for name in self.open_groups if name in self.members.metric_groups[index])

    def check_survivors(self, survivors: Iterable[int]) -> tuple[int, ...]:
        """The set in ascending order.

        Raises ProtocolViolation: a name twice, outside the cohort, below the floor, not covering a sparse graph.
        """
        listed = tuple(survivors)
        found = tuple(sorted(set(listed)))
        if len(found) != len(listed):
            raise ProtocolViolation("the survivor set names a member twice")
        if not set(found) <= set(self.cohort):
            raise ProtocolViolation("the survivor set is not part of the cohort")
        floor = self.thresholds.survivors
        if len(found) < floor:
            raise ProtocolViolation(f"{len(found)} survivors are below the floor of {floor}")
        _check_cover(self.graph, found, "survivor set")
        return found

    def unopenable(self, present: Collection[int]) -> tuple[int, ...]:
        """Cohort members whose secrets would stay closed if all of `present`, and nobody else, revealed."""
        there, graph, threshold = set(present), self.graph, self.thresholds.shares
        return tuple(owner for owner in self.cohort if len(there.intersection(graph.holders(owner))) < threshold)

    def check_receipt(self, message: bytes) -> Receipt:
        """A receipt of a cohort member for this round. Raises ProtocolViolation."""
        signed = Signed.decode(message)
        receipt = Receipt.decode(signed.body)
        self._check_signed(signed, "upload", receipt.context, receipt.index)
        return receipt

    def check_receipts(self, survivors: tuple[int, ...], messages: Iterable[bytes]) -> tuple[Receipt, ...]:
        """Exactly one receipt for each survivor. Raises ProtocolViolation."""
        receipts = tuple(self.check_receipt(message) for message in messages)
        if sorted(receipt.index for receipt in receipts) != list(survivors):
            raise ProtocolViolation("the receipts are not one for each survivor")
        return receipts

    def check_commit(self, message: bytes) -> Commit:
        """A cohort member's commit in this round, to whatever set. Raises ProtocolViolation."""
        signed = Signed.decode(message)
        commit = Commit.decode(signed.body)
        self._check_signed(signed, "commit", commit.context, commit.index)
        if commit.members != len(self.members):
            raise ProtocolViolation("a commit names a roster of another size")
        return commit

    def check_quorum(self, survivors: tuple[int, ...], messages: Iterable[bytes]) -> None:
        """At least T commits of different members to exactly this set. Raises ProtocolViolation."""
        signers = set()
        for message in messages:
            commit = self.check_commit(message)
            if commit.survivors != survivors:
                raise ProtocolViolation(f"{self.members.org_ids[commit.index]} committed to another survivor set")
            signers.add(commit.index)
        if len(signers) < self.thresholds.commits:
            raise ProtocolViolation(
                f"{len(signers)} members committed to the survivor set, {self.thresholds.commits} must"
            )

    def _check_signed(self, signed: Signed, name: str, context: bytes, index: int) -> None:
        self.members.check_signature(signed, name, index)
        if context != self.hash:
            raise ProtocolViolation(f"{self.members.org_ids[index]} signed {name} for another round or context")
        if index not in self.cohort:
            raise ProtocolViolation(f"{self.members.org_ids[index]} is not in the round's cohort")

    def encode(self) -> bytes:
        writer = Writer(Kind.ROUND_CONTEXT)
        writer.blob(self.epoch.encode())
        writer.blob(self.members.encode())
        writer.blob(self.start.encode())
        return writer.done()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = Reader(data, Kind.ROUND_CONTEXT)
        epoch, members = KeyEpoch.decode(reader.blob()), Members.decode(reader.blob())
        start = Start.decode(reader.blob())
        reader.done()
        return cls.of(epoch, members, start)


def _check_cover(graph: Graph, present: tuple[int, ...], what: str) -> None:
    try:
        graph.check_cover(present)
    except TooFewMembers as error:
        raise ProtocolViolation(f"the {what} leaves members exposed: {error.message}") from error
