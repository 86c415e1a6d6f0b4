"""Reads from the store where each participant stands in each run: what assignments and permissions are made from."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from common.charter import Charter
from common.errors import NotInCohort
from common.plan import Plan
from common.states import RoundState, RunState
from coordinator.rounds.assignments import Standing
from coordinator.rounds.model import EpochState, KeyEpoch, MessageKind, Participation, Round, Run, RunMember
from coordinator.store.interface import Reader

# How long after its end a run is still told to its members, so that a site that was away learns of it.
# As long as a certificate lasts: who was away for longer enrols anew.
FINISHED_RUN_IS_TOLD: Final = timedelta(days=30)
_OPEN_RUNS: Final = (RunState.CREATED, RunState.RUNNING, RunState.PAUSED)
EPOCH_KINDS: Final = {
    EpochState.ADVERTISING: MessageKind.ADVERTISEMENT,
    EpochState.SHARING: MessageKind.DEPOSIT,
    EpochState.CONFIRMING: MessageKind.CONFIRMATION,
}


@lru_cache(maxsize=64)
def parse_plan(content: bytes) -> Plan:
    """A plan's bytes, parsed once."""
    return Plan.from_bytes(content)


@lru_cache(maxsize=16)
def parse_charter(content: bytes) -> Charter:
    """A charter's bytes, parsed once."""
    return Charter.from_bytes(content)


def charter_of(reader: Reader, run: Run) -> Charter:
    """The charter under which the run was created."""
    return parse_charter(reader.charter_by_digest(run.charter_digest))


def require_charter_member(reader: Reader, run: Run, participant: str) -> None:
    """Raises NotInCohort unless the run's charter names the participant."""
    if participant not in charter_of(reader, run).member_ids:
        raise NotInCohort(f"the charter of runs/{run.name} does not name {participant}; ask the federation's operator")


def require_member(reader: Reader, run: Run, participant: str) -> RunMember:
    """Raises NotInCohort unless the participant has joined the run."""
    member = reader.run_member(run.name, participant)
    if member is None or not member.joined:
        raise NotInCohort(f"{participant} has not joined runs/{run.name}")
    return member


def standings(reader: Reader, participant: str, *, now: datetime) -> tuple[Standing, ...]:
    """Where the participant stands in every run that concerns it."""
    runs = [*reader.runs(states=_OPEN_RUNS).rows, *reader.runs_ended_after(now - FINISHED_RUN_IS_TOLD)]
    return tuple(
        standing_in(reader, run, participant) for run in runs if participant in charter_of(reader, run).member_ids
    )


def standing_in(reader: Reader, run: Run, participant: str) -> Standing:
    """Where the participant stands in one run."""
    member = reader.run_member(run.name, participant)
    if member is None or not member.joined:
        return Standing(participant, run, member, None, None, None, None, frozenset())
    round_, previous = _rounds(reader, run)
    if run.state.is_over:
        return Standing(participant, run, member, None, previous, None, None, frozenset())
    epoch = reader.epoch(run.name, run.latest_epoch) if run.latest_epoch else None
    participation = _participation(reader, round_, participant)
    sent = _sent(reader, round_, epoch, participant)
    return Standing(participant, run, member, round_, previous, epoch, participation, sent)


def _rounds(reader: Reader, run: Run) -> tuple[Round | None, Round | None]:
    """The open round and the one before it, or None and the newest round if that is over."""
    if run.latest_round == 0:
        return None, None
    newest = reader.round(run.name, run.latest_round)
    if newest.state.is_over:
        return None, newest
    return newest, reader.round(run.name, newest.number - 1) if newest.number > 1 else None


def _participation(reader: Reader, round_: Round | None, participant: str) -> Participation | None:
    if round_ is None:
        return None
    return reader.participation(round_.run, round_.number, participant)


def _sent(reader: Reader, round_: Round | None, epoch: KeyEpoch | None, participant: str) -> frozenset[MessageKind]:
    """Which messages of the present step are there already; other steps' do not matter for an assignment."""
    sent: set[MessageKind] = set()
    if epoch is not None and epoch.state in EPOCH_KINDS:
        kind = EPOCH_KINDS[epoch.state]
        if reader.has_message(epoch.run, kind, epoch.number, participant):
            sent.add(kind)
    if (
        round_ is not None
        and round_.state is RoundState.UNMASKING
        and reader.has_message(round_.run, MessageKind.REVEAL, round_.number, participant)
    ):
        sent.add(MessageKind.REVEAL)
    return frozenset(sent)
