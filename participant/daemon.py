"""The participant's loop: ask what to do, check it, do it, journal it, and go on whatever happens.

State drives progress: the coordinator says again and again what it waits for, so a lost message, a restart or an hour
without network costs nothing but time. Nothing here trusts an assignment: plans are checked against charter and
policy, adapters against digests and signatures, and masks against the journal.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from common.adapters import ADAPTER_FILE
from common.assignments import (
    AdvertiseKeys,
    Assignment,
    CloseRound,
    ConfirmShares,
    DepositShares,
    FinishRound,
    FinishRun,
    PrepareUpdate,
    ReviewRun,
    UploadUpdate,
)
from common.charter import Charter
from common.clock import Clock
from common.errors import (
    AccordError,
    AlreadyExists,
    CertificateRevoked,
    CharterInvalid,
    DigestMismatch,
    NotFound,
    NotInCohort,
    OutOfTurn,
    ResourceExhausted,
    StorageFailed,
    TrainingStopped,
    Unavailable,
    UpdateLost,
)
from common.instructions import InstructionSet
from common.log import bound, get_logger
from common.masking import model_hash
from common.plan import Plan
from common.states import RoundKind, RoundState
from participant import guard
from participant.base_models import BaseModels
from participant.client import CoordinatorClient
from participant.guard import DayLedger
from participant.journal import Journal, RoundEntry, RoundPhase, RunEntry, RunStanding
from participant.masking import MaskingDesk, RunTerms
from participant.metrics import ParticipantMetrics, RoundResult
from participant.policy import Policy
from participant.preflight.machine import free_bytes
from participant.preparation import Preparations
from participant.shelf import AdapterShelf
from participant.trainer import ADAPTER_FOLDER, Preparation, Trainer
from participant.training.result import Progress
from participant.update import Contribution, Update, open_update

log = get_logger(__name__)

POLL_SECONDS: Final = 40
BACKOFF_SECONDS: Final = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
PROGRESS_SECONDS: Final = 1.0

# The state has moved on, or what was sent is there already: nothing is lost, and the next answer says what is next.
_MOVED_ON: Final = (OutOfTurn, NotFound, NotInCohort, AlreadyExists)
# The other side, or this machine, may be well again in a moment.
_TRY_AGAIN: Final = (Unavailable, ResourceExhausted, StorageFailed)


@dataclass(frozen=True, slots=True)
class Site:
    """Who this site is and what it agrees to. `charter` reads the pinned one, or asks the coordinator for its own."""

    participant: str
    policy: Policy
    charter: Callable[[CoordinatorClient], Charter]
    work_folder: Path
    least_free_bytes: int = 0


class Daemon:
    """One participant. `run` is the loop; `turn` is one question and its answer, for tests."""

    def __init__(
        self,
        *,
        site: Site,
        client: Callable[[], CoordinatorClient],
        journal: Journal,
        desk: MaskingDesk,
        shelf: AdapterShelf,
        trainer: Trainer,
        base_models: BaseModels,
        metrics: ParticipantMetrics,
        clock: Clock,
        before_turn: Callable[[], None] = lambda: None,
        interrupt: Callable[[], None] = lambda: None,
    ) -> None:
        self._site = site
        self._client = client
        self._journal = journal
        self._desk = desk
        self._shelf = shelf
        self._trainer = trainer
        self._base_models = base_models
        self._metrics = metrics
        self._clock = clock
        self._before_turn = before_turn
        self._interrupt = interrupt
        self._preparations = Preparations()
        self._tag = ""
        self._reported_at = 0.0

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set. Raises CertificateRevoked when the federation has put this site out."""
        failures = 0
        threading.Thread(target=self._interrupt_when, args=(stop,), name="stop-watch", daemon=True).start()
        try:
            while not stop.is_set():
                try:
                    is_done = self.turn(POLL_SECONDS)
                except CertificateRevoked:
                    raise
                except AccordError as error:
                    log.warning("coordinator_unreachable", reason=error.reason, message=error.message)
                    self._metrics.failed(error)
                    is_done = False
                except Exception as error:
                    log.exception("daemon_turn_broken")
                    self._metrics.failed(AccordError(type(error).__name__))
                    is_done = False
                failures = 0 if is_done else failures + 1
                if failures:
                    # What is unfinished is asked for again at once, not when something has changed.
                    self._tag = ""
                    stop.wait(BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS)) - 1])
        finally:
            self._preparations.stop()

    def _interrupt_when(self, stop: threading.Event) -> None:
        """End the long poll that the loop may be waiting in."""
        stop.wait()
        self._interrupt()

    def turn(self, wait_seconds: int) -> bool:
        """Ask once and do all that the answer says. False if something has to be tried again."""
        self._before_turn()
        answer = self._client().assignments(self._tag, wait_seconds=wait_seconds)
        self._metrics.last_contact_seconds.set(self._clock.now().timestamp())
        self._tag = answer.tag
        done = [self._do(task) for task in answer.tasks]
        return all(done)

    def wait_for_preparation(self, seconds: float | None = None) -> bool:
        """Return when no round is being prepared any more; False if one still is after `seconds`."""
        return self._preparations.wait(seconds)

    def stop_preparation(self) -> None:
        """End what is being prepared; the journal and the trainer go on from there when it is asked for again."""
        self._preparations.stop()

    def _do(self, task: Assignment) -> bool:
        """True when the task is done, or not to be done at all."""
        name = type(task).__name__
        with bound(run=task.run, round=getattr(task, "round", None), task=name):
            try:
                self._metrics.assignments.labels(task=name).inc()
                return self._dispatch(task)
            except _MOVED_ON as error:
                if isinstance(task, UploadUpdate) and isinstance(error, AlreadyExists):
                    # Another update of this site is there: this journal went back in time, and its update stays here.
                    self._give_up(task.run, task.round, error)
                log.info("task_out_of_turn", reason=error.reason, message=error.message)
                return True
            except _TRY_AGAIN as error:
                log.warning("task_to_be_tried_again", reason=error.reason, message=error.message)
                return False
            except CertificateRevoked:
                raise
            except AccordError as error:
                log.error("task_failed", reason=error.reason, message=error.message)
                self._metrics.failed(error)
                if isinstance(task, UploadUpdate):
                    self._give_up(task.run, task.round, error)
                return True

    def _dispatch(self, task: Assignment) -> bool:
        match task:
            case ReviewRun():
                self._review(task)
            case AdvertiseKeys():
                self._desk.advertise(task, self._terms(task.run))
            case DepositShares():
                self._desk.deposit(task, self._terms(task.run))
            case ConfirmShares():
                self._desk.confirm(task)
            case PrepareUpdate():
                self._prepare(task)
            case UploadUpdate():
                self._upload(task)
            case CloseRound():
                return self._desk.close(task)
            case FinishRound():
                self._finish_round(task)
            case FinishRun():
                self._finish_run(task)
        return True

    # --- joining --------------------------------------------------------------------------------------------------

    def _review(self, task: ReviewRun) -> None:
        """Check a run's plan with everything that this site knows; join it, or decline with every reason."""
        plan_bytes = self._client().plan(task.run)
        digest = hashlib.sha256(plan_bytes).hexdigest()
        if digest != task.plan_digest:
            raise DigestMismatch(f"the plan of run {task.run} has digest {digest}, announced was {task.plan_digest}")
        entry = RunEntry(task.run, plan_bytes, digest, b"", RunStanding.DECLINED, self._clock.now())
        try:
            charter = self._site.charter(self._client())
            entry = replace(entry, charter=charter.to_bytes())
            model = self._check(plan_bytes, charter)
        except _TRY_AGAIN:
            raise
        except AccordError as error:
            log.warning("run_declined", reason=error.reason, message=error.message)
            self._metrics.refused(error)
            self._journal.put_run(replace(entry, reason=error.reason, message=error.message))
            self._client().decline_run(task.run, reason=error.reason, message=error.message)
            return
        self._journal.put_run(replace(entry, standing=RunStanding.JOINED))
        self._client().join_run(task.run, plan_digest=digest, base_model_digest=model)
        log.info("run_joined", plan_digest=digest)

    def _check(self, plan_bytes: bytes, charter: Charter) -> str:
        """Raises whatever speaks against the plan; returns the digest of this site's own copy of the base model."""
        plan = Plan.from_bytes(plan_bytes)
        if plan.charter_digest != charter.digest:
            raise CharterInvalid(
                f"the plan is made under charter {plan.charter_digest}, this site holds {charter.digest}; compare "
                "digests with the other partners before pinning another"
            )
        guard.review(plan, policy=self._site.policy, charter=charter, participant=self._site.participant)
        self._trainer.check()
        return guard.check_base_model(plan, self._base_models.own()).digest

    def _terms(self, run: str) -> RunTerms:
        """What this site has agreed to. Raises OutOfTurn for a run that it has not joined."""
        entry = self._journal.run(run)
        if entry is None or entry.standing is RunStanding.DECLINED:
            raise OutOfTurn(f"this site has not joined run {run}")
        return RunTerms(
            Plan.from_bytes(entry.plan), bytes.fromhex(entry.plan_digest), Charter.from_bytes(entry.charter)
        )

    # --- preparing ------------------------------------------------------------------------------------------------

    def _prepare(self, task: PrepareUpdate) -> None:
        """Begin a round's work, go on with it after a restart, or say again that it is done."""
        terms = self._terms(task.run)
        key = (task.run, task.round)
        # Asked before the journal is read: a preparation that ends in between has written its end there by then.
        is_running = self._preparations.is_running(key)
        entry = self._journal.round(*key)
        if entry is None:
            entry = self._begin_round(task, terms)
        if entry.adapter != task.adapter:
            raise DigestMismatch(
                f"round {task.round} started from adapter {entry.adapter}, and now from {task.adapter}"
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
                lambda error: self._give_up(task.run, task.round, error),
            )

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
                self._site.policy, now=now, today=self._ledger(now, terms.plan), transfer=guard.transfer_of(terms.plan)
            )
            guard.review_round(
                terms.plan,
                policy=self._site.policy,
                charter=terms.charter,
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
        adapter = self._fetch_adapter(task, terms.plan, stop)
        work = Preparation(
            participant=self._site.participant,
            plan=terms.plan,
            round=task.round,
            kind=task.kind,
            base_model=self._base_models.folder(terms.plan.base_model.digest),
            global_adapter=adapter,
            global_adapter_digest=task.adapter,
            instruction_set=task.instruction_set,
            job=self._job(task.run, task.round),
        )
        prepared = self._trainer.prepare(work, on_progress=lambda progress: self._heard(task, progress), stop=stop)
        if task.kind is RoundKind.TRAIN:
            # Looked at now, so that a NaN is a failure of training and not a surprise once the cohort is fixed.
            self._open_update(terms.plan, entry)
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

    def _fetch_adapter(self, task: PrepareUpdate, plan: Plan, stop: threading.Event) -> Path:
        """The adapter's folder. A coordinator that is away is waited for: that is no reason to be out of the round."""
        for pause in itertools.chain(BACKOFF_SECONDS, itertools.repeat(BACKOFF_SECONDS[-1])):
            try:
                return self._shelf.fetch(task.adapter, plan, on_bytes=self._metrics.download_bytes.inc)
            except (Unavailable, ResourceExhausted) as error:
                log.warning("adapter_not_fetched_yet", reason=error.reason, message=error.message)
                if stop.wait(pause):
                    raise TrainingStopped("the adapter was not fetched before the round was over") from error
        raise AssertionError("the pauses never end")

    def _heard(self, task: PrepareUpdate, progress: Progress) -> None:
        """Pass the training's progress on, without its losses: those are this site's own."""
        if progress.tokens_per_second is not None:
            self._metrics.training_tokens_per_second.set(progress.tokens_per_second)
        if time.monotonic() - self._reported_at >= PROGRESS_SECONDS or progress.step == progress.total_steps:
            self._reported_at = time.monotonic()
            self._report(task.run, task.round, progress.phase.value, progress.step, progress.total_steps)

    def _report(self, run: str, round_: int, activity: str, done: int, total: int) -> None:
        """For operators to look at; nothing depends on it."""
        with contextlib.suppress(AccordError):
            self._client().report_progress(run, round_, activity=activity, done=done, total=total)

    def _give_up(self, run: str, round_: int, error: AccordError) -> None:
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
        with contextlib.suppress(AccordError):
            self._client().report_failure(run, round_, reason=error.reason, message=error.message)

    def _check_disk(self) -> None:
        """Raises StorageFailed rather than begin a round that would end in a full disk."""
        free = free_bytes(self._site.work_folder)
        self._metrics.free_disk_bytes.set(free)
        if free < self._site.least_free_bytes:
            raise StorageFailed(f"{free >> 20} MiB are free here, least_free_mebibytes asks for more; free some space")

    def _ledger(self, now: datetime, plan: Plan) -> DayLedger:
        """What this site has given today, in its own time zone."""
        day = self._site.policy.hours.day(now)
        today = [
            entry
            for entry in self._journal.rounds_since(now - timedelta(days=2))
            if self._site.policy.hours.day(entry.started_at) == day and entry.phase is not RoundPhase.FAILED
        ]
        return DayLedger(
            day=day,
            rounds=len(today),
            upload_bytes=sum(entry.uploaded_bytes for entry in today),
            download_bytes=len(today) * guard.transfer_of(plan).download_bytes,
        )

    def _job(self, run: str, round_: int) -> Path:
        return self._site.work_folder / run / str(round_)

    def _open_update(self, plan: Plan, entry: RoundEntry) -> Update:
        trained = self._job(entry.run, entry.round) / ADAPTER_FOLDER / ADAPTER_FILE
        base = self._shelf.path(entry.adapter) / ADAPTER_FILE
        try:
            return open_update(trained, base, plan.layout(), max_norm=plan.masking.max_update_norm)
        except OSError as error:
            raise UpdateLost(f"the update of round {entry.round} cannot be read: {error}") from error

    # --- sending and finishing --------------------------------------------------------------------------------------

    def _upload(self, task: UploadUpdate) -> None:
        terms = self._terms(task.run)
        entry = self._journal.round(task.run, task.round)
        if entry is None or not entry.contribution:
            raise OutOfTurn(f"this site has nothing prepared for round {task.round} of run {task.run}")

        def sent(total: int, resumed_at_chunk: int) -> None:
            self._metrics.upload_bytes.inc(total)
            if resumed_at_chunk:
                self._metrics.upload_resumes.inc()

        self._desk.upload(
            task,
            terms,
            Contribution.from_json(entry.contribution),
            lambda: self._open_update(terms.plan, entry),
            sent,
        )
        log.info("update_uploaded")

    def _finish_round(self, task: FinishRound) -> None:
        """Forget a round that is over, and earlier ones whose end was missed: keys, spools, training folders."""
        for entry in self._journal.open_rounds(task.run, up_to=task.round):
            state = task.state if entry.round == task.round else None
            self._forget_round(entry, state)
            kept = {entry.adapter, *([task.adapter] if task.adapter else [])}
            self._shelf.prune(self._journal.adapters_in_use() | kept)

    def _forget_round(self, entry: RoundEntry, state: RoundState | None) -> None:
        """state: how the round has ended, None if this site never heard."""
        key = (entry.run, entry.round)
        self._preparations.stop(key)
        self._desk.forget_round(*key)
        shutil.rmtree(self._job(*key), ignore_errors=True)
        was_in = entry.phase in (RoundPhase.MASKED, RoundPhase.BOUND, RoundPhase.REVEALED)
        result = RoundResult.LEFT_OUT
        if was_in:
            result = RoundResult.SUCCEEDED if state is RoundState.SUCCEEDED else RoundResult.FAILED
        self._metrics.rounds.labels(result=result.value).inc()
        outcome = state.value if state is not None else "unknown"
        after = self._journal.round(*key) or entry
        self._journal.put_round(replace(after, phase=RoundPhase.OVER, outcome=outcome, updated_at=self._clock.now()))
        log.info("round_over", round=entry.round, state=outcome, result=result.value)

    def _finish_run(self, task: FinishRun) -> None:
        """Fetch the final adapter for this site's own use, and forget the run's keys."""
        entry = self._journal.run(task.run)
        if entry is None or entry.standing is not RunStanding.JOINED:
            return
        for round_ in self._journal.rounds(task.run):
            if round_.phase is not RoundPhase.OVER:
                self._forget_round(round_, None)
        self._journal.forget_keys(task.run)
        self._shelf.fetch(task.adapter, Plan.from_bytes(entry.plan), on_bytes=self._metrics.download_bytes.inc)
        self._shelf.prune(self._journal.adapters_in_use() | {task.adapter})
        shutil.rmtree(self._site.work_folder / task.run, ignore_errors=True)
        self._journal.put_run(
            replace(
                entry,
                standing=RunStanding.OVER,
                reason=task.state.value,
                message=f"final adapter {task.adapter}",
                updated_at=self._clock.now(),
            )
        )
        log.info("run_over", state=task.state.value, adapter=task.adapter)
