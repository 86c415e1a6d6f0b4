"""From a round's stored messages to what opens its sum: worked out anew whenever it is needed, and never stored.

The driver opens sums with it, and audits of finished rounds show it to members.
"""

from __future__ import annotations

from common.secagg import OpenedKeys, Ready, RoundContext, Unmasking, check_ready, open_keys, verify_reveal
from coordinator.masked import commitments_to, context_of, roster_of
from coordinator.rounds.model import MessageKind, Round, Run
from coordinator.store.interface import Reader


def open_unmasking(reader: Reader, run: Run, round_: Round) -> Unmasking:
    """The seeds of the masks that are left in the sum. Raises TooFewMembers or MemberAtFault."""
    context = context_of(reader, run, round_)
    survivors = context.members.indices_of(round_.survivors)
    return _open_keys(reader, run, round_, context, survivors).unmasking(context, survivors)


def opened_keys(reader: Reader, run: Run, round_: Round, context: RoundContext) -> OpenedKeys:
    """The keys that the round's members have revealed. Raises TooFewMembers or MemberAtFault."""
    return _open_keys(reader, run, round_, context, context.members.indices_of(round_.survivors))


def _open_keys(
    reader: Reader, run: Run, round_: Round, context: RoundContext, survivors: tuple[int, ...]
) -> OpenedKeys:
    roster = roster_of(reader, run, reader.epoch(run.name, round_.epoch))
    members = roster.members
    reveals = [
        verify_reveal(
            context,
            survivors,
            message.body,
            sender=members.index_of(message.sender),
            commitments=commitments_to(reader, context, round_, message.sender),
        )
        for message in reader.messages(run.name, MessageKind.REVEAL, round_.number)
    ]
    readies: dict[int, Ready] = {}
    if survivors != context.cohort:  # escrows are of those who dropped out
        cohort = set(round_.cohort)
        for message in reader.messages(run.name, MessageKind.CONFIRMATION, round_.epoch):
            if message.sender in cohort:
                sender = members.index_of(message.sender)
                ready = check_ready(context.epoch, members, message.body, sender=sender)
                readies[sender] = ready.of_round(context.round_offset)
    return open_keys(context, roster, survivors, reveals, readies)
