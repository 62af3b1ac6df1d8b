"""Routoo: ridge against scikit-learn, λ against the linear programme and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from routers.base import RouteQuery, no_progress
from routers.errors import NotFittable
from routers.methods.routoo import RoutooRouter, fit_ridge, price_for
from tests.unit.routers.builders import expert_id
from tests.unit.routers.tables import ask, fitted, random_table, table_data


@pytest.mark.parametrize("unknown", [0.0, 0.3])
@pytest.mark.parametrize("ridge", [0.1, 3.0])
def test_predictions_are_ridge_regression_and_leave_each_prompt_out(unknown: float, ridge: float) -> None:
    embeddings, scores = random_table(0, num_rows=30, unknown=unknown, graded=True)
    x = embeddings.astype(np.float64)
    weights, bias, predicted = fit_ridge(x, scores, ridge)
    for model in range(scores.shape[1]):
        known = np.isfinite(scores[:, model])
        reference = Ridge(alpha=ridge).fit(x[known], scores[known, model])
        np.testing.assert_allclose(weights[model], reference.coef_, atol=1e-9)
        assert bias[model] == pytest.approx(reference.intercept_)
        left_out = cross_val_predict(Ridge(alpha=ridge), x[known], scores[known, model], cv=LeaveOneOut())
        np.testing.assert_allclose(predicted[known, model], left_out, atol=1e-9)
        if unknown:
            np.testing.assert_allclose(predicted[~known, model], reference.predict(x[~known]), atol=1e-9)


def test_a_model_with_one_score_and_one_without_any() -> None:
    embeddings, scores = random_table(1, num_rows=10)
    scores[1:, 1], scores[:, 2] = np.nan, np.nan
    weights, bias, predicted = fit_ridge(embeddings.astype(np.float64), scores, 1.0)
    np.testing.assert_array_equal(predicted[:, 1], np.full(10, scores[0, 1]))
    assert not weights[1].any()
    assert np.isnan(predicted[:, 2]).all()
    assert np.isnan(bias[2])


def programme(predicted: np.ndarray, costs: np.ndarray, budget: float) -> float:
    """The optimum of the linear programme of the docstring."""
    num_rows, num_models = predicted.shape
    one_each = np.kron(np.eye(num_rows), np.ones(num_models))
    spent = np.tile(costs, num_rows)[None] / num_rows
    solved = linprog(-predicted.ravel() / num_rows, spent, [budget], one_each, np.ones(num_rows), bounds=(0, 1))
    assert solved.success
    return float(-solved.fun)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [1.0, 1.3, 2.0, 3.1, 9.0])
def test_the_price_is_the_multiplier_of_the_budget(seed: int, budget: float) -> None:
    rng = np.random.default_rng(seed)
    predicted, costs = rng.random((25, 4)), np.array([1.0, 2.0, 2.5, 4.0])
    price = price_for(predicted, costs, budget)
    chosen = (predicted - price * costs).argmax(axis=1)
    assert costs[chosen].mean() <= budget + 1e-9
    dual = price * budget + (predicted - price * costs).max(axis=1).mean()
    assert dual == pytest.approx(programme(predicted, costs, budget), abs=1e-9)
    if price:  # a little less is too little: it is the least price
        assert costs[(predicted - (price - 1e-6) * costs).argmax(axis=1)].mean() > budget
    else:
        assert costs[predicted.argmax(axis=1)].mean() <= budget


@pytest.mark.parametrize("seed", range(3))
def test_no_other_assignment_within_what_is_spent_scores_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    predicted, costs = rng.random((6, 3)), np.array([1.0, 2.0, 5.0])
    price = price_for(predicted, costs, 2.2)
    chosen = (predicted - price * costs).argmax(axis=1)
    spent, reached = costs[chosen].sum(), predicted[np.arange(6), chosen].sum()
    for number in range(3**6):
        other = np.array([number // 3**place % 3 for place in range(6)])
        if costs[other].sum() <= spent + 1e-9:
            assert predicted[np.arange(6), other].sum() <= reached + 1e-9


def test_the_choices_over_the_table_meet_the_budget() -> None:
    embeddings, scores = random_table(2, num_rows=300, graded=True)
    data = table_data(embeddings, scores)
    costs = {"expert-000": 2.0, "expert-001": 5.0, "unheard-of": 9.0}
    paid = np.array([1.0, 2.0, 5.0, 3.0])
    _, _, predicted = fit_ridge(embeddings.astype(np.float64), scores, 1.0)
    for budget in (1.0, 1.5, 2.5):
        router = fitted(RoutooRouter, data, costs=costs, cost_expert=3.0, budget=budget)
        assert isinstance(router, RoutooRouter)
        spent = paid[(predicted - router.price * paid).argmax(axis=1)].mean()
        assert spent <= budget + 1e-9
        assert spent > budget - 4 / 300 - 1e-9  # one prompt more would be too dear
    free = fitted(RoutooRouter, data, costs=costs, cost_expert=3.0)
    assert isinstance(free, RoutooRouter)
    assert free.price == 0


def test_fresh_prompts_cost_about_the_budget() -> None:
    embeddings, scores = random_table(3, num_rows=2000, dim=40, graded=True)
    data = table_data(embeddings[:150], scores[:150])  # few prompts for 40 dimensions: fitted scores are too sure
    router = fitted(RoutooRouter, data, cost_expert=4.0, budget=2.0, ridge=0.01)
    spent = [1.0 if router.route(RouteQuery("", row)).abstained else 4.0 for row in embeddings[150:]]
    assert np.mean(spent) == pytest.approx(2.0, abs=0.25)


def test_net_scores_decide_and_predicted_scores_are_the_confidence() -> None:
    embeddings, scores = random_table(4, num_rows=80, graded=True)
    weights, bias, _ = fit_ridge(embeddings.astype(np.float64), scores, 1.0)
    router = fitted(RoutooRouter, table_data(embeddings, scores), cost_expert=2.0, budget=1.4)
    assert isinstance(router, RoutooRouter)
    for row in embeddings[:20].astype(np.float64):
        predicted = weights @ row + bias
        np.testing.assert_allclose(ask(router, row), predicted - router.price * np.array([1, 2, 2, 2]), atol=1e-6)
        decision = router.route(RouteQuery("", row.astype(np.float32)))
        best = int(predicted[1:].argmax())
        assert decision.confidence == pytest.approx(np.clip(predicted[1 + best], 0, 1), abs=1e-6)
        worth_it = predicted[1 + best] - predicted[0] > router.price
        assert [e.expert_id for e in decision.experts] == ([expert_id(best)] if worth_it else [])


def test_a_budget_below_every_model_is_refused() -> None:
    embeddings, scores = random_table(5)
    config = RoutooRouter.config_class.model_validate({"budget": 0.5})
    with pytest.raises(NotFittable, match="cheapest model costs 1"):
        RoutooRouter.fit(config, table_data(embeddings, scores), no_progress)


def test_a_budget_of_exactly_what_everything_costs_is_enough() -> None:
    embeddings, scores = random_table(6)
    router = fitted(RoutooRouter, table_data(embeddings, scores), cost_base=0.1, cost_expert=0.1, budget=0.1)
    assert isinstance(router, RoutooRouter)
    assert router.price == 0
