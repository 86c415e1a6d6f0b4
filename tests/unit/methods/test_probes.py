"""The product monitor against the truth: forms, signs, and the estimate of what averaging A and B apart loses."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from common.adapters import AdapterSpec, LinearLayer
from common.methods.probes import ProductProbe, product_clip, relative_error, signs

RUN = hashlib.sha256(b"run").digest()
LAYERS = [LinearLayer(f"layers.{at}.proj", 96, 64) for at in range(4)]
RANK, SITES = 8, 5


def drifted(drift: float) -> tuple[list[np.ndarray], list[list[np.ndarray]], list[list[np.ndarray]]]:
    """Base A, and each site's A and B of each layer, so that a part `drift` of the factors is the sites' own."""
    generator = np.random.default_rng(7)
    base = [generator.standard_normal((RANK, layer.in_features)).astype(np.float32) for layer in LAYERS]
    a = [[one + drift * generator.standard_normal(one.shape) for one in base] for _ in range(SITES)]
    common = [generator.standard_normal((layer.out_features, RANK)) for layer in LAYERS]
    b = [[one + drift * generator.standard_normal(one.shape) for one in common] for _ in range(SITES)]
    return base, [[x.astype(np.float32) for x in one] for one in a], [[x.astype(np.float32) for x in one] for one in b]


def truth(a, b) -> float:
    lost = whole = 0.0
    for layer in range(len(LAYERS)):
        products = [b[site][layer].astype(float) @ a[site][layer] for site in range(SITES)]
        mean_a = np.mean([a[site][layer] for site in range(SITES)], axis=0, dtype=float)
        mean_b = np.mean([b[site][layer] for site in range(SITES)], axis=0, dtype=float)
        lost += np.sum((np.mean(products, axis=0) - mean_b @ mean_a) ** 2)
        whole += np.sum(np.mean(products, axis=0) ** 2)
    return float(np.sqrt(lost / whole))


@pytest.mark.parametrize("drift", [0.1, 0.5, 1.0])
def test_sixty_four_pairs_estimate_the_lost_part_within_a_fifth(drift):
    _, a, b = drifted(drift)
    probes = [ProductProbe.of(RUN, layer, 64) for layer in LAYERS]
    products = [
        np.mean([probe.forms(a[site][at], b[site][at]) for site in range(SITES)], axis=0)
        for at, probe in enumerate(probes)
    ]
    of_means = [
        probe.forms(
            np.mean([a[site][at] for site in range(SITES)], axis=0),
            np.mean([b[site][at] for site in range(SITES)], axis=0),
        )
        for at, probe in enumerate(probes)
    ]
    found = relative_error(products, of_means, noise=[0.0] * len(LAYERS))
    assert found == pytest.approx(truth(a, b), rel=0.2)


def test_where_nothing_is_lost_the_masks_rounding_is_not_called_a_loss():
    generator = np.random.default_rng(1)
    exact = [generator.standard_normal(64) for _ in LAYERS]
    rounded = [one + generator.normal(0, 0.01, one.shape) for one in exact]
    assert relative_error(rounded, exact, noise=[1e-4] * len(LAYERS)) == 0.0
    assert relative_error(rounded, exact, noise=[0.0] * len(LAYERS)) > 0.008
    assert relative_error([np.zeros(4)], [np.zeros(4)], noise=[0.0]) == 0.0


def test_a_form_is_that_of_the_whole_product():
    probe = ProductProbe.of(RUN, LAYERS[0], 3)
    generator = np.random.default_rng(2)
    a = generator.standard_normal((RANK, 64)).astype(np.float32)
    b = generator.standard_normal((96, RANK)).astype(np.float32)
    expected = [
        y.astype(float) @ (b.astype(float) @ a) @ x.astype(float) for x, y in zip(probe.x, probe.y, strict=True)
    ]
    assert probe.forms(a, b) == pytest.approx(expected)


def test_signs_are_the_bits_of_shake_and_other_for_every_run_layer_and_side():
    stream = hashlib.shake_256(RUN + b"accord/product-probe/v1\x00layers.0.proj\x00x").digest(2)
    bits = np.array([1.0 - 2.0 * (stream[at // 8] >> (7 - at % 8) & 1) for at in range(15)], np.float32)
    assert np.array_equal(signs(RUN, "layers.0.proj", "x", (3, 5)), bits.reshape(3, 5))
    seen = {
        signs(run, layer, side, (4, 64)).tobytes()
        for run in (RUN, bytes(32))
        for layer in ("layers.0.proj", "layers.1.proj")
        for side in ("x", "y")
    }
    assert len(seen) == 8


def test_real_updates_are_far_within_the_forms_bound():
    """A form is a sum of many signs: with elements of a tenth of the clip it stays below the bound by far."""
    clip, spec = 1e-2, AdapterSpec(RANK, 16.0, ("proj",))
    generator = np.random.default_rng(3)
    a = np.linalg.qr(generator.standard_normal((64, RANK)))[0].T
    delta_a = generator.normal(0, clip / 10, a.shape)
    delta_b = generator.normal(0, clip / 10, (96, RANK))
    forms = ProductProbe.of(RUN, LAYERS[0], 256).forms((a + delta_a).astype(np.float32), delta_b.astype(np.float32))
    assert np.max(np.abs(forms)) < product_clip(LAYERS[0], spec, clip)
