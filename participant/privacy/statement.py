"""What this site has promised and spent, in words that somebody who answers for data protection can read.

Pure: ledger, plans and policy in, a value and its words out. Says what is covered, and as plainly what is not.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from common.plan import Plan
from participant.policy import PrivacyBounds
from participant.privacy.accounting import epsilon_of, epsilon_of_curve
from participant.privacy.desk import figures_curve, usual_delta
from participant.privacy.ledger import Entry

UNIT: Final = "one record, which is one row of this site's data file"
_METHOD: Final = (
    "Renyi differential privacy of the Poisson-subsampled Gaussian mechanism (DP-SGD, arXiv 1607.00133), accounted by "
    "Google's dp-accounting; neighbouring data sets differ in one record, added or removed"
)
_COVERED: Final = (
    (
        "every adapter update that this site has sent after private training, all of them together, and whatever is "
        "made of them later: sums, published adapters, and every model that is built on these"
    ),
    (
        "against the coordinator, the other sites and the public, whether they keep to the protocol or not, and "
        "whatever else they know"
    ),
)
_NOT_COVERED: Final = (
    (
        "a person with k rows has k times this epsilon, and more of delta: where one person may have many rows, join "
        "them into one, or count with that"
    ),
    "held-out records, which are never trained on: figures about them leave in sums with other sites', {figures}",
    (
        "numbers of training records (in all, by domain, and as this site's weight), which domains and tasks this site "
        "has, times, sizes, progress, and messages about failures"
    ),
    (
        "the choice of settings by looking at results, runs outside Accord, and what this site itself does with its "
        "records; every run inside Accord is counted"
    ),
    (
        "that this organisation takes part: the members of a federation are known, and no epsilon is claimed for a "
        "whole organisation"
    ),
)
_NO_BOUND: Final = (
    "These have no formal bound on what their adapters may remember of a record. Bounds on an update's size, few "
    "rounds and few steps make it less, and nothing here proves how much."
)
_SECAGG: Final = (
    "Secure aggregation additionally hides this site's single updates and figures from a coordinator that does not "
    "work together with too many members: it sees sums over several sites. That is not differential privacy, and no "
    "epsilon above depends on it but that of figures."
)
_WIDTH: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpent:
    """One run. epsilon_spent: of its updates so far, at its delta; epsilon_asked: of the plan, for the whole run."""

    run: str
    rounds: int
    steps: int
    records: int
    epsilon_asked: float | None
    epsilon_spent: float
    delta: float
    clip: float
    noise_multipliers: tuple[float, ...]
    sample_rates: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """data_set: the ledger's name. epsilon, delta: of all private training on it. budget: None where none is set.

    figures_epsilon: of all noisy figures about held-out records, at the same delta; it counts on honest members.
    unprotected_runs: runs that were joined without private training.
    """

    data_set: str
    unit: str
    epsilon: float
    delta: float
    budget: float | None
    left: float | None
    runs: tuple[RunSpent, ...]
    unprotected_runs: tuple[str, ...]
    figures_rounds: int
    figures_epsilon: float
    method: str
    covered: tuple[str, ...]
    not_covered: tuple[str, ...]


def statement_of(
    *,
    training: Sequence[Entry],
    figures: Sequence[Entry],
    plans: Iterable[Plan],
    bounds: PrivacyBounds | None,
    data_set: str,
    records: int | None,
) -> Statement:
    """training, figures: of the ledger. plans: of the runs that this site has joined. records: in the file now, None
    where it cannot be read: then the newest entry's."""
    known = {plan.run_id: plan for plan in plans}
    count = records or max((entry.records for entry in training), default=1)
    delta = usual_delta(count) if bounds is None or bounds.delta is None else bounds.delta
    epsilon = epsilon_of([entry.private_steps for entry in training], delta=delta)
    noise = (
        "with noise: see figures below"
        if figures
        else "without noise, and without a guarantee for single held-out records"
    )
    return Statement(
        data_set=data_set,
        unit=UNIT,
        epsilon=epsilon,
        delta=delta,
        budget=None if bounds is None else bounds.epsilon,
        left=None if bounds is None else max(bounds.epsilon - epsilon, 0.0),
        runs=tuple(
            _run_spent([entry for entry in training if entry.run_id == run_id], known.get(run_id))
            for run_id in dict.fromkeys(entry.run_id for entry in training)
        ),
        unprotected_runs=tuple(sorted(plan.run for plan in known.values() if plan.privacy.training is None)),
        figures_rounds=len(figures),
        figures_epsilon=epsilon_of_curve(figures_curve(figures), delta=delta),
        method=_METHOD,
        covered=_COVERED,
        not_covered=tuple(text.format(figures=noise) for text in _NOT_COVERED),
    )


