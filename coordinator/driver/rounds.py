"""Steps of a round: closes each phase when it is due, opens the sum, and commits what came of it in one transaction."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Final

from common.adapters import ADAPTER_FILE
from common.errors import (
    AccordError,
    CertificateRevoked,
    LeaseLost,
    MemberAtFault,
    StorageFailed,
    TooFewMembers,
    Unavailable,
    VersionConflict,
)
from common.masking import MASKED_KIND, model_hash
from common.secagg import TailSums, Unmasking, check_ready, make_start, open_masks, verify_reveal
from common.states import RoundKind, RoundState
from coordinator.aggregation import NextAdapter, OpenSum, make_next_adapter
from coordinator.driver.epochs import MOST_TRIES, needs_epoch, open_epoch
from coordinator.driver.work import View, Work, audit
from coordinator.manifests import build_manifest, sign_manifest
from coordinator.masked import commitments_of, context_of, epoch_of, roster_of
from coordinator.rounds.decisions import (
    Close,
    Extend,
    Fail,
    close_collecting,
    close_forming,
    close_training,
    deadline_of,
)
from coordinator.rounds.events import (
    Aggregated,
    CohortChosen,
    DeadlineExtended,
    Opened,
    RoundFailed,
    RunFinished,
    SharesRevealed,
    SurvivorsBound,
)
from coordinator.rounds.figures import figures, heldout_loss
from coordinator.rounds.gate import Verdict, judge
from coordinator.rounds.lifecycle import advance_round, advance_run
from coordinator.rounds.model import (
    Adapter,
    AdapterState,
    EpochState,
    MessageKind,
    ParticipantState,
    Participation,
    ParticipationState,
    Round,
    Run,
    RunMember,
)
from coordinator.runs import adapter_key
from coordinator.store.interface import Reader, Writer
from coordinator.strategies import server_optimizer
from coordinator.uploads import UploadReader, upload_prefix

CANDIDATE_SET_ASIDE: Final = "CANDIDATE_SET_ASIDE"
KEYS_NOT_MADE: Final = "KEYS_NOT_MADE"
DROPPED_BY_WINDOW: Final = "WINDOW_PASSED"
DROPPED_WITHOUT_KEYS: Final = "NO_MASKING_KEYS"
DROPPED_ABSENT: Final = "ABSENT"
DROPPED_REVOKED: Final = CertificateRevoked.reason
DROPPED_LEFT: Final = "LEFT_RUN"

# These say nothing of the round: the step is taken again.
_TRY_AGAIN: Final = (LeaseLost, VersionConflict, StorageFailed, Unavailable)


def step_round(work: Work, view: View) -> bool:
    """Close the round's present phase if it is due. True if anything was changed."""
    if view.round is None:
        return False
    steps = {
        RoundState.FORMING: _step_forming,
        RoundState.TRAINING: _step_training,
        RoundState.COLLECTING: _step_collecting,
        RoundState.UNMASKING: _step_unmasking,
        RoundState.AGGREGATING: _step_aggregating,
    }
    try:
        return _drop_leavers(work, view, view.round) or steps[view.round.state](work, view, view.round)
    except _TRY_AGAIN:
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
    _ended(work, round_, opened)
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
    if decision is None:
        return False
    if isinstance(decision, Fail) or ready is None:
        failed = decision if isinstance(decision, Fail) else Fail(KEYS_NOT_MADE, "no masking keys were ready")
        _fail(work, view, round_, failed.reason, failed.message)
        return True
    with work.store.write() as writer:
        members = roster_of(writer, view.run, ready).members
        context = make_start(
            epoch_of(view.run, ready),
            members,
            round_number=round_.number,
            kind=MASKED_KIND[round_.kind],
            cohort=[members.index_of(name) for name in decision.participants],
            model_hash=model_hash(view.plan, adapter=round_.base_adapter, instruction_set=round_.instruction_set),
        )
        chosen = advance_round(
            round_,
            CohortChosen(
                view.now,
                deadline_of(view.plan.phases.collecting, view.now),
                ready.number,
                decision.participants,
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
        audit(work, writer, "cohort_chosen", round_.name, cohort=decision.participants, epoch=ready.number)
    _ended(work, round_, chosen)
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
                bound = advance_round(
                    round_,
                    SurvivorsBound(view.now, deadline_of(view.plan.phases.unmasking, view.now), survivors, b""),
                )
                writer.update_round(bound)
                for p in participations:
                    if p.participant in round_.cohort and p.participant not in survivors and not p.state.is_out:
                        _drop(work, view, writer, p, DROPPED_BY_WINDOW, "had not uploaded when collecting closed")
                audit(work, writer, "survivors_bound", round_.name, cohort=round_.cohort, survivors=survivors)
    if isinstance(decision, Fail):
        _fail(work, view, round_, decision.reason, decision.message)
        return True
    _ended(work, round_, bound)
    return True


def _step_unmasking(work: Work, view: View, round_: Round) -> bool:
    with work.store.read() as reader:
        revealed = reader.message_senders(round_.run, MessageKind.REVEAL, round_.number)
        context = context_of(reader, view.run, round_)
        if len(revealed) < context.thresholds.shares:
            if view.now < round_.deadline:
                return False
            silent = sorted(set(round_.cohort) - set(revealed))
            raise TooFewMembers(
                f"{len(revealed)} of at least {context.thresholds.shares} members revealed their shares in time; "
                f"missing: {', '.join(silent)}"
            )
        _open_masks(reader, view.run, round_)
    with work.store.write() as writer:
        after = advance_round(round_, SharesRevealed(view.now, deadline_of(view.plan.phases.unmasking, view.now)))
        writer.update_round(after)
        audit(work, writer, "shares_revealed", round_.name, holders=revealed)
    _ended(work, round_, after)
    return True


def _open_masks(reader: Reader, run: Run, round_: Round) -> Unmasking:
    """The seeds of the masks that are left in the sum; made anew whenever they are needed, and never stored."""
    context = context_of(reader, run, round_)
    epoch = reader.epoch(run.name, round_.epoch)
    roster = roster_of(reader, run, epoch)
    members = roster.members
    survivors = tuple(sorted(members.index_of(name) for name in round_.survivors))
    commitments = commitments_of(reader, context, round_)
    reveals = [
        verify_reveal(
            context, survivors, message.body, sender=members.index_of(message.sender), commitments=commitments
        )
        for message in reader.messages(run.name, MessageKind.REVEAL, round_.number)
    ]
    readies = {
        members.index_of(message.sender): check_ready(
            context.epoch, members, message.body, sender=members.index_of(message.sender)
        )
        for message in reader.messages(run.name, MessageKind.CONFIRMATION, round_.epoch)
        if message.sender in round_.cohort
    }
    return open_masks(context, roster, survivors, reveals, readies)


# --- aggregating ------------------------------------------------------------------------------------------------


def _step_aggregating(work: Work, view: View, round_: Round) -> bool:
    with work.store.read() as reader:
        unmasking = _open_masks(reader, view.run, round_)
    layout = unmasking.context.layout
    uploads = [
        UploadReader(work.blobs, upload_prefix(round_.run, round_.number, name), layout) for name in round_.survivors
    ]
    opened = OpenSum(unmasking, uploads)
    tail = opened.tail()
    found = figures(tail)
    verdict = judge(heldout_loss(found), accepted_loss=view.run.accepted_loss, gate=view.plan.gate)
    is_set_aside = not verdict.is_accepted and view.run.candidate_adapter is not None
    made: NextAdapter | None = None
    size = 0
    if round_.kind is RoundKind.TRAIN and not is_set_aside:
        made, size = _make_adapter(work, view, round_, opened, tail)
        found = tuple(sorted((*found, ("delta_norm", made.delta_norm))))
    with work.store.write() as writer:
        run = _after_gate(work, view, writer, round_, verdict, found)
        if is_set_aside:
            after = _set_aside(work, view, writer, run, round_, verdict)
        else:
            after = advance_round(round_, Aggregated(view.now, made.digest if made else None, found))
            writer.update_round(after)
            if made is not None:
                run = replace(run, rounds_succeeded=run.rounds_succeeded + 1)
            # An update of nothing but zeros leaves the adapter that is there already, and has its digest.
            if made is not None and made.digest != round_.base_adapter:
                _publish(work, view, writer, after, made, size)
                run = replace(run, candidate_adapter=made.digest)
            run = replace(run, failed_in_a_row=0, version=run.version + 1)
            writer.update_run(run)
            if round_.kind is RoundKind.EVALUATE:
                writer.update_run(advance_run(run, RunFinished(view.now)))
                audit(work, writer, "run_succeeded", f"runs/{run.name}", adapter=run.accepted_adapter)
    _ended(work, round_, after)
    work.observer.round_ended(after)
    return True


def _make_adapter(work: Work, view: View, round_: Round, opened: OpenSum, tail: TailSums) -> tuple[NextAdapter, int]:
    """The next global adapter, in the blob store, and its size in bytes."""
    scratch = work.scratch / round_.run / str(round_.number)
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        base = scratch / f"base-{ADAPTER_FILE}"
        work.blobs.fetch(adapter_key(round_.base_adapter), base)
        made = make_next_adapter(
            opened,
            tail,
            base=base,
            adapter_layout=view.plan.layout(),
            optimizer=server_optimizer(view.plan.method.server_optimizer, view.plan.method.server_learning_rate),
            max_update_norm=view.plan.masking.max_update_norm,
            scratch=scratch,
            still_ours=lambda: work.still_ours(round_.run),
        )
        size = made.path.stat().st_size
        work.blobs.put_file(adapter_key(made.digest), made.path)
    finally:
        # Whatever came of it: a try that another process takes up begins anew.
        shutil.rmtree(scratch, ignore_errors=True)
    return made, size


def _after_gate(
    work: Work, view: View, writer: Writer, round_: Round, verdict: Verdict, found: tuple[tuple[str, float], ...]
) -> Run:
    """The run once the adapter that this round has measured is accepted or set aside; not yet written."""
    run = writer.run(view.run.name)
    loss = heldout_loss(found)
    candidate = run.candidate_adapter
    if candidate is None:
        # The round has measured an adapter that was accepted before; its loss is what later ones are compared with.
        return replace(run, accepted_loss=loss) if run.accepted_loss is None else run
    if candidate != round_.base_adapter:
        return run
    if verdict.is_accepted:
        writer.set_adapter_state(candidate, AdapterState.ACCEPTED, heldout_loss=loss)
        audit(work, writer, "adapter_accepted", f"adapters/{candidate}", verdict=verdict.message)
        return replace(run, accepted_adapter=candidate, candidate_adapter=None, accepted_loss=loss)
    writer.set_adapter_state(candidate, AdapterState.SET_ASIDE, heldout_loss=loss)
    audit(work, writer, "adapter_set_aside", f"adapters/{candidate}", verdict=verdict.message)
    return replace(run, candidate_adapter=None)


def _set_aside(work: Work, view: View, writer: Writer, run: Run, round_: Round, verdict: Verdict) -> Round:
    """The candidate did not pass: what was trained from it is not published, the run goes back."""
    message = f"adapter {round_.base_adapter[:12]} is set aside: {verdict.message}"
    after = advance_round(round_, RoundFailed(view.now, CANDIDATE_SET_ASIDE, message))
    writer.update_round(after)
    run = replace(run, failed_in_a_row=run.failed_in_a_row + 1, version=run.version + 1)
    writer.update_run(run)
    audit(work, writer, "round_failed", round_.name, reason=CANDIDATE_SET_ASIDE, message=message)
    if round_.kind is RoundKind.EVALUATE:
        writer.update_run(advance_run(run, RunFinished(view.now)))
        audit(work, writer, "run_succeeded", f"runs/{run.name}", adapter=run.accepted_adapter)
    return after


def _publish(work: Work, view: View, writer: Writer, round_: Round, made: NextAdapter, size: int) -> None:
    manifest = sign_manifest(
        build_manifest(
            view.plan,
            plan_digest=view.run.plan_digest,
            round_number=round_.number,
            digest=made.digest,
            parent=round_.base_adapter,
            survivors=round_.survivors,
            metrics=round_.metrics,
            instruction_set=round_.instruction_set,
            at=view.now,
        ),
        work.signing_key,
    )
    writer.add_adapter(
        Adapter(
            digest=made.digest,
            run=round_.run,
            round=round_.number,
            state=AdapterState.CANDIDATE,
            size_bytes=size,
            parent=round_.base_adapter,
            manifest=manifest.content,
            manifest_signature=manifest.signature,
            created_at=view.now,
        )
    )
    audit(
        work,
        writer,
        "adapter_published",
        f"adapters/{made.digest}",
        round=round_.name,
        survivors=round_.survivors,
        parent=round_.base_adapter,
    )


# --- ends -------------------------------------------------------------------------------------------------------


def _fail(work: Work, view: View, round_: Round, reason: str, message: str) -> None:
    """The round is over without a result; the run goes on with the next."""
    with work.store.write() as writer:
        after = advance_round(round_, RoundFailed(view.now, reason, message[:2000]))
        writer.update_round(after)
        run = writer.run(round_.run)
        writer.update_run(replace(run, failed_in_a_row=run.failed_in_a_row + 1, version=run.version + 1))
        audit(work, writer, "round_failed", round_.name, reason=reason, message=message)
    work.observer.round_ended(after)


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


def _ended(work: Work, before: Round, after: Round) -> None:
    """Tell the observer how long a phase took."""
    work.observer.phase_ended(before.state.value, (after.phase_started_at - before.phase_started_at).total_seconds())
