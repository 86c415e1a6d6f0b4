from __future__ import annotations

import numpy as np
import pytest

from common.methods import LoraFactors
from participant.training.rotation import aligned

RANK, OUT, IN, SITES = 6, 40, 24, 8


def wide(factors):
    return factors.b.astype(np.float64) @ factors.a.astype(np.float64)


def factors(draw, a=None, b=None, drift=0.0):
    a = draw.standard_normal((RANK, IN)) if a is None else a + drift * draw.standard_normal((RANK, IN))
    b = draw.standard_normal((OUT, RANK)) if b is None else b + drift * draw.standard_normal((OUT, RANK))
    return LoraFactors(a.astype(np.float32), b.astype(np.float32))


def rotation(draw):
    q, r = np.linalg.qr(draw.standard_normal((RANK, RANK)))
    q *= np.sign(np.diag(r))
    q[:, 0] *= np.linalg.det(q)
    return q


def rotated(site, turn):
    return LoraFactors((turn.T @ site.a).astype(np.float32), (site.b @ turn).astype(np.float32))


def lost(sites):
    """How far mean(B) mean(A) is from mean(B A), relative to it."""
    product = sum(wide(site) for site in sites) / len(sites)
    mean = LoraFactors(sum(site.a for site in sites) / len(sites), sum(site.b for site in sites) / len(sites))
    return np.linalg.norm(wide(mean) - product) / np.linalg.norm(product)


@pytest.mark.parametrize("by_a", [True, False])
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_the_product_of_the_factors_stays(by_a, strength):
    draw = np.random.default_rng(1)
    local, reference = factors(draw), factors(draw)

    found = aligned(local, reference, by_a=by_a, strength=strength)

    assert not np.allclose(found.a, local.a, atol=1e-3)
    assert np.linalg.norm(wide(found) - wide(local)) / np.linalg.norm(wide(local)) < 1e-6


@pytest.mark.parametrize("by_a", [True, False])
def test_a_rotated_copy_is_turned_back(by_a):
    draw = np.random.default_rng(2)
    reference = factors(draw)

    found = aligned(rotated(reference, rotation(draw)), reference, by_a=by_a, strength=1.0)

    np.testing.assert_allclose(found.a, reference.a, atol=1e-5)
    np.testing.assert_allclose(found.b, reference.b, atol=1e-5)


@pytest.mark.parametrize("by_a", [True, False])
def test_no_rotation_is_nearer_than_the_one_that_is_taken(by_a):
    draw = np.random.default_rng(3)
    local, reference = factors(draw), factors(draw)

    def distance(site):
        one, other = (site.a, reference.a) if by_a else (site.b, reference.b)
        return np.linalg.norm(one - other)

    best = distance(aligned(local, reference, by_a=by_a, strength=1.0))
    assert best < distance(local)
    assert all(best <= distance(rotated(local, rotation(draw))) + 1e-6 for _ in range(200))


def test_a_reflection_is_never_taken():
    # A copy with one direction reversed: the nearest orthogonal matrix is a reflection, and of determinant -1.
    draw = np.random.default_rng(4)
    reference = factors(draw)
    mirror = np.diag([-1.0, *[1.0] * (RANK - 1)])

    found = aligned(rotated(reference, mirror), reference, by_a=True, strength=1.0)

    turn = np.linalg.lstsq(rotated(reference, mirror).b.astype(np.float64), found.b.astype(np.float64), rcond=None)[0]
    assert np.linalg.det(turn) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("by_a", [True, False])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_averaging_rotated_sites_loses_less_than_half_of_what_fedit_loses(by_a, strength):
    draw = np.random.default_rng(5)
    reference = factors(draw)
    # Sites that have drifted a little, each in coordinates of its own, at most a right angle away from the others'.
    sites = [
        rotated(factors(draw, reference.a, reference.b, drift=0.05), small_rotation(draw, angle=0.6))
        for _ in range(SITES)
    ]

    turned = [aligned(site, reference, by_a=by_a, strength=strength) for site in sites]

    assert lost(sites) > 0.02
    assert lost(turned) < 0.5 * lost(sites)


def small_rotation(draw, *, angle):
    """The Cayley transform of a small skew matrix."""
    skew = draw.standard_normal((RANK, RANK)) * angle / RANK**0.5
    skew = (skew - skew.T) / 2
    return np.linalg.solve(np.eye(RANK) + skew / 2, np.eye(RANK) - skew / 2)


def test_without_a_reference_nothing_turns():
    # B of the first round is zero: there is nothing to turn towards.
    draw = np.random.default_rng(6)
    local = factors(draw)
    nothing = LoraFactors(local.a, np.zeros((OUT, RANK), dtype=np.float32))

    found = aligned(local, nothing, by_a=False, strength=1.0)

    np.testing.assert_allclose(found.a, local.a, atol=1e-6)
    np.testing.assert_allclose(found.b, local.b, atol=1e-6)
