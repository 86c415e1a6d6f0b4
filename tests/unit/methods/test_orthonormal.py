from __future__ import annotations

import numpy as np
import pytest

from common.errors import InvalidArgument
from common.methods.orthonormal import leading_singular_spaces, orthonormal_columns, orthonormal_rows


def generator(seed=5):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("rows", "columns"), [(64, 8), (8, 8), (192, 192)])
def test_columns_are_orthonormal_and_rows_are_their_transpose(rows, columns):
    q = orthonormal_columns(generator(), rows, columns)

    assert q.shape == (rows, columns)
    assert q.dtype == np.float32
    np.testing.assert_allclose(q.T @ q, np.eye(columns), atol=1e-6)
    assert np.array_equal(orthonormal_rows(generator(), columns, rows), q.T)


def test_bases_of_two_seeds_differ():
    assert not np.allclose(orthonormal_columns(generator(1), 16, 4), orthonormal_columns(generator(2), 16, 4))


def test_more_columns_than_rows_are_refused():
    with pytest.raises(InvalidArgument, match="9 orthonormal columns do not fit in 8 rows"):
        orthonormal_columns(generator(), 8, 9)


@pytest.mark.parametrize("shape", [(96, 40), (40, 96), (12, 12)])
def test_the_range_finder_finds_the_spaces_of_a_full_decomposition(shape):
    # A spectrum that falls as slowly as one of a weight matrix; the randomised way must still be close.
    draw = generator()
    left, right = (orthonormal_columns(draw, side, min(shape)) for side in shape)
    values = 1.0 / (1.0 + np.arange(min(shape))) ** 0.7
    matrix = (left * values) @ right.T

    found = leading_singular_spaces(matrix, 6, generator(9))

    assert (found.left.shape, found.right.shape) == ((shape[0], 6), (6, shape[1]))
    np.testing.assert_allclose(found.left.T @ found.left, np.eye(6), atol=1e-5)
    np.testing.assert_allclose(found.right @ found.right.T, np.eye(6), atol=1e-5)
    np.testing.assert_allclose(found.values, values[:6], rtol=0.02)
    # What is left of the matrix once its part in the found spaces is taken off: hardly more than the best possible.
    best = np.sqrt((values[6:] ** 2).sum())
    rest = np.linalg.norm(matrix - found.left @ (found.left.T @ matrix @ found.right.T) @ found.right)
    assert best * 0.999 <= rest <= best * 1.02


def test_a_matrix_of_low_rank_is_found_exactly():
    draw = generator()
    matrix = draw.standard_normal((50, 3)) @ draw.standard_normal((3, 30))

    found = leading_singular_spaces(matrix, 3, generator(1))

    np.testing.assert_allclose((found.left * found.values) @ found.right, matrix, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 5])
def test_a_rank_that_does_not_fit_is_refused(rank):
    with pytest.raises(InvalidArgument, match=f"rank {rank} does not fit"):
        leading_singular_spaces(np.ones((4, 9)), rank, generator())


def test_a_matrix_with_an_infinity_is_refused():
    with pytest.raises(InvalidArgument, match="NaN or an infinity"):
        leading_singular_spaces(np.array([[1.0, np.inf], [0.0, 1.0]]), 1, generator())
