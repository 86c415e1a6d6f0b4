"""From a trained adapter to the update: within the L2 bound, finite, in the plan's layout, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.adapters import AdapterLayout, FlatFile, create_adapter_file
from common.errors import ShapeMismatch, TrainingFailed, UpdateNotFinite
from common.methods.sent import Stretches
from participant.update import Contribution, open_update
from tests.unit.rounds.made import plan

LAYOUT = plan().layout()
SIZE = LAYOUT.parameters


def adapter(path: Path, values, layout: AdapterLayout = LAYOUT) -> Path:
    mapped = create_adapter_file(path, layout)
    mapped[:] = values
    mapped.flush()
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return adapter(tmp_path / "base", np.linspace(-1, 1, SIZE, dtype=np.float32))


def trained(tmp_path: Path, base: Path, delta) -> Path:
    start = np.linspace(-1, 1, SIZE, dtype=np.float32)
    return adapter(tmp_path / "trained", start + np.asarray(delta, dtype=np.float32))


def test_a_delta_within_the_bound_is_sent_as_it_is(tmp_path: Path, base: Path):
    delta = np.full(SIZE, 0.01, dtype=np.float32)
    update = open_update(trained(tmp_path, base, delta), base, LAYOUT, max_norm=10.0)

    assert update.scale == 1.0
    assert update.norm == pytest.approx(0.01 * SIZE**0.5, rel=1e-4)
    assert np.allclose(update.values(0, SIZE), delta, atol=1e-7)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.floats(0.01, 100), st.floats(0.001, 10))
def test_a_delta_over_the_bound_is_scaled_down_to_it_and_keeps_its_direction(tmp_path, base, size, bound):
    delta = np.random.default_rng(1).standard_normal(SIZE).astype(np.float32) * np.float32(size)
    update = open_update(trained(tmp_path, base, delta), base, LAYOUT, max_norm=bound)

    values = update.values(0, SIZE).astype(np.float64)
    assert np.linalg.norm(values) <= bound * 1.00001
    if update.norm > bound:
        assert np.linalg.norm(values) == pytest.approx(bound, rel=1e-4)
        wide = delta.astype(np.float64)
        assert values @ wide / np.linalg.norm(values) / np.linalg.norm(wide) == pytest.approx(1, abs=1e-3)


def test_an_update_read_in_parts_is_the_update_read_at_once(tmp_path: Path, base: Path):
    update = open_update(trained(tmp_path, base, np.arange(SIZE)), base, LAYOUT, max_norm=1.0)
    parts = [update.values(at, min(at + 7, SIZE)) for at in range(0, SIZE, 7)]
    assert np.array_equal(np.concatenate(parts), update.values(0, SIZE))


def test_no_change_at_all_is_an_update_of_zeros(base: Path):
    update = open_update(base, base, LAYOUT, max_norm=1.0)
    assert (update.norm, update.scale) == (0.0, 1.0)
    assert not update.values(0, SIZE).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, SIZE // 2, SIZE - 1])
def test_one_value_that_is_not_finite_anywhere_stops_the_whole_update(tmp_path: Path, base: Path, bad, at):
    delta = np.zeros(SIZE, dtype=np.float32)
    delta[at] = bad
    with pytest.raises(UpdateNotFinite, match="lower the learning rate"):
        open_update(trained(tmp_path, base, delta), base, LAYOUT, max_norm=1.0)


def test_a_delta_that_float32_cannot_hold_is_found_before_the_cohort_is_fixed(tmp_path: Path):
    high = adapter(tmp_path / "high", np.full(SIZE, 3e38, dtype=np.float32))
    low = adapter(tmp_path / "low", np.full(SIZE, -3e38, dtype=np.float32))
    with pytest.raises(UpdateNotFinite):
        open_update(high, low, LAYOUT, max_norm=1.0)


def test_a_file_in_another_layout_is_refused(tmp_path: Path, base: Path):
    other = plan(adapter=plan().adapter.__class__(rank=4, alpha=4.0, target_modules=("q_proj",))).layout()
    with pytest.raises(ShapeMismatch, match="plan's layout"):
        open_update(adapter(tmp_path / "other", 0, other), base, LAYOUT, max_norm=1.0)


@pytest.mark.parametrize(("records", "weight"), [(0, 1 / 16), (1, 1 / 16), (500, 0.5), (1000, 1.0), (10**9, 1.0)])
def test_the_weight_is_the_share_of_the_cap_and_never_below_a_sixteenth(records, weight):
    assert Contribution(records, {}).weight(1000) == pytest.approx(weight)


def test_a_contribution_reads_back():
    made = Contribution(7, {"heldout_loss": 1.5, "heldout_tokens": 3.0})
    assert Contribution.from_json(made.to_json()) == made


def sent_tensors(*factors: str) -> Stretches:
    return Stretches.of(slot for slot in LAYOUT.slots if any(f".{factor}." in slot.name for factor in factors))


def test_only_what_moves_in_the_round_is_sent_and_extras_follow_unscaled(tmp_path: Path, base: Path):
    sent = sent_tensors("lora_B")
    is_sent = np.zeros(SIZE, dtype=bool)
    for part in sent.parts:
        is_sent[part.stored : part.stored + part.size] = True
    delta = np.where(is_sent, 0.5, 0.0).astype(np.float32)
    extras = np.array([3.0, -4.0, 5.0], dtype=np.float32)
    (tmp_path / "extras").write_bytes(extras.tobytes())
    beside = FlatFile(tmp_path / "extras", 0, 3)
    update = open_update(trained(tmp_path, base, delta), base, LAYOUT, max_norm=1.0, sent=sent, extras=beside)

    assert update.parameters == sent.size + 3
    assert update.norm == pytest.approx(0.5 * sent.size**0.5, rel=1e-5)
    values = update.values(0, update.parameters)
    assert np.linalg.norm(values[:-3]) == pytest.approx(1.0, rel=1e-4)
    assert np.array_equal(values[-3:], extras)
    for start in range(0, update.parameters, 7):
        stop = min(start + 7, update.parameters)
        assert np.array_equal(update.values(start, stop), values[start:stop])


def test_training_that_has_moved_a_frozen_tensor_sends_nothing(tmp_path: Path, base: Path):
    delta = np.zeros(SIZE, dtype=np.float32)
    delta[next(slot.offset for slot in LAYOUT.slots if ".lora_A." in slot.name)] = 1e-3
    moved = trained(tmp_path, base, delta)
    with pytest.raises(TrainingFailed, match="frozen"):
        open_update(moved, base, LAYOUT, max_norm=1.0, sent=sent_tensors("lora_B"))
    assert open_update(moved, base, LAYOUT, max_norm=1.0, sent=sent_tensors("lora_A")).norm > 0


def test_an_extra_that_is_no_number_is_never_sent(tmp_path: Path, base: Path):
    (tmp_path / "extras").write_bytes(np.array([1.0, np.nan], dtype=np.float32).tobytes())
    with pytest.raises(UpdateNotFinite):
        open_update(base, base, LAYOUT, max_norm=1.0, extras=FlatFile(tmp_path / "extras", 0, 2))
