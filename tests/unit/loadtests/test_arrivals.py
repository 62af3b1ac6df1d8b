"""Schedules of an open loop."""

from __future__ import annotations

import itertools

import pytest
from bench.arrivals import schedule


def test_poisson_has_the_rate_and_the_spread_of_independent_callers() -> None:
    times = schedule("poisson", rate=200, seconds=100, seed=1)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert mean == pytest.approx(1 / 200, rel=0.03)
    assert variance == pytest.approx(mean**2, rel=0.1)  # exponential gaps: deviation equals mean


def test_fixed_is_even() -> None:
    assert schedule("fixed", rate=4, seconds=1, seed=0) == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("kind", ["poisson", "fixed"])
def test_times_ascend_within_bounds(kind: str) -> None:
    times = schedule("fixed" if kind == "fixed" else "poisson", rate=33, seconds=2, seed=5)
    assert times == sorted(times)
    assert all(0 <= time < 2 for time in times)


def test_a_seed_is_one_schedule() -> None:
    assert schedule("poisson", 50, 2, seed=7) == schedule("poisson", 50, 2, seed=7)
    assert schedule("poisson", 50, 2, seed=7) != schedule("poisson", 50, 2, seed=8)


@pytest.mark.parametrize(("rate", "seconds"), [(0, 1), (-1, 1), (1, 0)])
def test_impossible_schedules_are_refused(rate: float, seconds: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        schedule("poisson", rate, seconds, seed=0)
