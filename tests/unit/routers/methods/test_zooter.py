"""Zooter against its formulae row by row, and its classifier against scikit-learn on weighted rows."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from routers.base import RouteQuery, no_progress
from routers.maths.softmax_regression import fit_softmax, log_softmax
from routers.methods.zooter import ZooterRouter, smoothed_targets
from tests.unit.routers.builders import around, centres, expert_id
from tests.unit.routers.tables import ask, fitted, random_table, table_data


def by_hand(scores: np.ndarray, tags: list[int], temperature: float, beta: float) -> np.ndarray:
    """The paper's s(q)* in plain loops."""
    own = []
    for row in scores.tolist():
        odds = {m: np.exp(r / temperature) for m, r in enumerate(row) if not np.isnan(r)}
        own.append({m: value / sum(odds.values()) for m, value in odds.items()})
    result = np.zeros(scores.shape)
    for i, mine in enumerate(own):
        for m, value in mine.items():
            same = [other[m] for other, tag in zip(own, tags, strict=True) if tag == tags[i] and m in other]
            result[i, m] = beta * value + (1 - beta) * sum(same) / len(same)
        result[i] /= result[i].sum()
    return result


@pytest.mark.parametrize("unknown", [0.0, 0.3])
@pytest.mark.parametrize(("temperature", "beta"), [(1.0, 0.3), (0.1, 0.0), (0.5, 1.0), (0.05, 0.7)])
def test_targets_are_the_paper_s(unknown: float, temperature: float, beta: float) -> None:
    _, scores = random_table(1, unknown=unknown, graded=True)
    scores = scores[np.isfinite(scores).any(axis=1)]
    tags = np.random.default_rng(2).integers(0, 5, len(scores))
    found = smoothed_targets(scores, tags, temperature, beta)
    np.testing.assert_allclose(found, by_hand(scores, tags.tolist(), temperature, beta), atol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found[np.isnan(scores)] == 0).all()


def test_beta_is_the_share_of_the_prompt_s_own_scores() -> None:
    scores, tags = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 0])
    sharp = 1e-3
    np.testing.assert_allclose(smoothed_targets(scores, tags, sharp, 1.0), np.eye(2), atol=1e-9)
    np.testing.assert_allclose(smoothed_targets(scores, tags, sharp, 0.0), np.full((2, 2), 0.5), atol=1e-9)
    np.testing.assert_allclose(smoothed_targets(scores, tags, sharp, 0.3)[0], [0.65, 0.35], atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_soft_labels_are_rows_that_are_repeated_with_weights(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_rows, dim, num_classes, ridge = 50, 5, 4, 0.02
    x = rng.normal(size=(num_rows, dim))
    targets = rng.dirichlet(np.ones(num_classes), num_rows)
    weights, bias = fit_softmax(x, targets, ridge)
    reference = LogisticRegression(C=1 / (ridge * num_rows), tol=1e-10, max_iter=10_000)
    reference.fit(
        np.repeat(x, num_classes, axis=0), np.tile(np.arange(num_classes), num_rows), sample_weight=targets.ravel()
    )
    found = np.exp(log_softmax(x @ weights.T + bias))
    np.testing.assert_allclose(found, reference.predict_proba(x), atol=1e-5)
    np.testing.assert_allclose(weights, reference.coef_, atol=1e-4)


def test_unknown_classes_say_nothing() -> None:
    """The slope of the loss, written with the softmax over each row's known classes alone, is zero at the optimum."""
    rng = np.random.default_rng(5)
    x, ridge = rng.normal(size=(40, 3)), 0.05
    known = rng.random((40, 4)) < 0.6
    known[:, 0] = True
    targets = np.where(known, rng.random((40, 4)), 0.0)
    targets /= targets.sum(axis=1, keepdims=True)
    weights, bias = fit_softmax(x, targets, ridge, known)
    slope, slope_of_bias = ridge * weights, np.zeros(4)
    for row, target, mask in zip(x, targets, known, strict=True):
        odds = np.exp(weights @ row + bias) * mask
        slope = slope + np.outer(odds / odds.sum() - target, row) / 40
        slope_of_bias += (odds / odds.sum() - target) / 40
    assert np.abs(slope).max() < 1e-5
    assert np.abs(slope_of_bias).max() < 1e-5


def test_learns_who_is_best_where() -> None:
    directions = centres(3, 16)
    embeddings = np.concatenate([around(direction, 30, 0.4, seed) for seed, direction in enumerate(directions)])
    scores = np.zeros((90, 3))
    scores[:30, 1], scores[30:60, 2], scores[60:] = 1, 1, [0.9, 0.3, 0.3]
    for tasks in (None, [str(row // 30) for row in range(90)]):
        router = fitted(ZooterRouter, table_data(embeddings, scores, tasks))
        chosen = [router.route(RouteQuery("", direction)).experts for direction in directions]
        assert [each[0].expert_id if each else "base" for each in chosen] == [expert_id(0), expert_id(1), "base"]


def test_probabilities_are_those_among_the_models_that_may_be_used() -> None:
    embeddings, scores = random_table(3)
    router = fitted(ZooterRouter, table_data(embeddings, scores))
    for row in embeddings[:5]:
        everyone, some = ask(router, row), ask(router, row, [True, False, True, True])
        assert everyone.sum() == pytest.approx(1)
        np.testing.assert_allclose(some[[0, 2, 3]], everyone[[0, 2, 3]] / everyone[[0, 2, 3]].sum())
        assert some[1] == 0


def test_one_expert_and_a_base_without_scores() -> None:
    embeddings, scores = random_table(4, num_models=2)
    scores[:, 0] = np.nan
    decision = fitted(ZooterRouter, table_data(embeddings, scores)).route(RouteQuery("", embeddings[0]))
    assert [chosen.expert_id for chosen in decision.experts] == [expert_id(0)]
    assert decision.confidence == pytest.approx(1)


def test_fitting_twice_gives_the_same_bits() -> None:
    embeddings, scores = random_table(6, unknown=0.2)
    data, config = table_data(embeddings, scores), ZooterRouter.config_class()
    first, second = (ZooterRouter.fit(config, data, no_progress).arrays["weights"] for _ in range(2))
    assert first.tobytes() == second.tobytes()
