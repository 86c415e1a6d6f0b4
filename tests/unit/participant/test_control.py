"""Control variates from two global adapters, against SCAFFOLD as its paper has it, with its second sum."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from common.adapters import create_adapter_file
from common.errors import UpdateLost
from common.manifest import Manifest
from common.sent import sent_vector
from coordinator.planning import PlanSettings
from participant.control import KEPT_CONTROLS, ControlVariates
from tests.unit.test_planning import MODEL, plan

PLAN = plan(
    PlanSettings(
        MODEL,
        method="ffa_lora",
        rank=2,
        rounds=6,
        steps_per_round=5,
        learning_rate=0.01,
        learning_rate_schedule="cosine",
        control_variates=True,
    )
)
SENT = sent_vector(PLAN, 1)
SITES = 3


def rate(round_):
    return PLAN.training.learning_rate_in(round_, rounds=PLAN.rounds)


def sent_of(flat):
    """The sent elements of a stored vector, one after the other."""
    return np.concatenate([flat[part.stored : part.stored + part.size] for part in SENT.stretches.parts])


def stored(path, flat):
    mapped = create_adapter_file(path, PLAN.layout())
    mapped[:] = flat
    mapped.flush()
    return path


def manifest(*, round_, parent):
    return Manifest(
        federation="lab", run=PLAN.run, round=round_, digest="", parent=parent, base_model="m", base_model_digest="",
        plan_digest="", charter_digest="", adapter=PLAN.adapter, method="ffa_lora", server_optimizer="fedavg",
        instruction_set_digest="", survivor_count=SITES, survivors=None, metrics={}, privacy=None, created_at="",
    )  # fmt: skip


@dataclass
class Run:
    """A federation whose sites move by made-up directions: its adapters by round, and who had made which."""

    folder: Path
    adapters: list = field(default_factory=list)
    rounds: list = field(default_factory=list)  # the round that made each adapter

    def __post_init__(self):
        draw = np.random.default_rng(0)
        self.publish(draw.standard_normal(PLAN.layout().parameters).astype(np.float32), round_=0)
        self.sites = [ControlVariates(self.folder / f"site-{n}") for n in range(SITES)]

    def publish(self, flat, *, round_):
        stored(self.folder / f"adapter-{round_}", flat)
        self.adapters.append(flat)
        self.rounds.append(round_)

    def correction(self, site, *, round_):
        parent = self.folder / f"adapter-{self.rounds[-2]}" if len(self.rounds) > 1 else None
        path = self.folder / f"correction-{site}-{round_}"
        self.sites[site].write_correction(
            path,
            PLAN,
            round_=round_,
            base=self.folder / f"adapter-{self.rounds[-1]}",
            manifest=manifest(round_=self.rounds[-1], parent=None if parent is None else "x"),
            parent=parent,
        )
        return np.fromfile(path, dtype="<f4")

    def train(self, site, directions, *, round_):
        """K steps: theta <- theta - eta (direction - c_i + c), as `LocalMethod.after_step` adds it."""
        local, correction = self.adapters[-1].astype(np.float64), self.correction(site, round_=round_)
        for direction in directions:
            at = 0
            for part in SENT.stretches.parts:
                step = direction[at : at + part.size] + correction[at : at + part.size]
                local[part.stored : part.stored + part.size] -= rate(round_) * step
                at += part.size
        stored(self.folder / f"trained-{site}-{round_}", local.astype(np.float32))
        return local.astype(np.float32)

    def keep(self, site, *, round_):
        self.sites[site].advance(
            PLAN,
            round_=round_,
            trained=self.folder / f"trained-{site}-{round_}",
            base=self.folder / f"adapter-{self.rounds[-1]}",
            correction=self.folder / f"correction-{site}-{round_}",
        )


def directions(site, round_):
    """Made-up AdamW directions of one round: each site's own drift, and noise."""
    draw = np.random.default_rng([site, round_])
    drift = np.sign(np.random.default_rng(site).standard_normal(SENT.stretches.size))
    return [0.6 * drift + 0.3 * draw.standard_normal(SENT.stretches.size) for _ in range(5)]


