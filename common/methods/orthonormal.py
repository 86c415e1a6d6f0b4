"""Orthonormal bases for frozen factors: random ones, and the leading singular spaces of a weight matrix.

Pure numpy on matrices that the caller hands in. Signs of a factorisation and the streams of generators differ between
machines and versions, so whoever makes a basis sends it out: nobody else makes the same one from a seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.errors import InvalidArgument

Matrix = NDArray[np.float32]
_Wide = NDArray[np.float64]

# Halko et al. 2011, remark 4.3 and section 4.5: a few columns more than wanted and one or two power iterations are
# enough where the singular values fall slowly, as those of weight matrices do.
OVERSAMPLING: Final = 8
POWER_ITERATIONS: Final = 2


def orthonormal_columns(generator: np.random.Generator, rows: int, columns: int) -> Matrix:
    """float32[rows, columns] with Q^T Q = I, uniformly distributed: QR of a Gaussian matrix, signs fixed.

    Mezzadri 2007 (math-ph/0609050): without the signs of R's diagonal the distribution is that of the factorisation.
    Raises InvalidArgument for more columns than rows.
    """
    if not 0 < columns <= rows:
        raise InvalidArgument(f"{columns} orthonormal columns do not fit in {rows} rows")
    q, r = np.linalg.qr(generator.standard_normal((rows, columns)))
    return np.asarray(q * np.where(np.diagonal(r) < 0.0, -1.0, 1.0), dtype=np.float32)


def orthonormal_rows(generator: np.random.Generator, rows: int, columns: int) -> Matrix:
    """float32[rows, columns] with Q Q^T = I. Raises InvalidArgument for more rows than columns."""
    return np.ascontiguousarray(orthonormal_columns(generator, columns, rows).T)


@dataclass(frozen=True, slots=True)
class SingularSpaces:
    """The leading part of a singular value decomposition.

    left: float32[rows, rank], orthonormal columns. values: float32[rank], falling. right: float32[rank, columns],
    orthonormal rows.
    """

    left: Matrix
    values: NDArray[np.float32]
    right: Matrix


def leading_singular_spaces(matrix: NDArray[Any], rank: int, generator: np.random.Generator) -> SingularSpaces:
    """The first `rank` singular vectors of float[rows, columns], by a randomised range finder with power iterations.

    Halko, Martinsson and Tropp 2011 (arXiv 0909.4061), algorithms 4.4 and 5.1: Q = orth((W W^T)^q W Omega), then the
    decomposition of the small Q^T W. Raises InvalidArgument for a rank over the smaller side, or a NaN or infinity.
    """
    wide = np.asarray(matrix, dtype=np.float64)
    if wide.ndim != 2 or not 0 < rank <= min(wide.shape):
        raise InvalidArgument(f"rank {rank} does not fit a matrix of shape {wide.shape}")
    if not np.isfinite(wide).all():
        raise InvalidArgument("the matrix holds a NaN or an infinity; its singular vectors are not defined")
    sketch = min(rank + OVERSAMPLING, *wide.shape)
    q = _orthonormal(wide @ generator.standard_normal((wide.shape[1], sketch)))
    for _ in range(POWER_ITERATIONS):
        q = _orthonormal(wide @ _orthonormal(wide.T @ q))
    u, values, right = np.linalg.svd(q.T @ wide, full_matrices=False)
    return SingularSpaces(
        left=np.asarray((q @ u)[:, :rank], dtype=np.float32),
        values=np.asarray(values[:rank], dtype=np.float32),
        right=np.asarray(right[:rank], dtype=np.float32),
    )


def _orthonormal(matrix: _Wide) -> _Wide:
    return np.linalg.qr(matrix)[0]
