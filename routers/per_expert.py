"""Rows that belong to experts, several each: where they are, and means over each expert's nearest.

Shapes: p prompts, n rows, E experts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from routers.base import Matrix

Floats = NDArray[np.float64]


def places_of(owner: NDArray[np.int32], num_experts: int) -> NDArray[np.int64]:
    """Rows of each expert, shape (E, most) with most ≥ 1, filled up with -1; `owner` must be sorted."""
    if np.any(owner[1:] < owner[:-1]):
        raise ValueError("rows that are not in the order of their experts")
    counts = np.bincount(owner, minlength=num_experts)[:num_experts]
    starts = np.cumsum(counts) - counts
    steps = np.arange(counts.max(initial=1))
    return np.where(steps < counts[:, None], starts[:, None] + steps, -1)


def nearest_mean(cosines: Matrix, places: NDArray[np.int64], num: int) -> Floats:
    """Mean of each expert's largest cosines, shape (p, E); NaN for an expert without any. Cosines have shape (p, n)."""
    own = _of_experts(cosines, places)
    num = min(num, own.shape[2])
    best = own.max(axis=2, keepdims=True) if num == 1 else np.partition(own, own.shape[2] - num, axis=2)[:, :, -num:]
    return _mean_of_known(best)


def nearest_mean_and_rows(cosines: Matrix, places: NDArray[np.int64], num: int) -> tuple[Floats, NDArray[np.int64]]:
    """As `nearest_mean`, and the rows that it is the mean of, shape (p, E, num), -1 for none."""
    own = _of_experts(cosines, places)
    num = min(num, own.shape[2])
    best = np.argpartition(own, own.shape[2] - num, axis=2)[:, :, -num:]
    prompts, experts = np.ogrid[: len(own), : len(places)]
    return _mean_of_known(own[prompts[..., None], experts[..., None], best]), places[experts[..., None], best]


def _of_experts(cosines: Matrix, places: NDArray[np.int64]) -> Matrix:
    """Cosines by expert, shape (p, E, most); -inf where there is none."""
    padded = np.full((len(cosines), cosines.shape[1] + 1), -np.inf, cosines.dtype)
    padded[:, :-1] = cosines
    return padded[:, places]  # -1 takes the last column


def _mean_of_known(values: Matrix) -> Floats:
    there = values > -np.inf
    with np.errstate(invalid="ignore"):
        return np.asarray(values.sum(axis=2, where=there, dtype=np.float64) / there.sum(axis=2), np.float64)