def test_with_all_sites_it_is_scaffold_as_its_paper_has_it(tmp_path):
    run = Run(tmp_path)
    theta = sent_of(run.adapters[0]).astype(np.float64)
    c, own = np.zeros_like(theta), [np.zeros_like(theta) for _ in range(SITES)]
    for round_ in range(1, 5):
        new, local = [], []
        for site in range(SITES):
            np.testing.assert_allclose(run.correction(site, round_=round_), c - own[site], atol=2e-5)
            moved = theta.copy()
            for direction in directions(site, round_):
                moved -= rate(round_) * (direction - own[site] + c)
            new.append(own[site] - c + (theta - moved) / (5 * rate(round_)))
            local.append(moved)
        trained = [run.train(site, directions(site, round_), round_=round_) for site in range(SITES)]
        for site in range(SITES):
            run.keep(site, round_=round_)
        # The paper's second sum, and its server step.
        c, own = c + sum(new[site] - own[site] for site in range(SITES)) / SITES, new
        theta = sum(local) / SITES
        run.publish(np.mean(trained, axis=0, dtype=np.float64).astype(np.float32), round_=round_)
        np.testing.assert_allclose(sent_of(run.adapters[-1]), theta, atol=1e-6)
    assert np.abs(c).mean() > 0.1


def test_the_first_round_corrects_nothing(tmp_path):
    run = Run(tmp_path)
    assert not run.correction(0, round_=1).any()


def test_corrections_of_all_sites_cancel_and_each_takes_its_own_drift_away(tmp_path):
    run = Run(tmp_path)
    trained = [run.train(site, directions(site, 1), round_=1) for site in range(SITES)]
    for site in range(SITES):
        run.keep(site, round_=1)
    run.publish(np.mean(trained, axis=0, dtype=np.float64).astype(np.float32), round_=1)

    found = [run.correction(site, round_=2) for site in range(SITES)]

    np.testing.assert_allclose(sum(found), 0.0, atol=5e-5)
    means = [np.mean(directions(site, 2), axis=0) for site in range(SITES)]
    apart = np.std(means, axis=0).mean()
    corrected = np.std([mean + correction for mean, correction in zip(means, found, strict=True)], axis=0).mean()
    assert corrected < 0.5 * apart


def test_keeping_twice_is_keeping_once_even_when_the_training_is_gone(tmp_path):
    run = Run(tmp_path)
    run.train(0, directions(0, 1), round_=1)
    run.keep(0, round_=1)
    (kept,) = (tmp_path / "site-0" / PLAN.run).iterdir()
    content = kept.read_bytes()
    (tmp_path / "trained-0-1").unlink()

    run.keep(0, round_=1)

    assert kept.read_bytes() == content


def test_what_was_trained_is_missed_and_the_older_variate_stays(tmp_path):
    run = Run(tmp_path)
    run.train(0, directions(0, 1), round_=1)
    run.keep(0, round_=1)
    with pytest.raises(UpdateLost, match="what was trained in round 2 cannot be read"):
        run.keep(0, round_=2)
    assert [path.name for path in (tmp_path / "site-0" / PLAN.run).iterdir()] == ["1.f32"]


def test_a_variate_that_was_made_after_the_adapter_is_not_used(tmp_path):
    # Round 2's adapter was set aside: round 3 trains from round 1's again, and its sites hold variates of round 2.
    run = Run(tmp_path)
    trained = run.train(0, directions(0, 1), round_=1)
    run.keep(0, round_=1)
    run.publish(trained, round_=1)
    before = run.correction(0, round_=2)
    run.train(0, directions(0, 2), round_=2)
    run.keep(0, round_=2)

    assert np.array_equal(run.correction(0, round_=3), before)


def test_a_few_are_kept_and_all_are_forgotten_with_the_run(tmp_path):
    run = Run(tmp_path)
    for round_ in range(1, 7):
        run.train(0, directions(0, round_), round_=round_)
        run.keep(0, round_=round_)
    kept = tmp_path / "site-0" / PLAN.run
    assert sorted(int(path.stem) for path in kept.iterdir()) == list(range(7 - KEPT_CONTROLS, 7))

    run.sites[0].forget(PLAN.run)

    assert not kept.exists()
    run.sites[0].forget(PLAN.run)


def test_the_servers_rate_is_taken_out_of_the_mean_step(tmp_path):
    run = Run(tmp_path)
    faster = replace(PLAN, method=replace(PLAN.method, server_learning_rate=2.0))
    moved = run.adapters[0].copy()
    for part in SENT.stretches.parts:
        moved[part.stored : part.stored + part.size] -= 2.0 * 5 * rate(1) * 0.25
    run.publish(moved, round_=1)

    run.sites[0].write_correction(
        tmp_path / "c", faster, round_=2, base=tmp_path / "adapter-1", manifest=manifest(round_=1, parent="x"),
        parent=tmp_path / "adapter-0",
    )  # fmt: skip

    np.testing.assert_allclose(np.fromfile(tmp_path / "c", dtype="<f4"), 0.25, atol=2e-5)