def words_of(found: Statement) -> str:
    """The statement as text."""
    parts = [
        f"Privacy of single records in the data set {found.data_set!r}",
        f"Unit: {found.unit}.",
        _guarantee(found),
        _budget(found),
        *(_words_of_run(run) for run in found.runs),
        _filled(f"How it is computed: {found.method}."),
        _listed("Covered:", found.covered),
        _listed("Not covered:", found.not_covered),
    ]
    if found.figures_rounds:
        parts.append(_words_of_figures(found))
    if found.unprotected_runs:
        parts.append(_filled(f"Runs without private training: {', '.join(found.unprotected_runs)}. {_NO_BOUND}"))
    return "\n\n".join([*parts, _filled(_SECAGG)])


def _guarantee(found: Statement) -> str:
    if not found.runs:
        return _filled("No private training has been counted. Nothing is promised about records that were trained on.")
    return _filled(
        f"All updates that this site has sent after private training are, together, ({found.epsilon:.2f}, "
        f"{found.delta:.2g})-differentially private with respect to adding or removing one record of the training set. "
        "What that means: whatever anybody makes of these updates, now or later, would have come out with nearly the "
        f"same chance without any one record: at most {_factor(found.epsilon)} times more or less likely, but for a "
        f"chance of {found.delta:.2g}."
    )


def _budget(found: Statement) -> str:
    if found.budget is None or found.left is None:
        return "This site's policy sets no budget; policy.toml can ([privacy] epsilon = ...)."
    return f"Budget of this site, over all runs: epsilon {found.budget:g}; {found.left:.2f} is left."


def _words_of_run(run: RunSpent) -> str:
    asked = "its plan is not known here" if run.epsilon_asked is None else f"its plan's is {run.epsilon_asked:g}"
    head = (
        f"Run {run.run}: epsilon {run.epsilon_spent:.2f} at delta {run.delta:.2g} so far ({asked}); {run.rounds} "
        f"rounds, {run.steps} steps, {run.records} records."
    )
    how = (
        f"Each record is in a step with probability {_shown(run.sample_rates)}, its gradient's norm is cut to "
        f"{run.clip:g}, and noise of {_shown(run.noise_multipliers)} times that, drawn with the operating system's "
        "randomness, is added to every step's sum."
    )
    return _filled(f"{head} {how}")


def _words_of_figures(found: Statement) -> str:
    return _filled(
        f"Figures: the sums of {found.figures_rounds} rounds' figures, with Skellam noise from every member, are "
        f"together ({found.figures_epsilon:.2f}, {found.delta:.2g})-differentially private with respect to adding or "
        "removing one held-out record. That counts on the masking protocol and on as many members as it asks for being "
        "honest and staying to the end; those who work with the coordinator add nothing to it."
    )


def _listed(head: str, points: Sequence[str]) -> str:
    lines = (textwrap.fill(text, _WIDTH, initial_indent="  - ", subsequent_indent="    ") for text in points)
    return "\n".join([head, *lines])


def _filled(text: str) -> str:
    return textwrap.fill(text, _WIDTH)


def _run_spent(entries: Sequence[Entry], plan: Plan | None) -> RunSpent:
    terms = plan.privacy.training if plan is not None else None
    records = entries[-1].records
    delta = usual_delta(records) if terms is None or terms.delta is None else terms.delta
    return RunSpent(
        run=entries[-1].run,
        rounds=len(entries),
        steps=sum(entry.steps for entry in entries),
        records=records,
        epsilon_asked=None if terms is None else terms.epsilon,
        epsilon_spent=epsilon_of([entry.private_steps for entry in entries], delta=delta),
        delta=delta,
        clip=max(entry.clip for entry in entries),
        noise_multipliers=tuple(sorted({entry.noise_multiplier for entry in entries})),
        sample_rates=tuple(sorted({entry.sample_rate for entry in entries})),
    )


def _factor(epsilon: float) -> str:
    """e to the epsilon, as a person reads it."""
    factor = math.exp(epsilon)
    return f"{factor:.2f}" if factor < 10 else f"{factor:,.0f}"


def _shown(values: Sequence[float]) -> str:
    low, high = f"{values[0]:.4g}", f"{values[-1]:.4g}"
    return low if low == high else f"{low} to {high}"
