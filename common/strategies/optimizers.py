"""Server optimisers: how the mean delta, as a pseudo-gradient, moves the global adapter.

Reddi et al. 2021 (Adaptive Federated Optimization, arXiv 2003.00295), algorithms 1 and 2, and Hsu et al. 2019
(Measuring the Effects of Non-Identical Data Distribution, arXiv 1909.06335, section 4). No bias correction, as in
algorithm 2: its v begins at tau^2 and not at nothing. So an element's state depends on that element's own deltas alone,
and where only some tensors move in a round (RoLoRA), the others' state rests with them and needs no count of rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, Self

import numpy as np

from common.adapters import FlatVector
from common.errors import PlanInvalid
from common.methods import Method

MOMENTUM: Final = "momentum"
SQUARES: Final = "squares"
State = tuple[FlatVector, ...]
SecondMoment = Callable[[FlatVector, FlatVector, float], FlatVector]


class ServerOptimizer(Protocol):
    """Works element by element, so a chunk of the vectors is as good as the whole."""

    @property
    def initial_state(self) -> Mapping[str, float]:
        """Names of the state vectors, in the order in which `step` takes them, each with its elements' first value."""
        ...

    def step(self, adapter: FlatVector, mean_delta: FlatVector, state: State) -> tuple[FlatVector, State]:
        """The next global adapter and the next state; all float32 of one length, inputs unchanged."""
        ...


@dataclass(frozen=True, slots=True)
class FedAvg:
    """theta + eta * mean delta (McMahan et al. 2017, arXiv 1602.05629, algorithm 1 in pseudo-gradient form).

    With LoRA factors as theta and eta = 1 this is FedIT's aggregation (arXiv 2305.05644): A and B averaged separately,
    weighted by each participant's number of records.
    """

    learning_rate: float = 1.0

    @classmethod
    def of(cls, method: Method) -> Self:
        return cls(method.server_learning_rate)

    @property
    def initial_state(self) -> Mapping[str, float]:
        return {}

    def step(self, adapter: FlatVector, mean_delta: FlatVector, state: State) -> tuple[FlatVector, State]:
        return adapter + self.learning_rate * mean_delta, state


@dataclass(frozen=True, slots=True)
class FedAvgM:
    """Heavy ball: v <- b v + Delta, theta <- theta + eta v (Hsu et al. 2019, arXiv 1909.06335, section 4.3).

    Not an exponential mean: in the long run a steady Delta moves theta by eta Delta / (1 - b) a round.
    """

    learning_rate: float
    beta1: float

    @classmethod
    def of(cls, method: Method) -> Self:
        return cls(method.server_learning_rate, method.beta1)

    @property
    def initial_state(self) -> Mapping[str, float]:
        return {MOMENTUM: 0.0}

    def step(self, adapter: FlatVector, mean_delta: FlatVector, state: State) -> tuple[FlatVector, State]:
        momentum = self.beta1 * state[0] + mean_delta
        return adapter + self.learning_rate * momentum, (momentum,)


@dataclass(frozen=True, slots=True)
class Adaptive:
    """m <- b1 m + (1-b1) Delta, theta <- theta + eta m / (sqrt v + tau) (Reddi et al. 2021, algorithm 2).

    second_moment: v of v and Delta^2, which is all in which FedAdam, FedYogi and FedAdagrad differ. tau is how adaptive
    they are: where sqrt v is far below it, steps are in proportion to m. v begins at tau^2. Without b1 there is no m.
    """

    learning_rate: float
    beta1: float
    beta2: float
    tau: float
    second_moment: SecondMoment

    @property
    def initial_state(self) -> Mapping[str, float]:
        squares = {SQUARES: self.tau**2}
        return {MOMENTUM: 0.0, **squares} if self.beta1 else squares

    def step(self, adapter: FlatVector, mean_delta: FlatVector, state: State) -> tuple[FlatVector, State]:
        momentum = self.beta1 * state[0] + (1.0 - self.beta1) * mean_delta if self.beta1 else mean_delta
        squares = self.second_moment(state[-1], np.square(mean_delta), self.beta2)
        moved = self.learning_rate * momentum / (np.sqrt(squares) + np.float32(self.tau))
        after = (momentum, squares) if self.beta1 else (squares,)
        return np.asarray(adapter + moved, dtype=np.float32), after


def _adam(squares: FlatVector, new: FlatVector, beta2: float) -> FlatVector:
    return beta2 * squares + (1.0 - beta2) * new


def _yogi(squares: FlatVector, new: FlatVector, beta2: float) -> FlatVector:
    """Zaheer et al. 2018: v moves by its own rate towards Delta^2, however far away that is."""
    after: FlatVector = squares - (1.0 - beta2) * new * np.sign(squares - new)
    return after


def _adagrad(squares: FlatVector, new: FlatVector, beta2: float) -> FlatVector:
    return squares + new


@dataclass(frozen=True, slots=True)
class Kind:
    """A server optimiser by name. usual: of the settings that it has, where nothing is said (0 elsewhere)."""

    make: Callable[[Method], ServerOptimizer]
    usual: Mapping[str, float]


def _adaptive(
    second_moment: SecondMoment,
) -> Callable[[Method], Adaptive]:
    return lambda method: Adaptive(
        method.server_learning_rate, method.beta1, method.beta2, method.tau, second_moment=second_moment
    )


# For deltas of LoRA factors, of about a thousandth an element: an adaptive step is about the rate, whatever the delta.
_ADAPTIVE_USUAL: Final = {"server_learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.99, "tau": 1e-4}
SERVER_OPTIMIZERS: Final[Mapping[str, Kind]] = {
    "fedavg": Kind(FedAvg.of, {"server_learning_rate": 1.0}),
    "fedavgm": Kind(FedAvgM.of, {"server_learning_rate": 1.0, "beta1": 0.9}),
    "fedadam": Kind(_adaptive(_adam), _ADAPTIVE_USUAL),
    "fedyogi": Kind(_adaptive(_yogi), _ADAPTIVE_USUAL),
    # Its paper's default: the mean of all squares is memory enough.
    "fedadagrad": Kind(_adaptive(_adagrad), {"server_learning_rate": 1e-3, "beta1": 0.0, "tau": 1e-4}),
}


def server_optimizer(method: Method) -> ServerOptimizer:
    """The optimiser that a plan's method names. Raises PlanInvalid that lists what is unknown or does not fit it."""
    kind = SERVER_OPTIMIZERS.get(method.server_optimizer)
    if kind is None:
        raise PlanInvalid(
            f"server optimiser {method.server_optimizer[:40]!r} is not known; known: {', '.join(SERVER_OPTIMIZERS)}"
        )
    ranges = (
        ("beta1", method.beta1, 0.0 <= method.beta1 < 1.0, "from 0 up to, but not including, 1"),
        ("beta2", method.beta2, 0.0 <= method.beta2 < 1.0, "from 0 up to, but not including, 1"),
        ("tau", method.tau, math.isfinite(method.tau) and 0.0 < method.tau <= 1.0, "over 0 and at most 1"),
    )
    mistakes = [
        f"method.{name} of {method.server_optimizer} must be {bounds}"
        if name in kind.usual
        else f"method.{name} is not a setting of {method.server_optimizer}, set 0"
        for name, value, is_right, bounds in ranges
        if not (is_right if name in kind.usual else value == 0.0)
    ]
    if mistakes:
        raise PlanInvalid("; ".join(mistakes))
    return kind.make(method)
