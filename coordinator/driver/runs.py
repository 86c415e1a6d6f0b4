"""Steps of a run between its rounds: opens the next one, ends the run, and clears up after one that was cancelled."""

from __future__ import annotations

import shutil
from dataclasses import replace

from common.manifest import read_manifest
from common.states import RoundState
from common.update_chain import handed_out
from coordinator.driver.epochs import needs_epoch, open_epoch
from coordinator.driver.work import View, Work, audit, round_ended
from coordinator.rounds.decisions import deadline_of, may_open_round, next_round_kind
from coordinator.rounds.events import EpochClosed, RoundCancelled, RunFailed
from coordinator.rounds.lifecycle import advance_epoch, advance_round, advance_run
from coordinator.rounds.model import MessageKind, Round
from coordinator.runs import optimizer_prefix
from coordinator.store.interface import Writer
from coordinator.uploads import MOST_KEPT_ROUNDS, round_prefix

TOO_MANY_FAILED_ROUNDS = "TOO_MANY_FAILED_ROUNDS"
_OF_AN_EPOCH = (MessageKind.ROSTER, MessageKind.ADVERTISEMENT, MessageKind.DEPOSIT, MessageKind.CONFIRMATION)


def step_run(work: Work, view: View) -> bool:
    """Do what is due between rounds. True if anything was changed."""
    if view.run.state.is_over:
        return _clear_up(work, view)
    if view.round is not None or not may_open_round(view.run):
        return False
    if view.run.failed_in_a_row >= view.plan.gate.most_failed_rounds:
        return _fail(work, view)
    _open_round(work, view)
    return True


def _open_round(work: Work, view: View) -> None:
    number = view.run.latest_round + 1
    # Of a sum that was given up half way, as its round was cancelled or another process has ended it.
    shutil.rmtree(work.scratch / view.run.name, ignore_errors=True)
    with work.store.write() as writer:
        if needs_epoch(view, number):
            open_epoch(writer, work, view, first_round=number)
        run = writer.run(view.run.name)
        base = read_manifest(writer.adapter(run.newest_adapter).manifest)
        round_ = Round(
            run=run.name,
            number=number,
            kind=next_round_kind(run, view.plan),
            state=RoundState.FORMING,
            base_adapter=run.newest_adapter,
            instruction_set=handed_out(view.plan, base).instruction_set,
            created_at=view.now,
            phase_started_at=view.now,
            deadline=deadline_of(view.plan.phases.forming, view.now),
        )
        writer.add_round(round_)
        writer.update_run(replace(run, latest_round=number, version=run.version + 1))
        audit(work, writer, "round_opened", round_.name, kind=round_.kind.value, adapter=round_.base_adapter)
        _forget_messages(writer, round_, kept_rounds=work.kept_rounds)
    # Not the last one alone: the setting may have been higher before a restart.
    for old in range(max(1, number - MOST_KEPT_ROUNDS), number - work.kept_rounds + 1):
        work.blobs.delete(round_prefix(view.run.name, old))


def _forget_messages(writer: Writer, opened: Round, *, kept_rounds: int) -> None:
    """Delete what the masking protocol said in rounds that are not kept, and in key epochs that no kept one uses."""
    first_kept = max(1, opened.number - kept_rounds + 1)
    kept = [writer.round(opened.run, number) for number in range(first_kept, opened.number)]
    first_epoch = min([round_.epoch for round_ in kept if round_.epoch] + [writer.run(opened.run).latest_epoch])
    for kind in MessageKind:
        writer.delete_messages(opened.run, kind, before=first_epoch if kind in _OF_AN_EPOCH else first_kept)
    writer.delete_share_envelopes(opened.run, before=first_epoch)


def _fail(work: Work, view: View) -> bool:
    message = f"{view.run.failed_in_a_row} rounds in a row have failed; `round list` shows why"
    with work.store.write() as writer:
        run = writer.run(view.run.name)
        writer.update_run(advance_run(run, RunFailed(view.now, TOO_MANY_FAILED_ROUNDS, message)))
        audit(work, writer, "run_failed", f"runs/{run.name}", reason=TOO_MANY_FAILED_ROUNDS, message=message)
    return True


def _clear_up(work: Work, view: View) -> bool:
    """A run that is over has no open round, no keys, and no state of a server optimiser, as no round begins from it."""
    has_epoch = view.epoch is not None and not view.epoch.state.is_over
    cancelled: Round | None = None
    if view.round is None and not has_epoch:
        return False
    shutil.rmtree(work.scratch / view.run.name, ignore_errors=True)
    work.blobs.delete(optimizer_prefix(view.run.name))
    with work.store.write() as writer:
        if view.round is not None:
            cancelled = advance_round(view.round, RoundCancelled(view.now, f"the run is {view.run.state.value}"))
            writer.update_round(cancelled)
            audit(work, writer, "round_cancelled", cancelled.name)
        if view.epoch is not None and has_epoch:
            writer.update_epoch(advance_epoch(view.epoch, EpochClosed(view.now, "the run is over")))
    if cancelled is not None:
        round_ended(work, cancelled)
    return True
