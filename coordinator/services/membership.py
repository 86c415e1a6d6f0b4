"""What a call of the masking protocol may concern: the caller's run, key epoch or round, and its place in it."""

from __future__ import annotations

from common import identifiers
from common.errors import AlreadyExists, NotInCohort, OutOfTurn
from common.secagg import RoundContext
from common.states import RoundState
from coordinator.masked import context_of
from coordinator.rounds.model import EpochState, KeyEpoch, Participation, ProtocolMessage, Round, Run
from coordinator.standing import require_member
from coordinator.store.interface import Reader


def run_of(reader: Reader, run_id: str, participant: str) -> Run:
    """Raises NotFound, or NotInCohort unless the participant has joined the run."""
    run = reader.run(identifiers.parse_run_id(run_id, field="run"))
    require_member(reader, run, participant)
    return run


def epoch_name(epoch: KeyEpoch) -> str:
    return f"runs/{epoch.run} key epoch {epoch.number}"


def require_epoch_member(epoch: KeyEpoch, participant: str) -> None:
    """Raises OutOfTurn before the epoch has members, NotInCohort unless the participant is one of them."""
    if epoch.state is EpochState.ADVERTISING:
        raise OutOfTurn(f"{epoch_name(epoch)} is still {epoch.state.value}")
    if participant not in epoch.members:
        raise NotInCohort(f"{participant} has no keys in {epoch_name(epoch)}")


def masked_round(reader: Reader, run_id: str, number: int, participant: str) -> tuple[Round, RoundContext]:
    """A started round of the participant's. Raises OutOfTurn before its cohort is chosen, NotInCohort outside it."""
    run = run_of(reader, run_id, participant)
    round_ = reader.round(run.name, number)
    if round_.state is RoundState.TRAINING or not round_.cohort:
        raise OutOfTurn(f"{round_.name} is {round_.state.value}: its cohort is not chosen")
    if participant not in round_.cohort:
        raise NotInCohort(f"{participant} is not in the cohort of {round_.name}")
    return round_, context_of(reader, run, round_)


def participation_of(reader: Reader, round_: Round, participant: str) -> Participation:
    """Raises NotInCohort if the participant is not in the round."""
    found = reader.participation(round_.run, round_.number, participant)
    if found is None:
        raise NotInCohort(f"{participant} is not in {round_.name}")
    return found


def participation_in(reader: Reader, round_: Round, participant: str) -> Participation:
    """The same. Raises OutOfTurn for one that has said that it is out: what the round goes on from stays."""
    participation = participation_of(reader, round_, participant)
    if participation.state.is_out:
        raise OutOfTurn(f"{participant} has declared itself out of {round_.name}")
    return participation


def is_stored(reader: Reader, message: ProtocolMessage) -> bool:
    """Whether this very message is there. Raises AlreadyExists if another of the sender's is."""
    stored = reader.message(message.run, message.kind, message.number, message.sender)
    if stored is not None and stored.body != message.body:
        raise AlreadyExists(f"{message.sender} has sent another {message.kind.value} before")
    return stored is not None
