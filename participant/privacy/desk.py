"""Keeps the site's privacy budget: what a run may cost, what a round's job is allowed, and the ledger of it all.

Asked before a run is joined and before each round's work begins; nothing that a plan says can loosen the policy. Knows
nothing of torch and of masks.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Final

from common.clock import Clock
from common.durable import OWNER_ONLY, write_durably
from common.errors import DataInvalid, InvalidArgument, PolicyRefusal, StorageFailed
from common.plan import Plan
from common.privacy import PrivateTraining
from common.states import RoundKind
from participant.policy import PrivacyBounds
from participant.privacy.accounting import Curve, PrivateSteps, epsilon_of, epsilon_of_curve, noise_multiplier_for
from participant.privacy.ledger import Entry, EntryKind, Ledger
from participant.privacy.skellam import RandomBytes, release_curve, touched_parts
from participant.training.job import NOISE_KEY_BYTES, NOISE_KEY_FILE, PrivateSettings

# What is proved is for the noise that was calibrated; a sum of the same terms in another order may differ by this much.
_ROUNDING: Final = 1e-6


@dataclass(frozen=True, slots=True)
class RunTerms:
    """A plan's terms as they come out at this site. sample_rate: of every record in every step.

    epsilon: the plan's, or this site's own where that is less. rounds: that the noise is sized for.
    """

    epsilon: float
    delta: float
    clip: float
    sample_rate: float
    steps_per_round: int
    rounds: int
    records: int

    @classmethod
    def of(cls, plan: Plan, terms: PrivateTraining, *, records: int, bounds: PrivacyBounds | None) -> RunTerms:
        own = bounds.most_epsilon_in_a_run if bounds is not None else None
        return cls(
            epsilon=terms.epsilon if own is None else min(own, terms.epsilon),
            delta=usual_delta(records) if terms.delta is None else terms.delta,
            clip=terms.clip,
            sample_rate=min(1.0, plan.training.batch_size / records),
            steps_per_round=plan.training.steps_per_round,
            rounds=plan.rounds + terms.spare_rounds,
            records=records,
        )

    def noise(self, spent: Sequence[Entry]) -> float:
        """Noise multiplier of the run's next round, sized for all that are left. spent: this run's entries.

        Raises PolicyRefusal if none is left, or no noise would do.
        """
        left = self.rounds - len(spent)
        if left < 1:
            raise PolicyRefusal(
                f"all {self.rounds} private rounds that this run's epsilon of {self.epsilon:g} was sized for are used; "
                "a run with more spare_rounds has more"
            )
        before = [entry.private_steps for entry in spent]
        steps = left * self.steps_per_round
        if spent:
            as_before = PrivateSteps(self.sample_rate, spent[-1].noise_multiplier, steps)
            if epsilon_of([*before, as_before], delta=self.delta) <= self.epsilon * (1 + _ROUNDING):
                return spent[-1].noise_multiplier
        try:
            return noise_multiplier_for(
                epsilon=self.epsilon, delta=self.delta, sample_rate=self.sample_rate, steps=steps, spent=before
            )
        except InvalidArgument as error:
            raise PolicyRefusal(f"this run's epsilon is used up at this site: {error.message}") from error


@dataclass(frozen=True, slots=True)
class Spent:
    """Epsilon that is spent on the data set so far, of training and of figures, and the budgets, None where none is."""

    training: float
    figures: float
    training_budget: float | None
    figures_budget: float | None


class PrivacyDesk:
    """Answers for one data set. For the daemon's threads.

    bounds: the policy's, None where it sets no budget. count_records: of the training file, usable ones; raises
    DataInvalid. random_bytes: the operating system's.
    """

    def __init__(
        self,
        *,
        bounds: PrivacyBounds | None,
        ledger: Ledger,
        count_records: Callable[[], int],
        clock: Clock,
        random_bytes: RandomBytes,
    ) -> None:
        self._bounds = bounds
        self._ledger = ledger
        self._count_records = count_records
        self._clock = clock
        self._random_bytes = random_bytes

    def review(self, plan: Plan) -> None:
        """Raises PolicyRefusal if the whole run would not stay within the site's budget: better said before joining."""
        terms = plan.privacy.training
        if terms is not None:
            run = RunTerms.of(plan, terms, records=self._count_records(), bounds=self._bounds)
            spent = self._of_run(plan)
            noise = run.noise(spent)
            steps = (run.rounds - len(spent)) * run.steps_per_round
            self._check_budget(PrivateSteps(run.sample_rate, noise, steps), records=run.records, what="the whole run")
        if plan.privacy.metrics is not None:
            releases = plan.rounds + 1
            self._check_figures(releases * _figures_curve(plan), what=f"{releases} rounds' figures")

    def begin(self, plan: Plan, *, round_: int, kind: RoundKind, job: Path) -> PrivateSettings | None:
        """What a round's job is to train with, written into the ledger before it is told; None for ordinary training.

        job: the job's folder, which gets the key of its noise. Called again for the same folder it answers the same and
        spends nothing: the same key gives the same noise. Raises PolicyRefusal if the budget does not allow the round.
        """
        if plan.privacy.metrics is not None:
            self._begin_figures(plan, round_)
        terms = plan.privacy.training
        if terms is None or kind is not RoundKind.TRAIN:
            return None
        name = _job_name(_key(job / NOISE_KEY_FILE, self._random_bytes))
        begun = next((entry for entry in self._ledger.training() if entry.job == name), None)
        if begun is None:
            run = RunTerms.of(plan, terms, records=self._count_records(), bounds=self._bounds)
            noise = run.noise(self._of_run(plan))
            steps = PrivateSteps(run.sample_rate, noise, run.steps_per_round)
            self._check_budget(steps, records=run.records, what=f"round {round_}")
            begun = self._entry(EntryKind.TRAINING, plan, round_, name, records=run.records, steps=steps, clip=run.clip)
            self._ledger.append(begun)
        return PrivateSettings(
            sample_rate=begun.sample_rate,
            noise_multiplier=begun.noise_multiplier,
            clip=begun.clip,
            records=begun.records,
        )

    def give_back(self, run: str, round_: int, *, job: Path) -> None:
        """A round is over and nothing of its job has left the site: it costs nothing. Its key goes first, for good."""
        key = job / NOISE_KEY_FILE
        try:
            name = _job_name(key.read_bytes())
            key.unlink()
        except OSError:
            return
        with contextlib.suppress(StorageFailed):  # then it counts as spent: too much is counted rather than too little
            begun = next((entry for entry in self._ledger.training() if entry.job == name), None)
            if begun is not None:
                at = self._clock.now().astimezone(UTC).isoformat(timespec="seconds")
                self._ledger.append(
                    Entry(kind=EntryKind.RETURNED, at=at, run=run, run_id=begun.run_id, round=round_, job=name)
                )

    def spent(self) -> Spent:
        """What the ledger comes to, at the delta of the budgets."""
        bounds, training, figures = self._bounds, self._ledger.training(), self._ledger.figures()
        delta = bounds.delta if bounds is not None else None
        if delta is None:
            delta = usual_delta(self._records_now(training)) if training or figures else 1.0
        return Spent(
            training=epsilon_of([entry.private_steps for entry in training], delta=delta) if training else 0.0,
            figures=epsilon_of_curve(figures_curve(figures), delta=delta) if figures else 0.0,
            training_budget=bounds.epsilon if bounds is not None else None,
            figures_budget=bounds.figures_epsilon if bounds is not None else None,
        )

    # --- how -----------------------------------------------------------------------------------------------------

    def _records_now(self, training: Sequence[Entry]) -> int:
        try:
            return self._count_records()
        except DataInvalid:
            return max((entry.records for entry in training), default=0)

    def _of_run(self, plan: Plan) -> tuple[Entry, ...]:
        return tuple(entry for entry in self._ledger.training() if entry.run_id == plan.run_id)

    def _check_budget(self, more: PrivateSteps, *, records: int, what: str) -> None:
        bounds = self._bounds
        if bounds is None:
            return
        delta = usual_delta(records) if bounds.delta is None else bounds.delta
        spent = [entry.private_steps for entry in self._ledger.training()]
        before, after = epsilon_of(spent, delta=delta), epsilon_of([*spent, more], delta=delta)
        if after > bounds.epsilon * (1 + _ROUNDING):
            raise PolicyRefusal(
                f"this site's privacy budget for {bounds.data_set} is epsilon {bounds.epsilon:g} at delta {delta:.2g}; "
                f"{before:.2f} is spent, {max(bounds.epsilon - before, 0.0):.2f} is left, and {what} would bring it to "
                f"{after:.2f}",
                metadata={"fields": "privacy.epsilon"},
            )

    def _begin_figures(self, plan: Plan, round_: int) -> None:
        name = f"figures of {plan.run_id}/{round_}"
        if any(entry.job == name for entry in self._ledger.figures()):
            return
        self._check_figures(_figures_curve(plan), what=f"round {round_}'s figures")
        noise = plan.privacy.metrics
        if noise is not None:
            parts = touched_parts(noise, plan.masking.metric_groups)
            entry = self._entry(EntryKind.FIGURES, plan, round_, name, multiplier=noise.multiplier, parts=parts)
            self._ledger.append(entry)

    def _check_figures(self, more: Curve, *, what: str) -> None:
        bounds = self._bounds
        if bounds is None or bounds.figures_epsilon is None:
            return
        delta = usual_delta(self._count_records()) if bounds.delta is None else bounds.delta
        spent = figures_curve(self._ledger.figures())
        before, after = epsilon_of_curve(spent, delta=delta), epsilon_of_curve(spent + more, delta=delta)
        if after > bounds.figures_epsilon * (1 + _ROUNDING):
            raise PolicyRefusal(
                f"this site's privacy budget for figures of {bounds.data_set} is epsilon {bounds.figures_epsilon:g} at "
                f"delta {delta:.2g}; {before:.2f} is spent, and {what} would bring it to {after:.2f}",
                metadata={"fields": "privacy.figures_epsilon"},
            )

    def _entry(
        self,
        kind: EntryKind,
        plan: Plan,
        round_: int,
        job: str,
        *,
        records: int = 0,
        steps: PrivateSteps | None = None,
        clip: float = 0.0,
        multiplier: float = 0.0,
        parts: tuple[int, ...] = (),
    ) -> Entry:
        return Entry(
            kind=kind,
            at=self._clock.now().astimezone(UTC).isoformat(timespec="seconds"),
            run=plan.run,
            run_id=plan.run_id,
            round=round_,
            job=job,
            records=records,
            sample_rate=0.0 if steps is None else steps.sample_rate,
            noise_multiplier=multiplier if steps is None else steps.noise_multiplier,
            clip=clip,
            steps=0 if steps is None else steps.steps,
            parts=parts,
        )


def usual_delta(records: int) -> float:
    """1 / (10 n), where neither plan nor policy says: well under one record in all."""
    return 1.0 / (10.0 * max(records, 1))


def figures_curve(entries: Sequence[Entry]) -> Curve:
    """What these rounds' figures tell of one held-out record together, over the accountant's orders."""
    return sum((release_curve(entry.noise_multiplier, entry.parts) for entry in entries), release_curve(1.0, ()))


def _figures_curve(plan: Plan) -> Curve:
    noise = plan.privacy.metrics
    if noise is None:
        return release_curve(1.0, ())
    return release_curve(noise.multiplier, touched_parts(noise, plan.masking.metric_groups))


def _key(file: Path, random_bytes: RandomBytes) -> bytes:
    """The secret that a job's noise is drawn from, made once, for its owner alone."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        pass
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        key = random_bytes(NOISE_KEY_BYTES)
        write_durably(file, key, mode=OWNER_ONLY)
    except OSError as error:
        raise StorageFailed(f"cannot write {file}: {error.strerror}") from error
    return key


def _job_name(key: bytes) -> str:
    """Names a key and tells nothing of it."""
    return hashlib.sha256(b"accord/private-job/v1\x00" + key).hexdigest()[:32]
