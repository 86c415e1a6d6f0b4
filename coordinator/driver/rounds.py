"""Steps of a round: closes each phase when it is due, with those who are in it, or fails the round with the reason."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta
from typing import Final

from common.errors import (
    AccordError,
    CertificateRevoked,
    MemberAtFault,
    TooFewMembers,
)
from common.masking import MASKED_KIND, model_hash
from common.secagg import choose_close, make_start
from common.states import RoundState
from coordinator.driver.aggregating import step_aggregating
from coordinator.driver.epochs import MOST_TRIES, needs_epoch, open_epoch
from coordinator.driver.work import TRY_AGAIN, View, Work, audit, phase_ended, round_ended
from coordinator.masked import context_of, epoch_of, roster_of
from coordinator.rounds.decisions import (
    Close,
    Extend,
    Fail,
    MakeKeys,
    close_collecting,
    close_forming,
    close_training,
    deadline_of,
)
from coordinator.rounds.events import (
    CohortChosen,
    DeadlineExtended,
    Opened,
    RoundFailed,
    SharesRevealed,
    SurvivorsBound,
)
from coordinator.rounds.lifecycle import advance_round
from coordinator.rounds.model import (
    EpochState,
    MessageKind,
    ParticipantState,
    Participation,
    ParticipationState,
    Round,
    RunMember,
)
from coordinator.store.interface import Writer
from coordinator.unmasking import open_unmasking

KEYS_NOT_MADE: Final = "KEYS_NOT_MADE"
KEY_STEPS: Final = 3  # advertising, sharing, confirming
DROPPED_BY_WINDOW: Final = "WINDOW_PASSED"
DROPPED_WITHOUT_KEYS: Final = "NO_MASKING_KEYS"
DROPPED_ABSENT: Final = "ABSENT"
DROPPED_REVOKED: Final = CertificateRevoked.reason
DROPPED_LEFT: Final = "LEFT_RUN"


def step_round(work: Work, view: View) -> bool:
    """Close the round's present phase if it is due. True if anything was changed."""
    if view.round is None:
        return False
    steps = {
        RoundState.FORMING: _step_forming,
        RoundState.TRAINING: _step_training,
        RoundState.COLLECTING: _step_collecting,
        RoundState.UNMASKING: _step_unmasking,
        RoundState.AGGREGATING: step_aggregating,
    }
    try:
        return _drop_leavers(work, view, view.round) or steps[view.round.state](work, view, view.round)
    except TRY_AGAIN:
        raise
    except MemberAtFault as error:
        _expel(work, view, view.round, error)
        return True
    except AccordError as error:
        _fail(work, view, view.round, type(error).reason, error.message)
        return True


def _drop_leavers(work: Work, view: View, round_: Round) -> bool:
    """Nobody waits for those who have left the run or were put out of the federation since the round began.

    An update that is in already stays in the sum. True if anybody was dropped.
    """
    waited_for = (ParticipationState.PRESENT, ParticipationState.PREPARED)
    if round_.state not in (RoundState.FORMING, RoundState.TRAINING, RoundState.COLLECTING):
        return False
    if all(p.participant in view.joined for p in view.participations if p.state in waited_for):
        return False
    with work.store.write() as writer:
        members = {member.participant: member for member in writer.run_members(round_.run)}
        for p in writer.participations(round_.run, round_.number):
            if p.participant in view.joined or p.state not in waited_for:
                continue
            participant, member = writer.participant(p.participant), members[p.participant]
            if participant.state is ParticipantState.REVOKED:
                _drop(work, view, writer, p, DROPPED_REVOKED, f"was revoked: {participant.revoke_reason}")
            else:
                _drop(work, view, writer, p, DROPPED_LEFT, f"has left the run: {member.reason} {member.message}")
    return True


# --- forming and training ---------------------------------------------------------------------------------------


def _step_forming(work: Work, view: View, round_: Round) -> bool:
    decision = close_forming(round_, view.plan, joined=view.joined, participations=view.participations, now=view.now)
    if decision is None:
        return _renew_keys(work, view, round_)
    if isinstance(decision, Fail):
        _fail(work, view, round_, decision.reason, decision.message)
        return True
    newcomers = (
        set(decision.participants) - set(view.epoch.usable)
        if view.epoch is not None and view.epoch.state is EpochState.READY
        else set()
    )
    with work.store.write() as writer:
        if newcomers:
            open_epoch(writer, work, view, first_round=round_.number)
        opened = advance_round(round_, Opened(view.now, deadline_of(view.plan.phases.training, view.now)))
        writer.update_round(opened)
        audit(work, writer, "training_opened", round_.name, present=decision.participants)
    phase_ended(work, round_, opened)
    return True


