"""The masking protocol's view of stored rows: a run's key epochs, rosters and round contexts, parsed once.

Nothing in here is secret; all of it can be made again from the store at any time.
"""

from __future__ import annotations

from functools import lru_cache

from common.errors import OutOfTurn
from common.masking import key_epoch
from common.secagg import (
    Deposit,
    KeyEpoch,
    Roster,
    RoundContext,
    ShareCommitments,
    Start,
    read_roster,
    share_commitments,
)
from coordinator.rounds import model
from coordinator.rounds.model import MessageKind, Round, Run
from coordinator.standing import parse_plan
from coordinator.store.interface import Reader

ROSTER_SENDER = "coordinator"


@lru_cache(maxsize=32)
def _epoch(plan: bytes, digest: str, number: int, first_round: int) -> KeyEpoch:
    return key_epoch(parse_plan(plan), bytes.fromhex(digest), number=number, first_round=first_round)


def epoch_of(run: Run, epoch: model.KeyEpoch) -> KeyEpoch:
    """The epoch as the masking protocol names it."""
    return _epoch(run.plan, run.plan_digest, epoch.number, epoch.first_round)


@lru_cache(maxsize=8)
def _roster(epoch: KeyEpoch, message: bytes) -> Roster:
    return read_roster(epoch, message)


def roster_message(reader: Reader, epoch: model.KeyEpoch) -> bytes:
    """The roster's bytes. Raises OutOfTurn while the epoch has none."""
    stored = reader.messages(epoch.run, MessageKind.ROSTER, epoch.number)
    if not stored:
        raise OutOfTurn(f"runs/{epoch.run} key epoch {epoch.number} is {epoch.state.value}: it has no roster yet")
    return stored[0].body


def roster_of(reader: Reader, run: Run, epoch: model.KeyEpoch) -> Roster:
    """The epoch's roster, checked when it was assembled. Raises OutOfTurn while the epoch has none."""
    return _roster(epoch_of(run, epoch), roster_message(reader, epoch))


@lru_cache(maxsize=8)
def _context(epoch: KeyEpoch, roster: Roster, start: bytes) -> RoundContext:
    return RoundContext.of(epoch, roster.members, Start.decode(start))


def context_of(reader: Reader, run: Run, round_: Round) -> RoundContext:
    """The started round. Raises OutOfTurn before its cohort is chosen."""
    if not round_.start:
        raise OutOfTurn(f"{round_.name} is {round_.state.value}: its cohort is not chosen yet")
    epoch = reader.epoch(run.name, round_.epoch)
    return _context(epoch_of(run, epoch), roster_of(reader, run, epoch), round_.start)


@lru_cache(maxsize=4)
def _commitments(context: RoundContext, deposits: tuple[bytes, ...]) -> ShareCommitments:
    return share_commitments(context, (Deposit.decode(deposit) for deposit in deposits))


def commitments_of(reader: Reader, context: RoundContext, round_: Round) -> ShareCommitments:
    """What the cohort's members committed to when they dealt their shares."""
    deposits = reader.messages(round_.run, MessageKind.DEPOSIT, round_.epoch)
    return _commitments(context, tuple(message.body for message in deposits))
