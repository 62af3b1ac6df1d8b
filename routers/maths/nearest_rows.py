"""Rows that belong to experts, several each: their positions, means over the nearest, and densities.

Shapes: p prompts, n rows, E experts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from routers.base import Floats, Matrix

MAX_COSINES = 4_000_000
"""Cosines that are in memory at once while rows are compared with each other: 16 MB."""


def places_of(owner: NDArray[np.int32], num_experts: int) -> NDArray[np.int64]:
    """Return the rows of each expert, shape (E, largest number, at least 1), padded with -1; `owner` must be sorted."""
    if np.any(owner[1:] < owner[:-1]):
        raise ValueError("the rows are not sorted by expert")
    counts = np.bincount(owner, minlength=num_experts)[:num_experts]
    starts = np.cumsum(counts) - counts
    steps = np.arange(counts.max(initial=1))
    return np.where(steps < counts[:, None], starts[:, None] + steps, -1)


def nearest_mean(cosines: Matrix, places: NDArray[np.int64], num: int) -> Floats:
    """Return the mean of each expert's largest cosines (p, n), shape (p, E); NaN for an expert without any."""
    own = _of_experts(cosines, places)
    num = min(num, own.shape[2])
    best = own.max(axis=2, keepdims=True) if num == 1 else np.partition(own, own.shape[2] - num, axis=2)[:, :, -num:]
    return _mean_of_known(best)


def nearest_mean_and_rows(cosines: Matrix, places: NDArray[np.int64], num: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return `nearest_mean` and the rows that it averages, shape (p, E, num), -1 for none."""
    own = _of_experts(cosines, places)
    num = min(num, own.shape[2])
    best = np.argpartition(own, own.shape[2] - num, axis=2)[:, :, -num:]
    prompts, experts = np.ogrid[: len(own), : len(places)]
    return _mean_of_known(own[prompts[..., None], experts[..., None], best]), places[experts[..., None], best]


def nearest_own(asked: Matrix, among: Matrix, owner: NDArray[np.int32], num: int) -> NDArray[np.float32]:
    """Return the density at each row: the mean of its `num` largest cosines to others of its own expert, shape (n,).

    Row i of `asked`, shape (n, d), is compared with all rows of `among`, shape (n, d), except row i. An expert's only
    row gets the median of the others; if every row is the only one, all get 0.
    """
    found = np.full(len(owner), np.nan, np.float32)
    counts = np.bincount(owner)
    order, starts = np.argsort(owner, kind="stable"), np.cumsum(counts) - counts
    for count in np.unique(counts[counts > 1]).tolist():  # one product for the many experts of the same size
        rows = order[starts[counts == count][:, None] + np.arange(count)]
        taken = min(num, count - 1)
        parts = np.array_split(np.arange(count), -(-(count**2) // MAX_COSINES))
        for block in np.array_split(rows, -(-(rows.size * count) // MAX_COSINES) if len(parts) == 1 else len(rows)):
            for part in parts:
                cosines = asked[block[:, part]] @ among[block].transpose(0, 2, 1)
                cosines[:, np.arange(len(part)), part] = -np.inf
                found[block[:, part]] = np.partition(cosines, count - taken, axis=2)[:, :, -taken:].mean(axis=2)
    known = np.isfinite(found)
    return np.where(known, found, np.median(found[known]) if known.any() else 0.0).astype(np.float32)


def _of_experts(cosines: Matrix, places: NDArray[np.int64]) -> Matrix:
    """Arrange cosines by expert, shape (p, E, largest number); -inf where there is none."""
    padded = np.full((len(cosines), cosines.shape[1] + 1), -np.inf, cosines.dtype)
    padded[:, :-1] = cosines
    return padded[:, places]  # -1 selects the padded column


def _mean_of_known(values: Matrix) -> Floats:
    there = values > -np.inf
    with np.errstate(invalid="ignore"):
        return np.asarray(values.sum(axis=2, where=there, dtype=np.float64) / there.sum(axis=2), np.float64)
