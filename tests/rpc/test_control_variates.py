"""SCAFFOLD in whole runs: what corrects each site's steps, kept over rounds, kills and rounds without the site."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from participant.trainer import Preparation
from tests.rpc.federation import Federation, MadeUpTrainer, delta_of

# Close about the made-up deltas, so that the fixed point's steps are small beside them.
NARROW: Mapping[str, Any] = {"element_clip": 0.02, "weight_cap": 100, "control_variates": True}
Corrections = dict[str, dict[int, NDArray[np.float32]]]


@pytest.fixture
def corrections(federation: Federation) -> Corrections:
    """Three sites that note what they are told to correct their steps by, by name and round."""
    found: Corrections = {}

    def noting(name: str) -> Callable[[Preparation], None]:
        def note(work: Preparation) -> None:
            if work.correction is not None:
                found.setdefault(name, {})[work.round] = np.fromfile(work.correction, dtype="<f4")

        return note

    for index in range(3):
        name = f"site-{index}"
        federation.add_site(name, MadeUpTrainer(delta_of(index, size=0.01), spoil=noting(name)))
    return found


def of(federation: Federation, name: str) -> list[str]:
    """The control variates that a site keeps."""
    return sorted(path.name for path in (federation.sites[name].state / "controls" / "run").glob("*"))


def end(federation: Federation) -> None:
    federation.turn_until(lambda: federation.state() == "succeeded")


def test_corrections_begin_at_nothing_and_cancel_over_the_sites(
    federation: Federation, corrections: Corrections
) -> None:
    federation.create_run(rounds=3, **NARROW)
    end(federation)

    for name in corrections:
        assert set(corrections[name]) == {1, 2, 3}
        assert not corrections[name][1].any()
    for round_ in (2, 3):
        own = [corrections[name][round_] for name in sorted(corrections)]
        largest = max(np.abs(one).max() for one in own)
        assert largest > 0.1
        # The mean step is read from adapters that were summed in fixed point.
        assert np.abs(sum(own)).max() < 0.01 * largest


def test_control_variates_go_with_their_run(federation: Federation, corrections: Corrections) -> None:
    federation.create_run(rounds=2, **NARROW)
    federation.turn_until(lambda: federation.run()["round"] == 2)
    federation.turn()
    assert of(federation, "site-0") == ["1.f32"]

    end(federation)
    federation.turn()

    assert not (federation.sites["site-0"].state / "controls" / "run").exists()


def test_a_site_that_is_killed_while_it_ends_a_round_goes_on_with_the_variate_of_that_round(
    federation: Federation, corrections: Corrections, monkeypatch
) -> None:
    federation.create_run(rounds=2, **NARROW)
    killed = federation.sites["site-1"]

    def die(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(killed.daemon._desk, "forget_round", die)
    with pytest.raises(KeyboardInterrupt):
        end(federation)
    assert of(federation, "site-1") == ["1.f32"]
    federation.reopen_site("site-1")

    end(federation)

    own = [corrections[name][2] for name in sorted(corrections)]
    assert np.abs(sum(own)).max() < 0.01 * max(np.abs(one).max() for one in own)


def test_a_run_without_control_variates_keeps_none(federation: Federation, corrections: Corrections) -> None:
    federation.create_run(rounds=1)
    end(federation)

    assert not corrections
    assert not (federation.sites["site-0"].state / "controls").exists()


def test_a_server_optimiser_that_hides_the_mean_step_is_refused(federation: Federation) -> None:
    federation.add_sites(3)
    with pytest.raises(Exception, match="take fedavg"):
        federation.create_run(control_variates=True, server_optimizer="fedadam")
