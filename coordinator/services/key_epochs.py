"""A key epoch's messages: each is checked on arrival and kept; a member gets the roster and what was sealed to it.

A deposit is kept in parts, each addressed to its holder, so that no call reads what does not concern its caller: the
deposits of a thousand members are hundreds of megabytes. When a step is over is the driver's to decide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import islice
from typing import Final

from accord.v1 import secure_aggregation_pb2 as pb
from common.clock import Clock
from common.errors import OutOfTurn, ProtocolViolation
from common.masking import pinned_members
from common.secagg import check_advertisement, check_deposit, check_ready
from common.secagg.roster import graph_of
from coordinator.masked import epoch_of, roster_of
from coordinator.rounds.model import EpochState, KeyEpoch, MessageKind, ProtocolMessage, Run, ShareEnvelope
from coordinator.services.membership import epoch_name, is_stored, require_epoch_member, run_of
from coordinator.standing import charter_of
from coordinator.store.interface import Reader, Store

# Of one to two kilobytes each; in memory for each stream.
ENVELOPES_AT_ONCE: Final = 32


class KeyEpochs:
    """Keeps nothing: every answer is computed from the store. Methods block; callers use a thread."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def advertise(self, request: pb.AdvertiseKeysRequest, participant: str) -> None:
        with self._store.read() as reader:
            run, epoch = self._epoch(reader, request.run, request.epoch, participant)
            verifier = pinned_members(charter_of(reader, run), now=self._clock.now())
        advertisement = check_advertisement(epoch_of(run, epoch), request.advertisement, verifier)
        if advertisement.org_id != participant:
            raise ProtocolViolation(f"{participant} advertises keys in the name of {advertisement.org_id}")
        message = ProtocolMessage(run.name, MessageKind.ADVERTISEMENT, epoch.number, participant, request.advertisement)
        self._keep(message, EpochState.ADVERTISING)

    def roster(self, request: pb.GetRosterRequest, participant: str) -> bytes:
        """The roster's bytes, the same object for all who ask at once."""
        with self._store.read() as reader:
            run, epoch = self._epoch(reader, request.run, request.epoch, participant)
            require_epoch_member(epoch, participant)
            return roster_of(reader, run, epoch).message

    def deposit(self, request: pb.DepositSharesRequest, participant: str) -> None:
        with self._store.read() as reader:
            run, epoch = self._epoch(reader, request.run, request.epoch, participant)
            require_epoch_member(epoch, participant)
            members = roster_of(reader, run, epoch).members
        masked, owner, content = epoch_of(run, epoch), members.index_of(participant), request.deposit
        deposit = check_deposit(masked, members, content, sender=owner)
        holders = members.names(graph_of(masked, members).holders(owner))
        body = hashlib.sha256(content).digest()
        message = ProtocolMessage(run.name, MessageKind.DEPOSIT, epoch.number, participant, body)
        self._keep(
            message,
            EpochState.SHARING,
            [
                ShareEnvelope(run.name, epoch.number, holder, participant, envelope)
                for holder, envelope in zip(holders, deposit.envelopes, strict=True)
            ],
        )

    def shares(self, request: pb.GetSharesRequest, participant: str, *, after: str) -> tuple[ShareEnvelope, ...]:
        """The next of those that others have sealed to the participant, in the order of their owners; none at the end.

        after: the last owner that was given, empty at first.
        """
        with self._store.read() as reader:
            run, epoch = self._epoch(reader, request.run, request.epoch, participant)
            require_epoch_member(epoch, participant)
            if epoch.state in (EpochState.ADVERTISING, EpochState.SHARING):
                raise OutOfTurn(f"{epoch_name(epoch)} is {epoch.state.value}: shares are not all dealt yet")
            found = reader.share_envelopes(run.name, epoch.number, participant, after=after)
            others = (envelope for envelope in found if envelope.owner != participant)
            return tuple(islice(others, ENVELOPES_AT_ONCE))

    def confirm(self, request: pb.ConfirmSharesRequest, participant: str) -> None:
        with self._store.read() as reader:
            run, epoch = self._epoch(reader, request.run, request.epoch, participant)
            require_epoch_member(epoch, participant)
            members = roster_of(reader, run, epoch).members
        check_ready(epoch_of(run, epoch), members, request.confirmation, sender=members.index_of(participant))
        message = ProtocolMessage(run.name, MessageKind.CONFIRMATION, epoch.number, participant, request.confirmation)
        self._keep(message, EpochState.CONFIRMING)

    def _epoch(self, reader: Reader, run_id: str, number: int, participant: str) -> tuple[Run, KeyEpoch]:
        run = run_of(reader, run_id, participant)
        return run, reader.epoch(run.name, number)

    def _keep(self, message: ProtocolMessage, expected: EpochState, envelopes: Sequence[ShareEnvelope] = ()) -> None:
        """Store a checked message once, with its envelopes. The first one stays, whatever comes later."""
        with self._store.write() as writer:
            epoch = writer.epoch(message.run, message.number)
            if epoch.state is expected:
                if writer.add_message(message):
                    writer.add_share_envelopes(envelopes)
            elif not is_stored(writer, message):
                raise OutOfTurn(f"{epoch_name(epoch)} is {epoch.state.value}, not {expected.value}")
