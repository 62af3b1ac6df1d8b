"""Distributions: buckets as Prometheus counts them, and quantiles as Prometheus computes them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from server.telemetry.distribution import Distribution

BOUNDS = (1.0, 2.0, 4.0)


def made(*values: float) -> Distribution:
    distribution = Distribution(BOUNDS)
    for value in values:
        distribution.observe(value)
    return distribution


@given(st.lists(st.one_of(st.floats(0, 10), st.sampled_from(BOUNDS))))
def test_buckets_are_those_of_a_prometheus_histogram(values: list[float]) -> None:
    registry = CollectorRegistry()
    histogram = Histogram("a", "A histogram.", buckets=BOUNDS, registry=registry)
    for value in values:
        histogram.observe(value)
    expected = [registry.get_sample_value("a_bucket", {"le": bound}) for bound in ("1.0", "2.0", "4.0", "+Inf")]
    assert made(*values).cumulative() == expected
    assert made(*values).total == registry.get_sample_value("a_sum")


@given(st.lists(st.floats(0, 10)), st.lists(st.floats(0, 10)))
def test_a_sum_counts_the_values_of_both(first: list[float], second: list[float]) -> None:
    both = made(*first)
    both.add(made(*second))
    assert both.counts == made(*first, *second).counts
    assert both.total == pytest.approx(sum(first) + sum(second))


def test_quantiles_are_linear_within_their_bucket() -> None:
    assert made().quantile(0.5) is None
    assert made(1.5, 1.5).quantile(0.5) == 1.5
    assert made(*[0.1] * 4).quantile(0.5) == 0.5
    assert made(9.0).quantile(0.95) == 4.0


@given(st.lists(st.floats(0.01, 10), min_size=1), st.floats(0.01, 0.99))
def test_a_quantile_is_in_the_bucket_of_the_exact_one(values: list[float], q: float) -> None:
    exact = sorted(values)[max(0, math.ceil(q * len(values) - 1e-9) - 1)]
    upper = min((bound for bound in BOUNDS if exact <= bound), default=math.inf)
    lower = max((bound for bound in BOUNDS if bound < exact), default=0.0)
    found = made(*values).quantile(q)
    assert found is not None
    assert min(lower, 4.0) <= found + 1e-6 and found <= min(upper, 4.0)
