"""FedRot-LoRA's alignment: a site turns its factors towards the global ones before their deltas are formed.

B A = (B R)(R^T A) for every rotation R, so sites that have learned the same may hold factors that average to something
else. A site turns its own towards the broadcast factors, which all sites share; nothing more is sent. It lessens what
averaging A and B apart loses, and does not remove it. (FedRot-LoRA, ICML 2026.) Pure numpy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.methods import LoraFactors

_Wide = NDArray[np.float64]


def aligned(local: LoraFactors, reference: LoraFactors, *, by_a: bool, strength: float) -> LoraFactors:
    """(R^T A, B R) with the same product, to rounding, and nearer to the reference.

    by_a: R minimises ||R^T A - A_ref||_F, else ||B R - B_ref||_F, over rotations. strength: lambda in (0, 1]; below 1
    the nearest rotation to (1 - lambda) I + lambda R is taken. Factors are float32 [rank, in] and [out, rank].
    """
    a, b = local.a.astype(np.float64), local.b.astype(np.float64)
    # Both are the orthogonal Procrustes problem max tr(R^T M^T), Schoenemann 1966.
    target = reference.a.astype(np.float64) @ a.T if by_a else reference.b.astype(np.float64).T @ b
    rotation = _nearest_rotation(target.T)
    if strength < 1.0:
        rotation = _nearest_rotation((1.0 - strength) * np.eye(len(rotation)) + strength * rotation)
    return LoraFactors(np.asarray(rotation.T @ a, dtype=np.float32), np.asarray(b @ rotation, dtype=np.float32))


def _nearest_rotation(matrix: _Wide) -> _Wide:
    """The R of SO(r) that maximises tr(R^T matrix): U diag(1, ..., 1, det(U V^T)) V^T of matrix = U S V^T."""
    left, _, right = np.linalg.svd(matrix)
    left[:, -1] *= np.sign(np.linalg.det(left @ right))
    rotation: _Wide = left @ right
    return rotation
