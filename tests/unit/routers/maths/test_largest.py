"""The largest values of each row, against sorting."""

from __future__ import annotations

import numpy as np
import pytest

from routers.maths.largest import columns_of_largest, mean_of_largest

VALUES = np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 3, 9, 20])
def test_means_and_columns_are_those_of_the_sorted_rows(k: int) -> None:
    best = -np.sort(-VALUES.astype(np.float64), axis=1)[:, :k]
    np.testing.assert_allclose(mean_of_largest(VALUES, k), best.mean(axis=1), rtol=1e-6)
    columns = columns_of_largest(VALUES, k)
    np.testing.assert_array_equal(np.sort(np.take_along_axis(VALUES, columns, axis=1), axis=1)[:, ::-1], best)


def test_rows_without_a_column_have_mean_zero() -> None:
    np.testing.assert_array_equal(mean_of_largest(VALUES[:, :0], 3), np.zeros(7))
