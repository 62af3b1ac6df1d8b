"""Rows that belong to experts, several each: where they are, and means over each expert's nearest.

Shapes: p prompts, n rows, E experts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from routers.base import Matrix

Floats = NDArray[np.float64]


def places_of(owner: NDArray[np.int32], num_experts: int) -> NDArray[np.int64]:
    """Rows of each expert, shape (E, most), filled up with -1; `owner` must be sorted."""
    if np.any(owner[1:] < owner[:-1]):
        raise ValueError("rows that are not in the order of their experts")
    counts = np.bincount(owner, minlength=num_experts)[:num_experts]
    starts = np.cumsum(counts) - counts
    steps = np.arange(counts.max(initial=0))
    return np.where(steps < counts[:, None], starts[:, None] + steps, -1)


def nearest_mean(cosines: Matrix, places: NDArray[np.int64], num: int) -> tuple[Floats, NDArray[np.int64]]:
    """Mean of each expert's largest cosines, shape (p, E), NaN without any; their rows, (p, E, num), -1 for none."""
    if not places.shape[1]:
        return np.full((len(cosines), len(places)), np.nan), np.full((len(cosines), len(places), 0), -1)
    own = np.where(places >= 0, cosines[:, places], -np.inf)
    num = min(num, own.shape[2])
    best = np.argpartition(own, own.shape[2] - num, axis=2)[:, :, -num:]
    values = np.take_along_axis(own, best, axis=2).astype(np.float64)
    rows = np.take_along_axis(np.broadcast_to(places, own.shape), best, axis=2)
    there = rows >= 0
    sums = np.where(there, values, 0.0).sum(axis=2)
    with np.errstate(invalid="ignore"):
        return sums / there.sum(axis=2), rows
