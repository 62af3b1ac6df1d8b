"""The k largest values of each row of a matrix.

Shapes: p rows, n columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from routers.base import Floats, Matrix


def mean_of_largest(values: Matrix, k: int) -> Floats:
    """Return the mean of the k largest values of each row, shape (p,); 0 if there are no columns."""
    if not values.shape[1]:
        return np.zeros(len(values))
    if k == 1:
        return np.asarray(values.max(axis=1), np.float64)
    k = min(k, values.shape[1])
    return np.asarray(np.partition(values, -k, axis=1)[:, -k:].mean(axis=1), np.float64)


def columns_of_largest(values: Matrix, k: int) -> NDArray[np.int64]:
    """Return the columns of the k largest values of each row, in any order, shape (p, min(k, n))."""
    if k >= values.shape[1]:
        return np.broadcast_to(np.arange(values.shape[1]), values.shape)
    return np.argpartition(-values, k - 1, axis=1)[:, :k]
