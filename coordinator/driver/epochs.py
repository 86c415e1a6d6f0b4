"""Steps of a key epoch: closes advertising, sharing and confirming; the masks' keys are made beside the training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from common.errors import AccordError, PlanInvalid, ProtocolViolation, TooFewMembers
from common.masking import pinned_members
from common.secagg import assemble_roster, check_ready, settle_epoch
from coordinator.driver.work import View, Work, audit
from coordinator.masked import ROSTER_SENDER, epoch_of, roster_of
from coordinator.rounds.decisions import Close, Fail, close_key_step, deadline_of, key_step_expects
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


@dataclass(frozen=True, slots=True)
class _Found:
    """What a step's messages come to. roster: if it has just come to be. details: for the audit log alone."""

    event: EpochEvent
    roster: bytes | None = None
    details: Mapping[str, object] = field(default_factory=dict)


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
        found = _find(reader, view, epoch, decision)
    if found is None:
        return False
    with work.store.write() as writer:
        if found.roster is not None:
            message = ProtocolMessage(epoch.run, MessageKind.ROSTER, epoch.number, ROSTER_SENDER, found.roster)
            writer.add_message(message)
        writer.update_epoch(advance_epoch(epoch, found.event))
        _audit(work, writer, epoch, found)
    return True


def _expected(view: View, epoch: KeyEpoch) -> set[str]:
    return key_step_expects(epoch, view.round, joined=view.joined, participations=view.participations)


def _find(reader: Reader, view: View, epoch: KeyEpoch, decision: Close | Fail | None) -> _Found | None:
    """What the decision means for the epoch."""
    if decision is None:
        return None
    if isinstance(decision, Fail):
        return _Found(EpochFailed(view.now, decision.reason, decision.message))
    deadline = deadline_of(view.plan.phases.key_setup, view.now)
    try:
        match epoch.state:
            case EpochState.ADVERTISING:
                roster = _assemble(reader, view, epoch)
                return _Found(KeysAdvertised(view.now, deadline, decision.participants), roster)
            case EpochState.SHARING:
                return _Found(SharesDeposited(view.now, deadline))
            case _:
                return _settle(reader, view, epoch)
    except (ProtocolViolation, PlanInvalid, TooFewMembers) as error:
        return _Found(EpochFailed(view.now, _reason(error), error.message))


def _assemble(reader: Reader, view: View, epoch: KeyEpoch) -> bytes:
    advertised = reader.messages(epoch.run, MessageKind.ADVERTISEMENT, epoch.number)
    verifier = pinned_members(charter_of(reader, view.run), now=view.now)
    return assemble_roster(epoch_of(view.run, epoch), (message.body for message in advertised), verifier).message


def _settle(reader: Reader, view: View, epoch: KeyEpoch) -> _Found:
    """Who can mask in this epoch's rounds; the others are named with the reason why they cannot."""
    masked = epoch_of(view.run, epoch)
    members = roster_of(reader, view.run, epoch).members
    readies = (
        check_ready(masked, members, message.body, sender=members.index_of(message.sender))
        for message in reader.messages(epoch.run, MessageKind.CONFIRMATION, epoch.number)
    )
    settled = settle_epoch(masked, members, readies)
    left_out = {members.org_ids[index]: why for index, why in settled.left_out.items()}
    unequal = [members.names(pair) for pair in settled.unequal_pairs]
    usable = members.names(settled.usable)
    return _Found(SharesConfirmed(view.now, usable), details={"left_out": left_out, "unequal_pairs": unequal})


def _reason(error: AccordError) -> str:
    return type(error).reason


def _audit(work: Work, writer: Writer, epoch: KeyEpoch, found: _Found) -> None:
    subject = f"runs/{epoch.run}/epochs/{epoch.number}"
    match found.event:
        case SharesConfirmed(_, usable):
            audit(work, writer, "key_epoch_ready", subject, members=epoch.members, usable=usable, **found.details)
        case EpochFailed(_, reason, message):
            audit(work, writer, "key_epoch_failed", subject, reason=reason, message=message)
        case _:
            return
