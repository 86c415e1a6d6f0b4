"""Messages that close a round: the survivors' evidence, commits to their set, and the reveals that open the sum.

What a message means is known to common/secagg; when the round goes on is the driver's to decide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice

from accord.v1 import secure_aggregation_pb2 as pb
from common.clock import Clock
from common.errors import OutOfTurn
from common.secagg import RoundContext, verify_commit, verify_reveal
from common.states import RoundState
from coordinator.masked import commitments_to
from coordinator.proofs import kept_as_proof
from coordinator.rounds.model import MessageKind, ParticipationState, ProtocolMessage, Round
from coordinator.services.membership import is_stored, masked_round, participation_of
from coordinator.store.interface import Reader, Store


@dataclass(frozen=True, slots=True)
class Evidence:
    """What GetEvidence answers. commits: as many as a reveal takes, or none."""

    survivors: tuple[str, ...]
    is_fast: bool
    receipts: tuple[bytes, ...]
    commits: tuple[bytes, ...]


class Closing:
    """Keeps nothing: every answer is computed from the store. Methods block; callers use a thread."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def suffices(self, request: pb.GetEvidenceRequest, participant: str) -> bool:
        """Whether a member may reveal on what there is. Reads no message: many wait, and each asks often."""
        with self._store.read() as reader:
            round_, context = _unmasking(reader, request, participant)
            return _is_fast(round_) or _commits_needed(reader, round_, context) <= 0

    def evidence(self, request: pb.GetEvidenceRequest, participant: str) -> Evidence:
        with self._store.read() as reader:
            round_, context = _unmasking(reader, request, participant)
            survivors = set(round_.survivors)
            receipts = reader.receipts(round_.run, round_.number)
            commits: tuple[bytes, ...] = ()
            if not _is_fast(round_) and _commits_needed(reader, round_, context) <= 0:
                stored = reader.messages(round_.run, MessageKind.COMMIT, round_.number)
                commits = tuple(message.body for message in islice(stored, context.thresholds.commits))
        return Evidence(
            survivors=round_.survivors,
            is_fast=_is_fast(round_),
            receipts=tuple(receipt for name, receipt in receipts if name in survivors),
            commits=commits,
        )

    def commit(self, request: pb.CommitSurvivorsRequest, participant: str) -> bool:
        """Whether there are now as many as a reveal takes."""
        with self._store.read() as reader:
            round_, context = masked_round(reader, request.run, request.round, participant)
        sender = context.members.index_of(participant)
        proof = ProtocolMessage(round_.run, MessageKind.SECOND_COMMIT, round_.number, participant, request.commit)
        with kept_as_proof(self._store, self._clock, proof):
            verify_commit(context, context.members.indices_of(round_.survivors), request.commit, sender=sender)
        message = ProtocolMessage(round_.run, MessageKind.COMMIT, round_.number, participant, request.commit)
        self._keep(message, ParticipationState.COMMITTED)
        with self._store.read() as reader:
            return _commits_needed(reader, round_, context) <= 0

    def reveal(self, request: pb.RevealSharesRequest, participant: str) -> None:
        with self._store.read() as reader:
            round_, context = masked_round(reader, request.run, request.round, participant)
            commitments = commitments_to(reader, context, round_, participant)
        members = context.members
        survivors, sender = members.indices_of(round_.survivors), members.index_of(participant)
        proof = ProtocolMessage(round_.run, MessageKind.FALSE_REVEAL, round_.number, participant, request.reveal)
        with kept_as_proof(self._store, self._clock, proof):
            verify_reveal(context, survivors, request.reveal, sender=sender, commitments=commitments)
        message = ProtocolMessage(round_.run, MessageKind.REVEAL, round_.number, participant, request.reveal)
        self._keep(message, ParticipationState.REVEALED)

    def _keep(self, message: ProtocolMessage, state: ParticipationState) -> None:
        with self._store.write() as writer:
            round_ = writer.round(message.run, message.number)
            if round_.state is not RoundState.UNMASKING:
                if is_stored(writer, message):
                    return
                raise OutOfTurn(f"{round_.name} is {round_.state.value}: it takes no {message.kind.value}")
            if writer.add_message(message):
                participation = participation_of(writer, round_, message.sender)
                if not participation.state.is_out:
                    writer.put_participation(replace(participation, state=state, updated_at=self._clock.now()))


def _unmasking(reader: Reader, request: pb.GetEvidenceRequest, participant: str) -> tuple[Round, RoundContext]:
    round_, context = masked_round(reader, request.run, request.round, participant)
    if round_.state is not RoundState.UNMASKING:
        raise OutOfTurn(f"{round_.name} is {round_.state.value}: there is nothing to reveal")
    return round_, context


def _is_fast(round_: Round) -> bool:
    return set(round_.survivors) == set(round_.cohort)


def _commits_needed(reader: Reader, round_: Round, context: RoundContext) -> int:
    return context.thresholds.commits - reader.message_count(round_.run, MessageKind.COMMIT, round_.number)
