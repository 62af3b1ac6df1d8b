"""A histogram as plain numbers: cheap to update, and read by the exposition and the console alike."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from operator import add


class Distribution:
    """Counts of values by bucket, and the sum of the values.

    Attributes:
        bounds: Inclusive upper bounds of the buckets, ascending and finite.
        counts: Number of values in each bucket; the last one counts the values above all bounds.
        total: Sum of all values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, other: Distribution) -> None:
        """Count all values of another distribution with the same bounds."""
        self.counts = list(map(add, self.counts, other.counts))
        self.total += other.total

    def cumulative(self) -> list[int]:
        """Number of values up to each bound; the last number counts all values."""
        return list(accumulate(self.counts))

    def quantile(self, q: float) -> float | None:
        """The q-quantile, linear within its bucket, as Prometheus computes it.

        Args:
            q: Between 0 and 1.

        Returns:
            None if nothing was observed; the largest bound if the quantile is above it.
        """
        num = sum(self.counts)
        if not num:
            return None
        rank, low, below = q * num, 0.0, 0
        for bound, inside in zip(self.bounds, self.counts, strict=False):
            if below + inside >= rank:
                return round(low + (bound - low) * ((rank - below) / inside if inside else 1.0), 6)
            low, below = bound, below + inside
        return low
