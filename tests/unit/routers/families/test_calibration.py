"""Threshold and confidence from scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from routers.base import LibraryExpert, no_progress
from routers.families.calibration import Calibration, calibrate, fingerprints_of, fit_logistic
from routers.registry import make_config, router_class
from tests.unit.routers.builders import clustered

NOTHING = np.array([])
NO_LABELS = np.array([], dtype=bool)


def test_threshold_lies_between_the_two_sets() -> None:
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(0.7, 0.06, 400), rng.normal(0.35, 0.06, 400)
    fitted = calibrate(known, np.ones(400, dtype=bool), np.full(400, 0.3), unknown, share=0.5)
    assert 0.45 < fitted.threshold < 0.6
    assert fitted.confidence(0.7, 0.3) > 0.9
    assert fitted.confidence(0.35, 0.3) < 0.1


def test_a_larger_share_lowers_the_threshold_until_a_third_of_the_unknown_would_pass() -> None:
    rng = np.random.default_rng(1)
    known, unknown = rng.normal(0.6, 0.1, 300), rng.normal(0.4, 0.1, 300)
    arguments = known, np.ones(300, dtype=bool), np.full(300, 0.2), unknown
    thresholds = [calibrate(*arguments, share=share).threshold for share in (0.2, 0.5, 0.9, 0.99, 0.9999)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[-1] == pytest.approx(np.quantile(unknown, 2 / 3))


def test_the_unknown_do_not_cost_more_than_a_tenth_of_the_known() -> None:
    rng = np.random.default_rng(2)
    known, unknown = rng.normal(0.5, 0.1, 300), rng.normal(0.6, 0.1, 300)
    fitted = calibrate(known, np.ones(300, dtype=bool), np.full(300, 0.2), unknown, share=0.9999)
    assert fitted.threshold == pytest.approx(np.quantile(known, 0.1))


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
    assert fit_logistic(x, labels, weights) == pytest.approx(reference.coef_[0], rel=1e-4)


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


def experts(num: int, changed: int = 0) -> list[LibraryExpert]:
    return [LibraryExpert(f"e{i}@0", examples=("new",) if i < changed else (f"example {i}",)) for i in range(num)]


@pytest.mark.parametrize(
    ("now", "holds"),
    [
        (experts(100), True),
        (experts(102), True),
        (experts(98), False),  # 2 of 98 are more than a fiftieth
        (experts(103), False),
        (experts(100, changed=1), True),  # one fingerprint is gone and one is new
        (experts(100, changed=2), False),
        ([], False),
    ],
)
def test_a_calibration_holds_until_a_fiftieth_has_changed(now: list[LibraryExpert], holds: bool) -> None:
    fitted = Calibration(0.4, 15, 20, fingerprints_of(experts(100)))
    assert fitted.holds_for(fingerprints_of(now)) is holds
    assert Calibration.load(fitted.dump()) == fitted


def test_a_calibration_of_an_older_artefact_holds_for_nothing() -> None:
    old = Calibration.load({"calibration": [0.4, 15, 20]})
    assert not old.holds_for(fingerprints_of(experts(1)))


@pytest.mark.parametrize("name", ["knn", "centroid", "two_part"])
def test_a_router_that_follows_keeps_its_calibration(name: str) -> None:
    made, config = router_class(name), make_config(name, {})
    data = replace(clustered(60), embed=lambda texts: np.ones((len(texts), 32), np.float32))
    before = made.load(config, made.fit(config, data, no_progress))
    marked = replace(before.calibration, threshold=0.123)  # type: ignore[attr-defined]
    before.calibration = marked  # type: ignore[attr-defined]
    grown = replace(data, experts=clustered(61).experts, embeddings=clustered(61).embeddings)
    after = made.load(config, made.fit(config, replace(grown, previous=before), no_progress))
    assert after.threshold == 0.123  # type: ignore[attr-defined]
    other = make_config(name, {"in_library_share": 0.5})
    for changed, previous in ((config, None), (other, before)):
        fresh = made.load(changed, made.fit(changed, replace(grown, previous=previous), no_progress))
        assert fresh.threshold != 0.123  # type: ignore[attr-defined]
    much = clustered(70)
    fresh = made.load(config, made.fit(config, replace(much, embed=data.embed, previous=before), no_progress))
    assert fresh.threshold != 0.123  # type: ignore[attr-defined]


# -- what it decides for the left-out examples --------------------------------------------------------------------


def test_left_out_examples_are_decided_as_a_router_would() -> None:
    known, margins = np.array([0.9, 0.8, 0.3, 0.7]), np.array([0.2, 0.0, 0.1, -0.5])
    fitted = Calibration(0.5, 10.0, 5.0).with_left_out(["a", "a", "b", "c"], known, margins, None)
    assert fitted.left_out is not None
    assert fitted.left_out.abstained == 0.25
    expected = [fitted.confidence(score, margin) for score, margin in zip(known, margins, strict=True)]
    means = {"a": (expected[0] + expected[1]) / 2, "base": expected[2], "c": expected[3]}
    assert fitted.left_out.confidence == pytest.approx(means)
    strict = Calibration(0.5, 10.0, 5.0).with_left_out(["a", "a", "b", "c"], known, None, 0.85)
    assert strict.left_out is not None
    assert strict.left_out.abstained == 0.75
    assert strict.left_out.confidence["a"] == pytest.approx(fitted.confidence(0.9, None))
    assert Calibration(0.5, 10.0, 5.0).with_left_out([], NOTHING, NOTHING, None).left_out is None


def test_calibrations_are_stored_and_older_ones_are_read() -> None:
    fitted = Calibration(0.5, 10.0, 5.0, frozenset({"x"})).with_left_out(["a"], np.ones(1), np.ones(1), None)
    assert Calibration.load(fitted.dump()) == fitted
    older = {key: value for key, value in fitted.dump().items() if key != "left_out"}
    assert Calibration.load(older) == replace(fitted, left_out=None)
    with pytest.raises((KeyError, TypeError, ValueError)):
        Calibration.load(fitted.dump() | {"left_out": {"abstained": 0.5, "confidence": [1]}})


@pytest.mark.parametrize("name", ["knn", "centroid", "classifier"])
def test_routers_keep_how_they_decide_for_their_examples(name: str) -> None:
    data = clustered(4, 12, noise=0.4)
    ids = {expert.expert_id for expert in data.experts}
    kind = router_class(name)
    loose, strict = (
        kind.fit(make_config(name, {"threshold": threshold}), data, no_progress).data["left_out"]
        for threshold in (-2.0, 2.0)
    )
    assert loose["abstained"] == 0
    assert set(loose["confidence"]) == ids
    assert strict["abstained"] == 1
    assert set(strict["confidence"]) == {"base"}
