"""Percentiles, and how a figure varies over rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


def percentile(values: Sequence[float], q: float) -> float:
    """The q-th percentile, 0 ≤ q ≤ 100, interpolated linearly between the nearest ranks; NaN of nothing."""
    if not 0 <= q <= 100:
        raise ValueError(f"q must be between 0 and 100, not {q}")
    if not values:
        return math.nan
    ordered = sorted(values)
    position = (len(ordered) - 1) * q / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over rounds: median, least and largest; NaN where no round gave one."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Over the values that are numbers."""
        known = [value for value in values if not math.isnan(value)]
        if not known:
            return cls(math.nan, math.nan, math.nan)
        return cls(percentile(known, 50), min(known), max(known))

    def show(self, digits: int = 1) -> str:
        """``median (low to high)``, or a dash where there is nothing; the range is left out where it says nothing."""
        if math.isnan(self.median):
            return "–"
        median, low, high = (f"{value:.{digits}f}" for value in (self.median, self.low, self.high))
        return median if low == high else f"{median} ({low} to {high})"
