"""Server optimisers against their formulas, written out in float64 element by element."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import PlanInvalid
from common.methods import Method
from common.strategies import MOMENTUM, SERVER_OPTIMIZERS, SQUARES, server_optimizer

DELTAS = [[0.01, -0.002, 0.0, 3.0], [0.005, 0.004, 0.0, -1.0], [-0.02, 0.001, 0.0, 0.5]]
START = [1.0, -1.0, 0.25, 0.0]


def method(name: str, **settings) -> Method:
    return replace(Method(server_optimizer=name), **{**SERVER_OPTIMIZERS[name].usual, **settings})


def run(chosen: Method, deltas=DELTAS, start=START):
    """Adapter and state after all rounds, as the coordinator makes them."""
    optimizer = server_optimizer(chosen)
    adapter = np.array(start, np.float32)
    state = tuple(np.full(len(start), value, np.float32) for value in optimizer.initial_state.values())
    for delta in deltas:
        adapter, state = optimizer.step(adapter, np.array(delta, np.float32), state)
        assert adapter.dtype == np.float32
        assert all(one.dtype == np.float32 for one in state)
    return adapter, state


def by_formula(chosen: Method, second_moment) -> list[float]:
    """Reddi et al. 2021, algorithm 2, without bias correction, v from tau^2."""
    found = []
    for at, theta in enumerate(START):
        m, v = 0.0, chosen.tau**2
        for delta in (row[at] for row in DELTAS):
            m = chosen.beta1 * m + (1 - chosen.beta1) * delta
            v = second_moment(v, delta**2)
            theta += chosen.server_learning_rate * m / (math.sqrt(v) + chosen.tau)
        found.append(theta)
    return found


def test_fedavg_adds_the_mean_delta():
    adapter, state = run(method("fedavg", server_learning_rate=0.5))
    assert state == ()
    assert adapter == pytest.approx(np.array(START) + 0.5 * np.sum(DELTAS, axis=0), rel=1e-6)


def test_fedavgm_is_a_heavy_ball_and_not_a_running_mean():
    adapter, (momentum,) = run(method("fedavgm", server_learning_rate=0.3, beta1=0.9))
    v, theta = np.zeros(4), np.array(START)
    for delta in DELTAS:
        v = 0.9 * v + np.array(delta)
        theta = theta + 0.3 * v
    assert adapter == pytest.approx(theta, rel=1e-6)
    assert momentum == pytest.approx(v, rel=1e-6)


@given(st.lists(st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=4))
def test_fedavgm_without_momentum_is_fedavg_to_the_bit(deltas):
    with_momentum, _ = run(method("fedavgm", server_learning_rate=0.7, beta1=0.0), deltas)
    without, _ = run(method("fedavg", server_learning_rate=0.7), deltas)
    assert with_momentum.tobytes() == without.tobytes()


def test_fedadam():
    chosen = method("fedadam", server_learning_rate=0.1, beta2=0.9)
    adapter, _ = run(chosen)
    assert adapter == pytest.approx(by_formula(chosen, lambda v, new: 0.9 * v + 0.1 * new), rel=1e-5)


def test_fedyogi():
    chosen = method("fedyogi", server_learning_rate=0.1, beta2=0.9)
    adapter, _ = run(chosen)

    def yogi(v, new):
        return v - 0.1 * new * (0 if v == new else math.copysign(1, v - new))

    assert adapter == pytest.approx(by_formula(chosen, yogi), rel=1e-5)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_fedadagrad(beta1):
    chosen = method("fedadagrad", server_learning_rate=0.1, beta1=beta1)
    adapter, _ = run(chosen)
    assert adapter == pytest.approx(by_formula(chosen, lambda v, new: v + new), rel=1e-5)


@pytest.mark.parametrize("name", sorted(SERVER_OPTIMIZERS))
def test_a_chunk_is_as_good_as_the_whole(name):
    chosen = method(name)
    whole, whole_state = run(chosen)
    parts = [run(chosen, [row[part] for row in DELTAS], START[part]) for part in (slice(0, 3), slice(3, 4))]
    assert np.concatenate([adapter for adapter, _ in parts]).tobytes() == whole.tobytes()
    for at, vector in enumerate(whole_state):
        assert np.concatenate([state[at] for _, state in parts]).tobytes() == vector.tobytes()


@pytest.mark.parametrize("name", sorted(SERVER_OPTIMIZERS))
def test_inputs_are_left_as_they_are(name):
    optimizer = server_optimizer(method(name))
    adapter, delta = np.ones(3, np.float32), np.full(3, 0.5, np.float32)
    state = tuple(np.full(3, 0.25, np.float32) for _ in optimizer.initial_state)
    optimizer.step(adapter, delta, state)
    assert (adapter == 1).all()
    assert (delta == 0.5).all()
    assert all((one == 0.25).all() for one in state)


def test_state_is_what_the_optimiser_needs_and_no_more():
    states = {name: set(server_optimizer(method(name)).initial_state) for name in SERVER_OPTIMIZERS}
    assert states == {
        "fedavg": set(),
        "fedavgm": {MOMENTUM},
        "fedadam": {MOMENTUM, SQUARES},
        "fedyogi": {MOMENTUM, SQUARES},
        "fedadagrad": {SQUARES},
    }
    assert server_optimizer(method("fedadam", tau=0.25)).initial_state[SQUARES] == 0.0625


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"server_optimizer": "fedmagic"}, "known: fedavg, fedavgm, fedadam, fedyogi, fedadagrad"),
        ({"beta1": 0.9}, "beta1 is not a setting of fedavg, set 0"),
        ({"server_optimizer": "fedavgm", "tau": 0.1}, "tau is not a setting of fedavgm"),
        ({"server_optimizer": "fedavgm", "beta1": 1.0}, "beta1 of fedavgm must be from 0 up to"),
        ({"server_optimizer": "fedadam", "beta1": 0.9, "beta2": 0.99}, "tau of fedadam must be over 0"),
        ({"server_optimizer": "fedyogi", "beta1": 0.9, "beta2": -0.1, "tau": 0.1}, "beta2 of fedyogi must be"),
        ({"server_optimizer": "fedadagrad", "beta2": 0.99, "tau": 0.1}, "beta2 is not a setting of fedadagrad"),
        ({"server_optimizer": "fedadam", "beta1": math.nan, "beta2": 0.9, "tau": math.inf}, "tau of fedadam must be"),
    ],
)
def test_settings_that_do_not_fit_the_optimiser_are_refused(settings, message):
    with pytest.raises(PlanInvalid, match=message):
        server_optimizer(Method(**settings))
