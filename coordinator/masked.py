"""The masking protocol's view of stored rows: a run's key epochs, rosters and round contexts, parsed once.

Nothing in here is secret; all of it can be made again from the store at any time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from typing import Final

from common.errors import OutOfTurn
from common.masking import key_epoch
from common.secagg import (
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


def roster_of(reader: Reader, run: Run, epoch: model.KeyEpoch) -> Roster:
    """The epoch's roster, checked when it was assembled; one value for all who ask. Raises OutOfTurn if it has none."""
    stored = reader.message(epoch.run, MessageKind.ROSTER, epoch.number, ROSTER_SENDER)
    if stored is None:
        raise OutOfTurn(f"runs/{epoch.run} key epoch {epoch.number} is {epoch.state.value}: it has no roster yet")
    return _roster(epoch_of(run, epoch), stored.body)


class _Contexts:
    """The rounds that were asked for last. Plan, roster and cohort follow from the key: a hit reads no roster."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: OrderedDict[tuple[KeyEpoch, bytes], RoundContext] = OrderedDict()
        self._turn = Lock()

    def get(self, epoch: KeyEpoch, start: bytes, roster: Callable[[], Roster]) -> RoundContext:
        key = (epoch, start)
        with self._turn:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        made = RoundContext.of(epoch, roster().members, Start.decode(start))
        with self._turn:
            self._found[key] = made
            while len(self._found) > self._most:
                self._found.popitem(last=False)
        return made


_CONTEXTS: Final = _Contexts(most=8)


def context_of(reader: Reader, run: Run, round_: Round) -> RoundContext:
    """The started round. Raises OutOfTurn before its cohort is chosen."""
    if not round_.start:
        raise OutOfTurn(f"{round_.name} is {round_.state.value}: its cohort is not chosen yet")
    epoch = reader.epoch(run.name, round_.epoch)
    return _CONTEXTS.get(epoch_of(run, epoch), round_.start, lambda: roster_of(reader, run, epoch))


def commitments_to(reader: Reader, context: RoundContext, round_: Round, holder: str) -> ShareCommitments:
    """What a member's reveal is checked against: what everybody committed to when they dealt it their shares."""
    envelopes = reader.share_envelopes(round_.run, round_.epoch, holder)
    return share_commitments(context, (found.envelope for found in envelopes))