def _step_training(work: Work, view: View, round_: Round) -> bool:
    if _renew_keys(work, view, round_):
        return True
    ready = view.epoch if view.epoch is not None and view.epoch.state is EpochState.READY else None
    floor = 0
    if ready is not None:
        floor = epoch_of(view.run, ready).plan.thresholds(len(ready.members)).survivors
    decision = close_training(
        round_, view.plan, epoch=ready, floor=floor, participations=view.participations, now=view.now
    )
    if isinstance(decision, MakeKeys):
        return _make_keys_again(work, view, round_)
    if decision is None:
        return False
    if isinstance(decision, Fail) or ready is None:
        failed = decision if isinstance(decision, Fail) else Fail(KEYS_NOT_MADE, "no masking keys were ready")
        _fail(work, view, round_, failed.reason, failed.message)
        return True
    with work.store.read() as reader:
        members = roster_of(reader, view.run, ready).members
    try:
        context = make_start(
            epoch_of(view.run, ready),
            members,
            round_number=round_.number,
            kind=MASKED_KIND[round_.kind],
            cohort=[members.index_of(name) for name in decision.participants],
            model_hash=model_hash(view.plan, adapter=round_.base_adapter, instruction_set=round_.instruction_set),
        )
    except TooFewMembers as error:
        return _make_keys_for_the_prepared(work, view, round_, error)
    with work.store.write() as writer:
        chosen = advance_round(
            round_,
            CohortChosen(
                view.now,
                deadline_of(view.plan.phases.collecting, view.now),
                ready.number,
                decision.participants,
                context.closed_groups,
                context.start.encode(),
            ),
        )
        writer.update_round(chosen)
        for p in view.participations:
            if p.participant not in decision.participants and not p.state.is_out:
                is_prepared = p.state is ParticipationState.PREPARED
                reason = DROPPED_WITHOUT_KEYS if is_prepared else DROPPED_BY_WINDOW
                message = "has no masking keys in this epoch" if is_prepared else "was not ready when training closed"
                _drop(work, view, writer, p, reason, message)
        for name in sorted(set(view.joined) - {p.participant for p in view.participations}):
            absent = Participation(round_.run, round_.number, name, ParticipationState.PRESENT, view.now)
            _drop(work, view, writer, absent, DROPPED_ABSENT, "did not ask for work before training closed")
        audit(
            work,
            writer,
            "cohort_chosen",
            round_.name,
            cohort=decision.participants,
            epoch=ready.number,
            closed_groups=tuple(group.name for group in context.closed_groups),
        )
    phase_ended(work, round_, chosen)
    return True


def _renew_keys(work: Work, view: View, round_: Round) -> bool:
    """Try key set-up again where it has failed; give the round up when it fails again and again."""
    if not needs_epoch(view, round_.number):
        return False
    epoch = view.epoch
    if epoch is not None and epoch.state is EpochState.FAILED and _tries(work, view, round_) >= MOST_TRIES:
        _fail(work, view, round_, KEYS_NOT_MADE, f"{MOST_TRIES} key set-ups have failed, the last: {epoch.message}")
        return True
    with work.store.write() as writer:
        open_epoch(writer, work, view, first_round=round_.number)
    return True


def _make_keys_again(work: Work, view: View, round_: Round) -> bool:
    """Another key epoch for those who are there; not for ever, as each of them may lose somebody else."""
    if _epochs_begun(work, view, round_) >= MOST_TRIES:
        return False
    with work.store.write() as writer:
        open_epoch(writer, work, view, first_round=round_.number)
    return True


def _make_keys_for_the_prepared(work: Work, view: View, round_: Round, error: TooFewMembers) -> bool:
    """Another key epoch where enough are prepared, and those who are not leave gaps in a sparse graph's ring.

    Members would refuse the cohort: in these keys some could be cut off from the others. Training is over for who is
    not prepared, and the round stays open for as long as the keys may take; a ring of its cohort alone has no gaps.
    Raises TooFewMembers where that has been tried often enough.
    """
    if _epochs_begun(work, view, round_) >= MOST_TRIES:
        raise TooFewMembers(f"{error.message}; {MOST_TRIES} key set-ups were made for this round") from error
    with work.store.write() as writer:
        for p in view.participations:
            if p.state is ParticipationState.PRESENT:
                _drop(work, view, writer, p, DROPPED_BY_WINDOW, "was not ready when training closed")
        setup = view.plan.phases.key_setup
        deadline = max(round_.deadline, view.now + KEY_STEPS * timedelta(seconds=setup.window_seconds))
        writer.update_round(advance_round(round_, DeadlineExtended(view.now, deadline)))
        open_epoch(writer, work, view, first_round=round_.number)
        audit(work, writer, "keys_made_again", round_.name, message=error.message)
    return True


