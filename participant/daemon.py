"""The participant's loop: ask what to do, check it, do it, journal it, and go on whatever happens.

State drives progress: the coordinator says again and again what it waits for, so a lost message, a restart or an hour
without network costs nothing but time. Nothing here trusts an assignment: plans are checked against charter and
policy, adapters against digests and signatures, and masks against the journal.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from common import tracing
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
    ProtocolViolation,
    ResourceExhausted,
    StorageFailed,
    Unavailable,
)
from common.log import bound, get_logger
from common.plan import Plan
from common.service_manager import ServiceManager
from common.states import RoundState
from common.version import software_version
from participant import guard
from participant.base_models import BaseModels
from participant.client import BACKOFF_SECONDS, Assignments, CoordinatorClient
from participant.contact import Contact
from participant.journal import Journal, RoundEntry, RoundPhase, RunEntry, RunStanding
from participant.masking import MaskingDesk, RunTerms
from participant.metrics import ParticipantMetrics, RoundResult, WorkPhase
from participant.network.dialling import POLL_SECONDS
from participant.policy import Policy
from participant.privacy.desk import PrivacyDesk
from participant.shelf import AdapterShelf
from participant.trainer import Trainer
from participant.update import ClipReport, Contribution
from participant.workbench import Workbench

log = get_logger(__name__)

# Nothing is said to the service manager during a poll, and more than one must fit its watchdog.
POLLS_PER_WATCHDOG: Final = 3
# How long one task may take without a sign of life: a first look at a base model hashes or fetches all of it, and a
# large update is masked in one go.
_MOST_TASK_SECONDS: Final = 15 * 60.0
_MOST_REVIEW_SECONDS: Final = 2 * 3600.0
# After so long a run that was declined is looked at again.
REVIEW_AGAIN: Final = timedelta(minutes=10)
# A look at what stands in the way waits for a name, a connection and a handshake.
_MOST_LOOK_SECONDS: Final = 120.0

# The state has moved on, or what was sent is there already: nothing is lost, and the next answer says what is next.
_MOVED_ON: Final = (OutOfTurn, NotFound, NotInCohort, AlreadyExists)
# The other side, or this machine, may be well again in a moment.
_TRY_AGAIN: Final = (Unavailable, ResourceExhausted, StorageFailed)
# Preparing is measured on the workbench, whose thread does it.
_PHASES: Final[Mapping[type[Assignment], WorkPhase]] = {
    AdvertiseKeys: WorkPhase.KEY_SETUP,
    DepositShares: WorkPhase.KEY_SETUP,
    ConfirmShares: WorkPhase.KEY_SETUP,
    UploadUpdate: WorkPhase.UPLOAD,
    CloseRound: WorkPhase.CLOSE,
}
# For the service manager's status line. A round that is prepared tells its own progress.
_DOING: Final[Mapping[type[Assignment], str]] = {
    ReviewRun: "looking at its plan",
    AdvertiseKeys: "setting up keys",
    DepositShares: "setting up keys",
    ConfirmShares: "setting up keys",
    UploadUpdate: "masking and uploading",
    CloseRound: "closing the round",
    FinishRound: "clearing up",
    FinishRun: "fetching the final adapter",
}


@dataclass(frozen=True, slots=True)
class Site:
    """Who this site is and what it agrees to. `charter` reads the pinned one, or asks the coordinator for its own."""

    participant: str
    policy: Policy
    charter: Callable[[CoordinatorClient], Charter]


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
        workbench: Workbench,
        trainer: Trainer,
        base_models: BaseModels,
        privacy: PrivacyDesk,
        metrics: ParticipantMetrics,
        clock: Clock,
        before_turn: Callable[[], None] = lambda: None,
        interrupt: Callable[[], None] = lambda: None,
        manager: ServiceManager | None = None,
        contact: Contact | None = None,
        poll_seconds: int = POLL_SECONDS,
    ) -> None:
        self._site = site
        self._client = client
        self._journal = journal
        self._desk = desk
        self._shelf = shelf
        self._workbench = workbench
        self._trainer = trainer
        self._base_models = base_models
        self._privacy = privacy
        self._metrics = metrics
        self._clock = clock
        self._before_turn = before_turn
        self._interrupt = interrupt
        self._manager = manager or ServiceManager()
        self._contact = contact or Contact(clock)
        self._most_poll_seconds = poll_seconds
        self._tag = ""
        self._declined: dict[str, tuple[str, datetime]] = {}

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set. Raises CertificateRevoked when the federation has put this site out."""
        failures = 0
        poll_seconds = self._poll_seconds()
        threading.Thread(target=self._interrupt_when, args=(stop,), name="stop-watch", daemon=True).start()
        try:
            while not stop.is_set():
                self._manager.alive()
                try:
                    is_done = self.turn(poll_seconds)
                except CertificateRevoked:
                    raise
                except AccordError as error:
                    if stop.is_set():
                        break  # what failed is the poll that was interrupted
                    with self._manager.slow(_MOST_LOOK_SECONDS):
                        why = self._contact.failed(error)
                    self._tell(f"cannot reach the coordinator, trying again: {why.reason}: {why.message}")
                    self._metrics.failed(why)
                    is_done = False
                except Exception as error:
                    log.exception("daemon_turn_broken")
                    self._metrics.failed(AccordError(type(error).__name__))
                    is_done = False
                failures = 0 if is_done else failures + 1
                if failures:
                    # What is unfinished is asked for again at once, not when something has changed.
                    self._tag = ""
                    self._pause(stop, BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS)) - 1])
        finally:
            with self._manager.slow(_MOST_TASK_SECONDS):
                self._workbench.stop()

    def _poll_seconds(self) -> int:
        watchdog = self._manager.watchdog_seconds
        most = self._most_poll_seconds
        return most if watchdog is None else max(1, min(most, int(watchdog / POLLS_PER_WATCHDOG)))

    def _pause(self, stop: threading.Event, seconds: float) -> None:
        """Wait between two tries, by pieces that the watchdog does not take for a standstill."""
        piece = self._poll_seconds()
        while seconds > 0 and not stop.wait(min(seconds, piece)):
            seconds -= piece
            self._manager.alive()

    def _tell(self, status: str) -> None:
        """What is going on. That the first try is over, whatever came of it, is what makes a start complete: a site
        whose coordinator is away has started well."""
        self._manager.ready(status)
        self._manager.status(status)

    def _interrupt_when(self, stop: threading.Event) -> None:
        """End the long poll that the loop may be waiting in."""
        stop.wait()
        # First: what is told of its end over a line that is closed below is no failure of the work.
        self._workbench.ask_to_stop()
        self._interrupt()

    def turn(self, wait_seconds: int) -> bool:
        """Ask once and do all that the answer says. False if something has to be tried again."""
        self._before_turn()
        asked = self._clock.now()
        answer = self._client().assignments(self._tag, wait_seconds=wait_seconds)
        self._metrics.last_contact_seconds.set(self._clock.now().timestamp())
        self._contact.answered(answer.server_time, asked=asked)
        self._tag = answer.tag
        if answer.not_understood:
            log.error("assignment_not_understood", count=answer.not_understood, software_version=software_version())
        standing = self._standing(answer)
        self._tell(standing)
        done = [self._do(task) for task in answer.tasks]
        if self._workbench.wait(0):  # a round that is being prepared tells its own progress
            self._manager.status(standing)
        return all(done)

    def _standing(self, answer: Assignments) -> str:
        """How this site and the coordinator get on, for the status line."""
        if answer.not_understood:
            return "the coordinator asks for something that this version does not know: upgrade accord here"
        if wrong := self._contact.clock_wrong:
            return f"in touch with the coordinator, but {wrong.reason}: {wrong.message}"
        return "in touch with the coordinator"

    def wait_for_preparation(self, seconds: float | None = None) -> bool:
        """Return when no round is being prepared any more; False if one still is after `seconds`."""
        return self._workbench.wait(seconds)

    def stop_preparation(self) -> None:
        """End what is being prepared; the journal and the trainer go on from there when it is asked for again."""
        self._workbench.stop()

    def _do(self, task: Assignment) -> bool:
        """True when the task is done, or not to be done at all."""
        name, number = type(task).__name__, getattr(task, "round", None)
        if type(task) in _DOING:
            where = f"run {task.run}" if number is None else f"run {task.run}, round {number}"
            self._manager.status(f"{where}: {_DOING[type(task)]}")
        most_seconds = _MOST_REVIEW_SECONDS if isinstance(task, ReviewRun) else _MOST_TASK_SECONDS
        with (
            bound(**{key: value for key, value in (("run", task.run), ("round", number)) if value}, task=name),
            tracing.span(f"task {name}", run=task.run, round_=number),
            self._manager.slow(most_seconds),
        ):
            try:
                self._metrics.assignments.labels(task=name).inc()
                with self._metrics.timed(_PHASES[type(task)]) if type(task) in _PHASES else nullcontext():
                    return self._dispatch(task)
            except _MOVED_ON as error:
                if isinstance(task, UploadUpdate) and isinstance(error, AlreadyExists):
                    # Another update of this site is there: this journal went back in time, and its update stays here.
                    self._workbench.give_up(task.run, task.round, error)
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
                    self._workbench.give_up(task.run, task.round, error)
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
                self._workbench.prepare(task, self._terms(task.run))
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
        """Check a run's plan with everything that this site knows; join it, or decline with every reason.

        A declined one is announced again with every answer, and is looked at again after a while: another policy comes
        with another daemon, but records or a base model may have come.
        """
        declined, at = self._declined.get(task.run, ("", self._clock.now()))
        if declined == task.plan_digest and timedelta() <= self._clock.now() - at < REVIEW_AGAIN:
            return
        plan_bytes = self._client().plan(task.run)
        digest = hashlib.sha256(plan_bytes).hexdigest()
        if digest != task.plan_digest:
            raise DigestMismatch(f"the plan of run {task.run} has digest {digest}, announced was {task.plan_digest}")
        self._refuse_swapped(task.run, digest)
        entry = RunEntry(task.run, plan_bytes, digest, b"", RunStanding.DECLINED, self._clock.now())
        try:
            charter = self._site.charter(self._client())
            entry = replace(entry, charter=charter.to_bytes())
            if (named := Plan.from_bytes(plan_bytes).run) != task.run:
                raise DigestMismatch(f"the plan that is shown for run {task.run} is of run {named[:40]!r}")
            model = self._check(plan_bytes, charter)
            self._refuse_used_id(task.run, plan_bytes)
        except _TRY_AGAIN:
            raise
        except AccordError as error:
            log.warning("run_declined", reason=error.reason, message=error.message)
            self._metrics.refused(error)
            self._journal.put_run(replace(entry, reason=error.reason, message=error.message))
            self._client().decline_run(task.run, reason=error.reason, message=error.message)
            self._declined[task.run] = (digest, self._clock.now())
            return
        self._journal.put_run(replace(entry, standing=RunStanding.JOINED))
        self._client().join_run(task.run, plan_digest=digest, base_model_digest=model)
        log.info("run_joined", plan_digest=digest)

    def _refuse_swapped(self, run: str, digest: str) -> None:
        """Raises DigestMismatch for another plan than this site has joined the run with.

        Masking keys are bound to the plan of their making, and training is not: under another weight cap for this site
        alone, its update would be most of the sum.
        """
        joined = self._journal.run(run)
        if joined is None or joined.standing is RunStanding.DECLINED or joined.plan_digest == digest:
            return
        error = DigestMismatch(
            f"this site has joined run {run} with plan {joined.plan_digest}, and is shown {digest}; the plan of a run "
            "never changes: create a run with another name"
        )
        self._client().decline_run(run, reason=error.reason, message=error.message)
        raise error

    def _refuse_used_id(self, run: str, plan_bytes: bytes) -> None:
        """Raises ProtocolViolation for the id of another run that this site has joined: keys are derived with it."""
        run_id = Plan.from_bytes(plan_bytes).run_id
        for entry in self._journal.runs():
            is_other = entry.run != run and entry.standing is not RunStanding.DECLINED
            if is_other and Plan.from_bytes(entry.plan).run_id == run_id:
                raise ProtocolViolation(f"run {run} has the id of run {entry.run}, which this site has joined before")

    def _check(self, plan_bytes: bytes, charter: Charter) -> str:
        """Raises whatever speaks against the plan; returns the digest of this site's own copy of the base model."""
        plan = Plan.from_bytes(plan_bytes)
        if plan.charter_digest != charter.digest:
            raise CharterInvalid(
                f"the plan is made under charter {plan.charter_digest}, this site holds {charter.digest}; compare "
                "digests with the other partners before pinning another"
            )
        guard.review(plan, policy=self._site.policy, charter=charter, participant=self._site.participant)
        self._privacy.review(plan)
        self._trainer.check(plan)
        return guard.check_base_model(plan, self._base_models.own()).digest

    def _terms(self, run: str) -> RunTerms:
        """What this site has agreed to. Raises OutOfTurn for a run that it has not joined.

        A run that the journal does not know, as one that is new or from a backup, is reviewed as if it were announced:
        the coordinator knows that this site has joined, and would wait for it in every round.
        """
        entry = self._journal.run(run)
        if entry is None:
            self._review(ReviewRun(run, hashlib.sha256(self._client().plan(run)).hexdigest()))
            entry = self._journal.run(run)
        if entry is None or entry.standing is RunStanding.DECLINED:
            raise OutOfTurn(f"this site has not joined run {run}")
        return RunTerms(
            Plan.from_bytes(entry.plan), bytes.fromhex(entry.plan_digest), Charter.from_bytes(entry.charter)
        )

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
            lambda: self._workbench.open_update(terms.plan, entry),
            on_sent=sent,
            on_masked=self._masked,
        )
        log.info("update_uploaded")

    def _masked(self, report: ClipReport) -> None:
        """Tell this site's people what the plan's bounds took from its update."""
        self._metrics.clipped_elements.inc(report.clipped_elements)
        self._metrics.clipped_norm_ratio.set(report.lost_norm)
        self._metrics.update_scale_ratio.set(report.scale)
        if not report.is_untouched:
            log.warning(
                "update_clipped",
                elements=report.clipped_elements,
                parameters=report.parameters,
                lost_norm=report.lost_norm,
                scale=report.scale,
            )

    def _finish_round(self, task: FinishRound) -> None:
        """Forget a round that is over, and earlier ones whose end was missed: keys, spools, training folders."""
        for entry in self._journal.open_rounds(task.run, up_to=task.round):
            state = task.state if entry.round == task.round else None
            self._forget_round(entry, state, result=(task.adapter or "") if state is not None else "")
            kept = {entry.adapter, *([task.adapter] if task.adapter else [])}
            self._shelf.prune(self._journal.adapters_in_use() | kept)

    def _forget_round(self, entry: RoundEntry, state: RoundState | None, *, result: str = "") -> None:
        """state: how the round has ended, None if this site never heard. result: the adapter that it published."""
        key = (entry.run, entry.round)
        was_in = entry.phase in (RoundPhase.MASKED, RoundPhase.BOUND, RoundPhase.REVEALED)
        if was_in and state is RoundState.SUCCEEDED:
            self._workbench.keep_control(self._terms(entry.run).plan, entry)
        self._workbench.clear(*key)
        self._desk.forget_round(*key, result=result)
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
        self._workbench.clear_run(task.run)
        self._shelf.fetch(task.adapter, Plan.from_bytes(entry.plan), on_bytes=self._metrics.download_bytes.inc)
        self._shelf.keep_final(task.adapter)
        self._shelf.prune(self._journal.adapters_in_use())
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
