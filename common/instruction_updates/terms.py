"""A plan's terms of updating, and what one update hands to the next: values, and no arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from common import jsonform
from common.errors import PlanInvalid
from common.instructions import DomainShare, Task


class Reference(StrEnum):
    """What a site alone reaches. LOCAL: each site trains an adapter on its own records once in a run, and measures it.

    GIVEN: the plan's domains say it (0: the loss itself is the regret, as in plain group DRO).
    """

    LOCAL = "local"
    GIVEN = "given"


class Start(StrEnum):
    """The domains' first shares. ROWS: as their records are many. EQUAL: all the same."""

    ROWS = "rows"
    EQUAL = "equal"


@dataclass(frozen=True, slots=True)
class Updates:
    """How the instruction set is updated; a plan without this leaves it as it is.

    rows: held-out records by which a site measures each candidate template; every: rounds from one such measurement to
    the next. eta, smoothing (c), box (shares are from 1/(box G) to box/G), momentum: of the step of the shares.
    template_rate: of Hedge, 0 for sqrt(8 ln|T| / evaluations) / B. least_probability: candidates below are dropped.
    switch_errors: standard errors by which another candidate must be better, `switch_streak` evaluations in a row, to
    be served. reference: what a site alone reaches; reference_steps: optimiser steps of its own adapter, 0 for those
    of the whole run.
    """

    rows: int = 32
    every: int = 1
    eta: float = 0.5
    smoothing: float = 0.05
    box: float = 4.0
    momentum: float = 0.5
    template_rate: float = 0.0
    least_probability: float = 0.02
    switch_errors: float = 2.0
    switch_streak: int = 2
    reference: Reference = Reference.LOCAL
    reference_steps: int = 0
    start: Start = Start.ROWS

    def check(self) -> None:
        """Raises PlanInvalid that lists every mistake."""
        rules = (
            (1 <= self.rows <= 100_000, "rows must be 1 to 100000"),
            (self.every >= 1, "every must be at least 1"),
            (0.0 < self.eta <= 10.0, "eta must be over 0 and at most 10"),
            (0.0 <= self.smoothing < 1.0, "smoothing must be from 0 up to 1"),
            (1.0 < self.box <= 100.0, "box must be over 1 and at most 100"),
            (0.0 <= self.momentum < 1.0, "momentum must be from 0 up to 1"),
            (0.0 <= self.template_rate <= 100.0, "template_rate must be 0 to 100"),
            (0.0 <= self.least_probability <= 0.1, "least_probability must be 0 to 0.1"),
            (0.0 <= self.switch_errors <= 100.0, "switch_errors must be 0 to 100"),
            (self.switch_streak >= 1, "switch_streak must be at least 1"),
            (self.reference_steps >= 0, "reference_steps must not be negative"),
        )
        mistakes = [f"updates: {text}" for holds, text in rules if not holds]
        if mistakes:
            raise PlanInvalid("; ".join(mistakes))

    def measures_templates(self, round_: int) -> bool:
        """Whether candidate templates are measured in a round; the first is one."""
        return (round_ - 1) % self.every == 0


@dataclass(frozen=True, slots=True)
class DomainLoss:
    """A domain's mean loss and its standard error, in nats: what the next measurement is compared with."""

    domain: str
    loss: float
    error: float


@dataclass(frozen=True, slots=True)
class Odds:
    """One candidate's probability, and whether it was served."""

    task: Task
    domain: str
    name: str
    probability: float
    is_served: bool


@dataclass(frozen=True, slots=True)
class Mixture:
    """What an update may change in an instruction set: so that it can be taken back."""

    shares: tuple[DomainShare, ...]
    odds: tuple[Odds, ...]


@dataclass(frozen=True, slots=True)
class Streak:
    """So many evaluations in a row a candidate was clearly better than the served one."""

    task: Task
    domain: str
    name: str
    length: int


@dataclass(frozen=True, slots=True)
class UpdateState:
    """What one update hands to the next. excess_*: count, mean and sum of squared deviations of all regrets so far."""

    excess_count: int = 0
    excess_mean: float = 0.0
    excess_squares: float = 0.0
    streaks: tuple[Streak, ...] = ()
    losses: tuple[DomainLoss, ...] = ()
    history: tuple[Mixture, ...] = ()
    rollbacks: int = 0


@dataclass(frozen=True, slots=True)
class NextRound:
    """What follows from a round for the one after it: the instruction set (canonical JSON), and the state."""

    instruction_set: str
    state: UpdateState = UpdateState()

    def to_json(self) -> str:
        return jsonform.encode(self, NextRound)
