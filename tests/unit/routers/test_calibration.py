"""Threshold and confidence from scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from routers.calibration import Calibration, _logistic, calibrate

NOTHING = np.array([])
NO_LABELS = np.array([], dtype=bool)


def test_threshold_lies_between_the_two_sets() -> None:
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(0.7, 0.06, 400), rng.normal(0.35, 0.06, 400)
    fitted = calibrate(known, np.ones(400, dtype=bool), np.full(400, 0.3), unknown, share=0.5)
    assert 0.45 < fitted.threshold < 0.6
    assert fitted.confidence(0.7, 0.3) > 0.9
    assert fitted.confidence(0.35, 0.3) < 0.1


def test_a_larger_share_lowers_the_threshold_but_not_below_the_typical_stranger() -> None:
    rng = np.random.default_rng(1)
    known, unknown = rng.normal(0.6, 0.1, 300), rng.normal(0.4, 0.1, 300)
    arguments = known, np.ones(300, dtype=bool), np.full(300, 0.2), unknown
    thresholds = [calibrate(*arguments, share=share).threshold for share in (0.2, 0.5, 0.9, 0.99, 0.9999)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[-1] == pytest.approx(np.median(unknown))


def test_without_data_there_is_a_sensible_default() -> None:
    fitted = calibrate(NOTHING, NO_LABELS, NOTHING, NOTHING, share=0.9)
    assert 0.25 <= fitted.threshold <= 0.5
    assert 15 < fitted.margin_slope < 25


def test_regression_equals_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 2))
    labels = (x[:, 0] + 0.5 * x[:, 1] + rng.normal(size=200) > 0).astype(float)
    weights = rng.uniform(0.5, 2, 200)
    reference = LogisticRegression(C=1 / 0.002, fit_intercept=False, tol=1e-10, max_iter=10_000)
    reference.fit(x, labels, sample_weight=weights)
    assert _logistic(x, labels, weights) == pytest.approx(reference.coef_[0], rel=1e-4)


scores = st.lists(st.floats(-1, 1), max_size=30)


@settings(deadline=None, max_examples=40)
@given(scores, scores, st.floats(0.01, 0.99), st.randoms())
def test_any_scores_give_a_usable_calibration(
    known: list[float], unknown: list[float], share: float, rng: object
) -> None:
    right = np.array([rng.random() < 0.8 for _ in known], dtype=bool)  # type: ignore[attr-defined]
    fitted = calibrate(np.array(known), right, np.abs(np.array(known)), np.array(unknown), share)
    assert -1 <= fitted.threshold <= 1
    assert np.isfinite([fitted.slope, fitted.margin_slope]).all()


@settings(deadline=None)
@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 2), st.floats(0, 2))
def test_confidence_is_a_monotone_probability(a: float, b: float, m: float, n: float) -> None:
    fitted = Calibration(0.4, 15, 20)
    low, high = fitted.confidence(min(a, b), min(m, n)), fitted.confidence(max(a, b), max(m, n))
    assert 0 <= low <= high <= 1
    assert fitted.confidence(a, None) >= fitted.confidence(a, m)
