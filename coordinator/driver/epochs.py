"""Steps of a key epoch: closes advertising, sharing and confirming; the masks' keys are made beside the training."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from common.errors import AccordError, PlanInvalid, ProtocolViolation, TooFewMembers
from common.masking import pinned_members
from common.secagg import assemble_roster, check_ready, settle_epoch
from common.states import RoundState
from coordinator.driver.work import View, Work, audit
from coordinator.masked import ROSTER_SENDER, epoch_of, roster_of
from coordinator.rounds.decisions import Close, Fail, close_key_step, deadline_of
from coordinator.rounds.events import (
    EpochClosed,
    EpochEvent,
    EpochFailed,
    KeysAdvertised,
    SharesConfirmed,
    SharesDeposited,
)
from coordinator.rounds.lifecycle import advance_epoch
from coordinator.rounds.model import EpochState, KeyEpoch, MessageKind, ProtocolMessage
from coordinator.standing import charter_of
from coordinator.store.interface import Reader, Writer

# A round whose keys cannot be made in so many tries is over; the run goes on with the next.
MOST_TRIES: Final = 3

_STEP_OF: Final = {
    EpochState.ADVERTISING: ("advertising keys", MessageKind.ADVERTISEMENT),
    EpochState.SHARING: ("sharing keys", MessageKind.DEPOSIT),
    EpochState.CONFIRMING: ("confirming keys", MessageKind.CONFIRMATION),
}


def open_epoch(writer: Writer, work: Work, view: View, *, first_round: int) -> None:
    """Begin a key epoch, and close the one before."""
    run = writer.run(view.run.name)
    if run.latest_epoch:
        previous = writer.epoch(run.name, run.latest_epoch)
        if not previous.state.is_over:
            writer.update_epoch(advance_epoch(previous, EpochClosed(view.now, "another key epoch takes over")))
    epoch = KeyEpoch(
        run=run.name,
        number=run.latest_epoch + 1,
        state=EpochState.ADVERTISING,
        first_round=first_round,
        rounds=view.plan.masking.rounds_per_epoch,
        phase_started_at=view.now,
        deadline=deadline_of(view.plan.phases.key_setup, view.now),
    )
    writer.add_epoch(epoch)
    writer.update_run(replace(run, latest_epoch=epoch.number, version=run.version + 1))


def needs_epoch(view: View, round_number: int) -> bool:
    """Whether a round has no epoch, ready or in the making, that covers it."""
    return view.epoch is None or view.epoch.state.is_over or not view.epoch.covers(round_number)


def step_epoch(work: Work, view: View) -> bool:
    """Close the epoch's present step if it is due. True if anything was changed."""
    epoch, round_ = view.epoch, view.round
    if epoch is None or round_ is None or not epoch.state.is_setting_up:
        return False
    step, kind = _STEP_OF[epoch.state]
    with work.store.read() as reader:
        done = reader.message_senders(epoch.run, kind, epoch.number)
        decision = close_key_step(epoch, view.plan, step=step, expected=_expected(view, epoch), done=done, now=view.now)
        event = _event(reader, work, view, epoch, decision)
    if event is None:
        return False
    found, roster = event
    with work.store.write() as writer:
        if roster is not None:
            writer.add_message(ProtocolMessage(epoch.run, MessageKind.ROSTER, epoch.number, ROSTER_SENDER, roster))
        writer.update_epoch(advance_epoch(epoch, found))
        _audit(work, writer, epoch, found)
    return True


def _expected(view: View, epoch: KeyEpoch) -> set[str]:
    """Whom a step waits for: everybody who joined, until the round has shown who is there."""
    there = set(view.joined)
    if view.round is not None and view.round.state is not RoundState.FORMING:
        there &= {p.participant for p in view.participations if not p.state.is_out}
    return there if epoch.state is EpochState.ADVERTISING else there & set(epoch.members)


def _event(
    reader: Reader, work: Work, view: View, epoch: KeyEpoch, decision: Close | Fail | None
) -> tuple[EpochEvent, bytes | None] | None:
    """What the decision means for the epoch, and the roster if it has just come to be."""
    if decision is None:
        return None
    if isinstance(decision, Fail):
        return EpochFailed(view.now, decision.reason, decision.message), None
    deadline = deadline_of(view.plan.phases.key_setup, view.now)
    try:
        match epoch.state:
            case EpochState.ADVERTISING:
                roster = _assemble(reader, view, epoch)
                return KeysAdvertised(view.now, deadline, decision.participants), roster
            case EpochState.SHARING:
                return SharesDeposited(view.now, deadline), None
            case _:
                return SharesConfirmed(view.now, _usable(reader, view, epoch)), None
    except (ProtocolViolation, PlanInvalid, TooFewMembers) as error:
        return EpochFailed(view.now, _reason(error), error.message), None


def _assemble(reader: Reader, view: View, epoch: KeyEpoch) -> bytes:
    advertised = reader.messages(epoch.run, MessageKind.ADVERTISEMENT, epoch.number)
    verifier = pinned_members(charter_of(reader, view.run), now=view.now)
    return assemble_roster(epoch_of(view.run, epoch), (message.body for message in advertised), verifier).message


def _usable(reader: Reader, view: View, epoch: KeyEpoch) -> tuple[str, ...]:
    masked = epoch_of(view.run, epoch)
    members = roster_of(reader, view.run, epoch).members
    confirmations = reader.messages(epoch.run, MessageKind.CONFIRMATION, epoch.number)
    readies = [
        check_ready(masked, members, message.body, sender=members.index_of(message.sender)) for message in confirmations
    ]
    return members.names(settle_epoch(masked, members, readies).usable)


def _reason(error: AccordError) -> str:
    return type(error).reason


def _audit(work: Work, writer: Writer, epoch: KeyEpoch, event: EpochEvent) -> None:
    subject = f"runs/{epoch.run}/epochs/{epoch.number}"
    match event:
        case SharesConfirmed(_, usable):
            audit(work, writer, "key_epoch_ready", subject, members=epoch.members, usable=usable)
        case EpochFailed(_, reason, message):
            audit(work, writer, "key_epoch_failed", subject, reason=reason, message=message)
        case _:
            return
