"""Percentiles against numpy, and spreads."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bench.stats import Spread, percentile
from hypothesis import given
from hypothesis import strategies as st

finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=1, max_size=50), st.floats(0, 100))
def test_percentile_is_numpys(values: list[float], q: float) -> None:
    assert percentile(values, q) == pytest.approx(float(np.percentile(values, q)), rel=1e-9, abs=1e-6)


def test_percentile_of_nothing_is_nan() -> None:
    assert math.isnan(percentile([], 50))


@pytest.mark.parametrize("q", [-1, 101])
def test_percentile_refuses_impossible_q(q: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 100"):
        percentile([1.0], q)


def test_spread_leaves_out_what_is_no_number() -> None:
    assert Spread.of([3.0, math.nan, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def test_spread_shows_range_only_where_it_says_something() -> None:
    assert Spread.of([1.04, 1.01]).show(1) == "1.0"
    assert Spread.of([1.0, 2.0, 4.0]).show(0) == "2 (1 to 4)"
    assert Spread.of([]).show() == "–"
