"""From a round's stored messages to what opens its sum: worked out anew whenever it is needed, and never stored.

The driver opens sums with it, and audits of finished rounds show it to members.
"""

from __future__ import annotations

from common.secagg import OpenedKeys, RoundContext, Unmasking, check_ready, open_keys, verify_reveal
from coordinator.masked import commitments_of, context_of, roster_of
from coordinator.rounds.model import MessageKind, Round, Run
from coordinator.store.interface import Reader


def open_unmasking(reader: Reader, run: Run, round_: Round) -> Unmasking:
    """The seeds of the masks that are left in the sum. Raises TooFewMembers or MemberAtFault."""
    context = context_of(reader, run, round_)
    survivors = context.members.indices_of(round_.survivors)
    return _open_keys(reader, run, round_, context, survivors).unmasking(context, survivors)


def opened_keys(reader: Reader, run: Run, round_: Round) -> OpenedKeys:
    """The keys that the round's members have revealed. Raises TooFewMembers or MemberAtFault."""
    context = context_of(reader, run, round_)
    return _open_keys(reader, run, round_, context, context.members.indices_of(round_.survivors))


def _open_keys(
    reader: Reader, run: Run, round_: Round, context: RoundContext, survivors: tuple[int, ...]
) -> OpenedKeys:
    roster = roster_of(reader, run, reader.epoch(run.name, round_.epoch))
    members = roster.members
    commitments = commitments_of(reader, context, round_)
    reveals = [
        verify_reveal(
            context, survivors, message.body, sender=members.index_of(message.sender), commitments=commitments
        )
        for message in reader.messages(run.name, MessageKind.REVEAL, round_.number)
    ]
    readies = {
        members.index_of(sender): check_ready(context.epoch, members, body, sender=members.index_of(sender))
        for sender, body in ready_messages(reader, round_).items()
    }
    return open_keys(context, roster, survivors, reveals, readies)


def ready_messages(reader: Reader, round_: Round) -> dict[str, bytes]:
    """What the cohort's members hold and have escrowed, as they signed it, by name."""
    messages = reader.messages(round_.run, MessageKind.CONFIRMATION, round_.epoch)
    return {message.sender: message.body for message in messages if message.sender in round_.cohort}