def _epochs_begun(work: Work, view: View, round_: Round) -> int:
    """How many key epochs in a row were begun for this very round."""
    with work.store.read() as reader:
        epochs = (reader.epoch(view.run.name, number) for number in range(view.run.latest_epoch, 0, -1))
        return sum(1 for _ in itertools.takewhile(lambda epoch: epoch.first_round == round_.number, epochs))


def _tries(work: Work, view: View, round_: Round) -> int:
    """How many key epochs were begun for this very round and failed."""
    tries = 0
    with work.store.read() as reader:
        for number in range(view.run.latest_epoch, 0, -1):
            epoch = reader.epoch(view.run.name, number)
            if epoch.first_round != round_.number or epoch.state is not EpochState.FAILED:
                break
            tries += 1
    return tries


# --- collecting and unmasking -----------------------------------------------------------------------------------


def _step_collecting(work: Work, view: View, round_: Round) -> bool:
    with work.store.write() as writer:
        # Decided in the transaction that acts on it: an upload that was acknowledged in between is a survivor's.
        participations = writer.participations(round_.run, round_.number)
        context = context_of(writer, view.run, round_)
        decision = close_collecting(
            round_, view.plan, floor=context.thresholds.survivors, participations=participations, now=view.now
        )
        match decision:
            case None:
                return False
            case Extend(deadline):
                writer.update_round(advance_round(round_, DeadlineExtended(view.now, deadline)))
                return True
            case Close(survivors):
                # Raises where members would refuse the set: in a sparse graph its size alone does not say.
                indices = [context.members.index_of(name) for name in survivors]
                choose_close(context, indices)
                bound = advance_round(
                    round_,
                    SurvivorsBound(
                        view.now,
                        deadline_of(view.plan.phases.unmasking, view.now),
                        survivors,
                        context.lost_groups(indices),
                    ),
                )
                writer.update_round(bound)
                for p in participations:
                    if p.participant in round_.cohort and p.participant not in survivors and not p.state.is_out:
                        _drop(work, view, writer, p, DROPPED_BY_WINDOW, "had not uploaded when collecting closed")
                audit(work, writer, "survivors_bound", round_.name, cohort=round_.cohort, survivors=survivors)
    if isinstance(decision, Fail):
        _fail(work, view, round_, decision.reason, decision.message)
        return True
    phase_ended(work, round_, bound)
    return True


def _step_unmasking(work: Work, view: View, round_: Round) -> bool:
    with work.store.read() as reader:
        revealed = reader.message_senders(round_.run, MessageKind.REVEAL, round_.number)
        context = context_of(reader, view.run, round_)
        if context.unopenable([context.members.index_of(name) for name in revealed]):
            if view.now < round_.deadline:
                return False
            silent = sorted(set(round_.cohort) - set(revealed))
            raise TooFewMembers(
                f"{len(revealed)} members revealed their shares in time, {context.thresholds.shares} of those who hold "
                f"a member's shares must; missing: {', '.join(silent)}"
            )
        open_unmasking(reader, view.run, round_)
    with work.store.write() as writer:
        after = advance_round(round_, SharesRevealed(view.now, deadline_of(view.plan.phases.unmasking, view.now)))
        writer.update_round(after)
        audit(work, writer, "shares_revealed", round_.name, holders=revealed)
    phase_ended(work, round_, after)
    return True


# --- ends -------------------------------------------------------------------------------------------------------


def _fail(work: Work, view: View, round_: Round, reason: str, message: str) -> None:
    """The round is over without a result; the run goes on with the next."""
    with work.store.write() as writer:
        after = advance_round(round_, RoundFailed(view.now, reason, message[:2000]))
        writer.update_round(after)
        run = writer.run(round_.run)
        writer.update_run(replace(run, failed_in_a_row=run.failed_in_a_row + 1, version=run.version + 1))
        audit(work, writer, "round_failed", round_.name, reason=reason, message=message)
    phase_ended(work, round_, after)
    round_ended(work, after)


def _expel(work: Work, view: View, round_: Round, error: MemberAtFault) -> None:
    """Members that provably broke the protocol are out of the run until an operator has spoken with them."""
    with work.store.write() as writer:
        for name in error.members:
            writer.put_run_member(
                RunMember(round_.run, name, False, view.now, type(error).reason, error.message[:2000])
            )
            audit(work, writer, "member_expelled", f"participants/{name}", run=round_.run, message=error.message)
    _fail(work, view, round_, type(error).reason, error.message)


def _drop(work: Work, view: View, writer: Writer, who: Participation, reason: str, message: str) -> None:
    writer.put_participation(
        replace(who, state=ParticipationState.DROPPED, reason=reason, message=message, updated_at=view.now)
    )
    audit(
        work,
        writer,
        "participant_dropped",
        f"runs/{who.run}/rounds/{who.round}",
        participant=who.participant,
        reason=reason,
        message=message,
    )
    work.observer.participant_dropped(who.participant, reason)
