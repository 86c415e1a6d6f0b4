"""Where a round's update is made: the adapter fetched, evaluated, trained on, and what came of it kept for the masking.

Decides with the site's policy whether a round is begun, and says why when this site is out of it. Knows nothing of
masks, and of the coordinator only what it reports there; a kill at any line costs no more than the work since the
journal's last entry.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from common import tracing
from common.adapters import ADAPTER_FILE, MANIFEST_FILE, FlatFile
from common.assignments import PrepareUpdate
from common.clock import Clock
from common.errors import (
    AccordError,
    DigestMismatch,
    ResourceExhausted,
    StorageFailed,
    TrainingStopped,
    Unavailable,
    UpdateLost,
)
from common.instructions import InstructionSet
from common.log import get_logger
from common.manifest import read_manifest
from common.masking import model_hash
from common.plan import Plan
from common.sent import sent_vector
from common.states import RoundKind
from common.update_chain import check_handed_out, check_update
from participant import guard
from participant.base_models import BaseModels
from participant.client import BACKOFF_SECONDS, CoordinatorClient
from participant.control import CORRECTION_FILE, ControlVariates
from participant.extras import EXTRAS_FILE, open_extras, write_extras
from participant.guard import DayLedger
from participant.journal import Journal, RoundEntry, RoundPhase
from participant.masking import RunTerms
from participant.metrics import ParticipantMetrics, WorkPhase
from participant.policy import Policy
from participant.preflight.machine import free_bytes
from participant.preparation import Preparations
from participant.privacy.desk import PrivacyDesk
from participant.shelf import AdapterShelf
from participant.trainer import ADAPTER_FOLDER, Preparation, Trainer
from participant.training.result import Phase, Progress
from participant.update import Contribution, Update, open_update

log = get_logger(__name__)

PROGRESS_SECONDS: Final = 1.0


class Workbench:
    """Prepares one round at a time, in a thread of its own. Methods are for the daemon's thread.

    folder: what training leaves there is this site's own and goes when its round is over.
    """

    def __init__(
        self,
        *,
        participant: str,
        policy: Policy,
        folder: Path,
        least_free_bytes: int,
        client: Callable[[], CoordinatorClient],
        journal: Journal,
        shelf: AdapterShelf,
        trainer: Trainer,
        base_models: BaseModels,
        controls: ControlVariates,
        privacy: PrivacyDesk,
        metrics: ParticipantMetrics,
        clock: Clock,
        tell: Callable[[str], None] = lambda status: None,
    ) -> None:
        """tell: hears in a few words what a round's work has come to."""
        self._participant = participant
        self._policy = policy
        self._folder = folder
        self._least_free_bytes = least_free_bytes
        self._client = client
        self._journal = journal
        self._shelf = shelf
        self._trainer = trainer
        self._base_models = base_models
        self._controls = controls
        self._privacy = privacy
        self._metrics = metrics
        self._clock = clock
        self._tell = tell
        self._preparations = Preparations()
        self._reported_at = 0.0

    def prepare(self, task: PrepareUpdate, terms: RunTerms) -> None:
        """Begin a round's work, go on with it after a restart, or say again that it is done."""
        key = (task.run, task.round)
        # Asked before the journal is read: a preparation that ends in between has written its end there by then.
        is_running = self._preparations.is_running(key)
        entry = self._journal.round(*key)
        if entry is None:
            entry = self._begin_round(task, terms)
        # Not the adapter alone: after a restart the work would go on with what is said now, and be masked as the other.
        model = model_hash(terms.plan, adapter=task.adapter, instruction_set=task.instruction_set)
        if (entry.model_hash, entry.kind) != (model, task.kind.value):
            raise DigestMismatch(
                f"round {task.round} was begun as {entry.kind} from adapter {entry.adapter}, and is now "
                f"{task.kind.value} from adapter {task.adapter}, or with another instruction set"
            )
        if entry.phase is RoundPhase.PREPARED:
            self._client().report_prepared(task.run, task.round, adapter=task.adapter)
        elif entry.phase is RoundPhase.FAILED:
            self._client().report_failure(task.run, task.round, reason=entry.reason, message=entry.message)
        elif entry.phase is RoundPhase.PREPARING and not is_running:
            begun = entry
            self._preparations.start(
                key,
                lambda stop: self._work(task, terms, begun, stop),
                lambda error: self.give_up(task.run, task.round, error),
            )

    def give_up(self, run: str, round_: int, error: AccordError) -> None:
        """This site is out of the round; it says why, and the round goes on without it."""
        log.error("round_given_up", run=run, round=round_, reason=error.reason, message=error.message)
        self._metrics.failed(error)
        entry = self._journal.round(run, round_)
        if entry is not None and entry.phase is RoundPhase.PREPARING:
            self._journal.put_round(
                replace(
                    entry,
                    phase=RoundPhase.FAILED,
                    reason=error.reason,
                    message=error.message,
                    updated_at=self._clock.now(),
                )
            )
            # Nothing of it has left.
            self._privacy.give_back(run, round_, job=self._job(run, round_))
            self.show_privacy()
        with contextlib.suppress(AccordError):
            self._client().report_failure(run, round_, reason=error.reason, message=error.message)

    def open_update(self, plan: Plan, entry: RoundEntry) -> Update:
        """What was trained in a round. Raises UpdateLost if it cannot be read, and what `participant.update` raises."""
        return self._open_deltas(plan, entry, extras=open_extras(self._extras(entry), sent_vector(plan, entry.round)))

    def _open_deltas(self, plan: Plan, entry: RoundEntry, *, extras: FlatFile | None = None) -> Update:
        trained = self._job(entry.run, entry.round) / ADAPTER_FOLDER / ADAPTER_FILE
        base = self._shelf.path(entry.adapter) / ADAPTER_FILE
        try:
            return open_update(
                trained,
                base,
                plan.layout(),
                max_norm=plan.masking.max_update_norm,
                sent=sent_vector(plan, entry.round).stretches,
                extras=extras,
            )
        except OSError as error:
            raise UpdateLost(f"the update of round {entry.round} cannot be read: {error}") from error

    def _extras(self, entry: RoundEntry) -> Path:
        return self._job(entry.run, entry.round) / EXTRAS_FILE

    def keep_control(self, plan: Plan, entry: RoundEntry) -> None:
        """This site's control variate after a round in whose sum its update is; a repeat changes nothing."""
        if not plan.method.control_variates or entry.kind != RoundKind.TRAIN.value:
            return
        job = self._job(entry.run, entry.round)
        try:
            self._controls.advance(
                plan,
                round_=entry.round,
                trained=job / ADAPTER_FOLDER / ADAPTER_FILE,
                base=self._shelf.path(entry.adapter) / ADAPTER_FILE,
                correction=job / CORRECTION_FILE,
            )
        except UpdateLost as error:
            # An older one is still a control variate, and no reason to be out of a round.
            log.warning("control_variate_not_kept", reason=error.reason, message=error.message)

    def clear(self, run: str, round_: int) -> None:
        """Stop what is still being done for a round that is over, and delete what it left."""
        self._preparations.stop((run, round_))
        entry = self._journal.round(run, round_)
        if entry is not None and entry.phase in (RoundPhase.PREPARING, RoundPhase.PREPARED):
            # Never masked, so nothing of it has left. And nothing will: after a kill in between, what was given back
            # must not be found prepared.
            self._journal.put_round(replace(entry, phase=RoundPhase.FAILED, updated_at=self._clock.now()))
            self._privacy.give_back(run, round_, job=self._job(run, round_))
            self.show_privacy()
        shutil.rmtree(self._job(run, round_), ignore_errors=True)

    def show_privacy(self) -> None:
        """Show in the metrics what of the privacy budget is spent.

        Where the ledger cannot be read nothing private is done, and everything else goes on.
        """
        try:
            spent = self._privacy.spent()
        except StorageFailed as error:
            log.error("privacy_ledger_unreadable", reason=error.reason, message=error.message)
            self._metrics.failed(error)
            return
        self._metrics.show_privacy(
            training=(spent.training, spent.training_budget), figures=(spent.figures, spent.figures_budget)
        )

    def clear_run(self, run: str) -> None:
        shutil.rmtree(self._folder / run, ignore_errors=True)
        self._controls.forget(run)

    def ask_to_stop(self) -> None:
        """Let what is being prepared end soon; `stop` waits for that. For any thread."""
        self._preparations.ask_to_stop()

    def wait(self, seconds: float | None = None) -> bool:
        """Return when no round is being prepared any more; False if one still is after `seconds`."""
        return self._preparations.wait(seconds)

    def stop(self) -> None:
        """End what is being prepared; the journal and the trainer go on from there when it is asked for again."""
        self._preparations.stop()

    # --- how -----------------------------------------------------------------------------------------------------

    def _begin_round(self, task: PrepareUpdate, terms: RunTerms) -> RoundEntry:
        now = self._clock.now()
        entry = RoundEntry(
            run=task.run,
            round=task.round,
            kind=task.kind.value,
            phase=RoundPhase.PREPARING,
            adapter=task.adapter,
            model_hash=model_hash(terms.plan, adapter=task.adapter, instruction_set=task.instruction_set),
            started_at=now,
            updated_at=now,
        )
        try:
            self._check_disk()
            guard.may_take_part_now(
                self._policy, now=now, today=self._ledger(now, terms.plan), transfer=guard.transfer_of(terms.plan)
            )
            guard.review_deadline(terms.plan, deadline=task.deadline, now=now)
            guard.review_round(
                terms.plan,
                policy=self._policy,
                instruction_set=InstructionSet.from_json(task.instruction_set),
            )
        except AccordError as error:
            log.warning("round_refused", reason=error.reason, message=error.message)
            self._metrics.refused(error)
            entry = replace(entry, phase=RoundPhase.FAILED, reason=error.reason, message=error.message)
        self._journal.put_round(entry)
        return entry

    def _work(self, task: PrepareUpdate, terms: RunTerms, entry: RoundEntry, stop: threading.Event) -> None:
        """Fetch the adapter, evaluate, train; runs in the preparation's thread."""
        self._report(task.run, task.round, "fetching the adapter", 0, 0)
        with (
            self._metrics.timed(WorkPhase.FETCH_ADAPTER),
            tracing.span("fetch_adapter", run=task.run, round_=task.round),
        ):
            adapter = self._fetch_adapter(task.adapter, terms.plan, stop)
        self._check_instruction_set(task, terms.plan, adapter)
        below = terms.plan.plan_beneath()
        beneath = None
        if below is not None and terms.plan.beneath is not None:
            beneath = self._fetch_adapter(terms.plan.beneath.adapter, below, stop)
        correction = self._correction(task, terms.plan, adapter, stop)
        work = Preparation(
            participant=self._participant,
            plan=terms.plan,
            round=task.round,
            kind=task.kind,
            base_model=self._base_models.folder(terms.plan.base_model.digest),
            global_adapter=adapter,
            global_adapter_digest=task.adapter,
            instruction_set=task.instruction_set,
            job=self._job(task.run, task.round),
            beneath=beneath,
            correction=correction,
            private=self._privacy.begin(
                terms.plan, round_=task.round, kind=task.kind, job=self._job(task.run, task.round)
            ),
        )
        self.show_privacy()
        with (
            self._metrics.timed(WorkPhase.PREPARE),
            tracing.span("training_job", run=task.run, round_=task.round, kind=task.kind.value),
        ):
            prepared = self._trainer.prepare(work, on_progress=lambda progress: self._heard(task, progress), stop=stop)
        self._show_loss(prepared.contribution)
        if task.kind is RoundKind.TRAIN:
            # Looked at now, so that a NaN is a failure of training and not a surprise once the cohort is fixed.
            write_extras(self._extras(entry), terms.plan, self._open_deltas(terms.plan, entry))
            self.open_update(terms.plan, entry)
        self._journal.put_round(
            replace(
                entry,
                phase=RoundPhase.PREPARED,
                contribution=prepared.contribution.to_json(),
                scores=prepared.scores_json,
                updated_at=self._clock.now(),
            )
        )
        # Whatever keeps this from arriving, the coordinator asks again, and the journal answers: no reason to be out.
        with contextlib.suppress(AccordError):
            self._client().report_prepared(task.run, task.round, adapter=task.adapter)

    def _correction(self, task: PrepareUpdate, plan: Plan, adapter: Path, stop: threading.Event) -> Path | None:
        """What control variates add to a step's direction, as a file; None where the plan asks for none."""
        if not plan.method.control_variates or task.kind is not RoundKind.TRAIN:
            return None
        manifest = read_manifest((adapter / MANIFEST_FILE).read_bytes())
        parent = self._fetch_adapter(manifest.parent, plan, stop) if manifest.parent else None
        job = self._job(task.run, task.round)
        job.mkdir(parents=True, exist_ok=True)
        self._controls.write_correction(
            job / CORRECTION_FILE,
            plan,
            round_=task.round,
            base=adapter / ADAPTER_FILE,
            manifest=manifest,
            parent=parent / ADAPTER_FILE if parent is not None else None,
        )
        return job / CORRECTION_FILE

    def _fetch_adapter(self, digest: str, plan: Plan, stop: threading.Event) -> Path:
        """The adapter's folder. A coordinator that is away is waited for: that is no reason to be out of the round.

        Raises TrainingStopped between two chunks; what has arrived is gone on with.
        """

        def taken(count: int) -> None:
            self._metrics.download_bytes.inc(count)
            if stop.is_set():
                raise TrainingStopped("the adapter was not fetched before the round was over")

        for pause in itertools.chain(BACKOFF_SECONDS, itertools.repeat(BACKOFF_SECONDS[-1])):
            try:
                return self._shelf.fetch(digest, plan, on_bytes=taken)
            except (Unavailable, ResourceExhausted) as error:
                log.warning("adapter_not_fetched_yet", reason=error.reason, message=error.message)
                if stop.wait(pause):
                    raise TrainingStopped("the adapter was not fetched before the round was over") from error
        raise AssertionError("the pauses never end")

    def _check_instruction_set(self, task: PrepareUpdate, plan: Plan, adapter: Path) -> None:
        """The round's instruction set is the one in its adapter's signed manifest; and that follows from public sums.

        The second only where this site still has the adapter before. Raises DigestMismatch.
        """
        manifest = read_manifest((adapter / MANIFEST_FILE).read_bytes())
        check_handed_out(plan, manifest, task.instruction_set)
        parent = self._shelf.path(manifest.parent) / MANIFEST_FILE if manifest.parent else None
        if parent is not None and parent.exists():
            check_update(plan, read_manifest(parent.read_bytes()), manifest)

    def _heard(self, task: PrepareUpdate, progress: Progress) -> None:
        """Pass the training's progress on, without its losses: those are this site's own."""
        if progress.tokens_per_second is not None:
            self._metrics.training_tokens_per_second.set(progress.tokens_per_second)
        if progress.phase is Phase.TRAIN and progress.step:
            self._metrics.training_steps.inc()
            if progress.loss is not None:
                self._metrics.training_loss_nats.set(progress.loss)
        if time.monotonic() - self._reported_at >= PROGRESS_SECONDS or progress.step == progress.total_steps:
            self._reported_at = time.monotonic()
            self._report(task.run, task.round, progress.phase.value, progress.step, progress.total_steps)

    def _show_loss(self, contribution: Contribution) -> None:
        figures = contribution.metrics
        if figures.get("heldout_tokens"):
            self._metrics.heldout_loss_nats.set(figures["heldout_loss"] / figures["heldout_tokens"])

    def _report(self, run: str, round_: int, activity: str, done: int, total: int) -> None:
        """For operators to look at; nothing depends on it."""
        self._tell(f"run {run}, round {round_}: {activity}" + (f" {done}/{total}" if total else ""))
        with contextlib.suppress(AccordError):
            self._client().report_progress(run, round_, activity=activity, done=done, total=total)

    def _check_disk(self) -> None:
        """Raises StorageFailed rather than begin a round that would end in a full disk."""
        free = free_bytes(self._folder)
        if free < self._least_free_bytes:
            raise StorageFailed(f"{free >> 20} MiB are free here, least_free_mebibytes asks for more; free some space")

    def _ledger(self, now: datetime, plan: Plan) -> DayLedger:
        """What this site has given today, in its own time zone."""
        day = self._policy.hours.day(now)
        today = [
            entry
            for entry in self._journal.rounds_since(now - timedelta(days=2))
            if self._policy.hours.day(entry.started_at) == day and _is_work(entry)
        ]
        return DayLedger(
            day=day,
            rounds=len(today),
            upload_bytes=sum(entry.uploaded_bytes for entry in today),
            download_bytes=len(today) * guard.transfer_of(plan).download_bytes,
        )

    def _job(self, run: str, round_: int) -> Path:
        return self._folder / run / str(round_)


def _is_work(entry: RoundEntry) -> bool:
    """Whether this site took part, or does: not in a round that it refused or whose work has failed, over or not."""
    is_open = entry.phase not in (RoundPhase.FAILED, RoundPhase.OVER)
    return is_open or bool(entry.contribution)
