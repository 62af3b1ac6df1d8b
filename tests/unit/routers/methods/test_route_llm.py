"""RouteLLM: estimators against scikit-learn and torch, rows and thresholds against plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from routers.base import FitData, RouteQuery, no_progress
from routers.errors import BadArtefact, NotFittable
from routers.families.score_table import scored_of
from routers.maths.sigmoid import sigmoids
from routers.methods import route_llm_win_rates as estimators
from routers.methods.route_llm import RouteLlmConfig, RouteLlmRouter, calibrated, preference_rows
from routers.methods.route_llm_win_rates import Factors, factorise, gradients, learn_win_rates, win_rates
from tests.unit.routers.builders import around, centres, expert_id, unit
from tests.unit.routers.tables import fitted, random_table, table_data

A, B, C = (expert_id(i) for i in range(3))
TRAINING: dict[str, Any] = {"dim": 8, "epochs": 1, "noise": 0.0, "ridge": 0.01, "seed": 0}


def rows(seed: int, num_rows: int = 200, dim: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Prompts whose outcome depends on a direction, with noise and ties."""
    rng = np.random.default_rng(seed)
    x = unit(rng.normal(size=(num_rows, dim))).astype(np.float64)
    lean = x @ rng.normal(size=dim) * 1.5 + 0.3 + rng.logistic(size=num_rows)
    return x, np.where(np.abs(lean) < 0.3, 0.5, (lean > 0).astype(float))


# -- estimators ---------------------------------------------------------------------------------------------------


def test_slopes_of_matrix_factorisation_are_torch_s() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    parameters = Factors(rng.normal(size=(2, 7)), rng.normal(size=(7, 4)), rng.normal(size=7))
    x, sign = rng.normal(size=(9, 4)), rng.choice([-1.0, 1.0], 9)
    leaves = Factors(*(torch.tensor(value, requires_grad=True) for value in parameters))
    unit_models = torch.nn.functional.normalize(leaves.models, dim=1)
    winner = torch.tensor(np.where(sign > 0, 0, 1))
    contrast = unit_models[winner] - unit_models[1 - winner]  # the authors put the winner first
    logits = (contrast * (torch.tensor(x) @ leaves.projection.T)) @ leaves.classifier
    torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.ones(9, dtype=torch.float64)).backward()
    for slope, leaf in zip(gradients(parameters, x, sign), leaves, strict=True):
        np.testing.assert_allclose(slope, leaf.grad.numpy(), atol=1e-12)


def test_matrix_factorisation_is_torch_s_adam_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(estimators, "MIN_STEPS", 25)
    x, y = rows(1, 40, 3)
    decided, sign = x[y != 0.5], np.where(y[y != 0.5] == 1, 1.0, -1.0)
    assert len(sign) <= 64  # one batch: the order within it does not matter
    rng = np.random.default_rng(4)  # the same start and noise as the code under test
    models = torch.tensor(rng.normal(size=(2, 6)), requires_grad=True)
    projection = torch.tensor(rng.uniform(-1, 1, size=(6, 3)) / math.sqrt(3), requires_grad=True)
    classifier = torch.tensor(rng.uniform(-1, 1, size=6) / math.sqrt(6), requires_grad=True)
    optimiser = torch.optim.Adam([models, projection, classifier], lr=3e-4, weight_decay=1e-5)
    for _ in range(25):
        order = rng.permutation(len(sign))
        noisy = torch.tensor(decided[order] + 0.1 * rng.normal(size=decided.shape))
        unit_models = torch.nn.functional.normalize(models, dim=1)
        logits = ((unit_models[0] - unit_models[1]) * (noisy @ projection.T)) @ classifier
        loss = torch.nn.functional.softplus(-torch.tensor(sign[order]) * logits).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    unit_models = torch.nn.functional.normalize(models, dim=1)
    expected = projection.T @ (classifier * (unit_models[0] - unit_models[1]))
    found = factorise(x, y, dim=6, epochs=1, noise=0.1, seed=4)
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-10)


@pytest.mark.parametrize("seed", range(2))
def test_matrix_factorisation_comes_near_logistic_regression(seed: int) -> None:
    x, y = rows(seed)
    direction = factorise(x, y, dim=128, epochs=100, noise=0.0, seed=0)
    decided = y != 0.5
    reference = LogisticRegression(C=1e6, fit_intercept=False, tol=1e-8).fit(x[decided], y[decided])
    np.testing.assert_allclose(sigmoids(x @ direction), reference.predict_proba(x)[:, 1], atol=0.03)


def test_matrix_factorisation_learns_from_few_prompts_of_many_dimensions() -> None:
    first, second = centres(2, 384, 1)
    x = np.concatenate([around(first, 12, 0.5, 1), around(second, 12, 0.5, 2)]).astype(np.float64)
    y = np.repeat([1.0, 0.0], 12)
    direction = factorise(x, y, dim=128, epochs=100, noise=0.1, seed=0)
    fresh = np.concatenate([around(first, 20, 0.5, 3), around(second, 20, 0.5, 4)]).astype(np.float64)
    rates = sigmoids(fresh @ direction)
    assert rates[:20].min() > 0.6
    assert rates[20:].max() < 0.4


@pytest.mark.parametrize("seed", range(3))
def test_similarity_weighted_ranking_is_bradley_terry_on_doubled_battles(seed: int) -> None:
    x, y = rows(seed, 60)
    arrays = learn_win_rates("sw_ranking", x, y, **TRAINING)
    prompts = unit(np.random.default_rng(9).normal(size=(6, 5))).astype(np.float64)
    for prompt, rate in zip(prompts, win_rates("sw_ranking", arrays, [""] * 6, prompts), strict=True):
        cosines = x @ prompt
        weights = 10 * 10 ** (cosines / cosines.max())
        design = np.tile([math.log(10), -math.log(10)], (120, 1))  # the authors' columns, strong and weak
        won = np.concatenate([y >= 0.5, y > 0.5]).astype(int)  # a tie is one battle won and one lost
        reference = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(
            design, won, sample_weight=np.tile(weights, 2)
        )
        strong, weak = 400 * reference.coef_[0] + 1000
        assert rate == pytest.approx(1 - 1 / (1 + 10 ** ((strong - weak) / 400)), abs=1e-4)


def test_similarity_weighted_ranking_of_a_prompt_that_nothing_resembles() -> None:
    x, y = np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([1.0, 0.0])
    arrays = learn_win_rates("sw_ranking", x, y, **TRAINING)
    assert win_rates("sw_ranking", arrays, [""], np.array([[-1.0, 0.0]])) == pytest.approx([0.5])


@pytest.mark.parametrize("outcomes", [[0.0, 0.5, 1.0], [0.0, 0.5], [0.5, 1.0], [1.0]])
def test_the_classifier_is_logistic_regression_over_win_tie_and_loss(outcomes: list[float]) -> None:
    x, _ = rows(2, 90)
    y = np.array([outcomes[rank * len(outcomes) // 90] for rank in np.argsort(np.argsort(x[:, 0])).tolist()])
    arrays = learn_win_rates("classifier", x, y, **TRAINING)
    found = win_rates("classifier", arrays, [""] * 90, x)
    if len(outcomes) == 3:
        reference = LogisticRegression(C=1 / (0.01 * 90), tol=1e-10, max_iter=5000).fit(x, (2 * y).astype(int))
        np.testing.assert_allclose(found, reference.predict_proba(x)[:, 2], atol=1e-5)
    elif len(outcomes) == 2:
        reference = LogisticRegression(C=2 / (0.01 * 90), tol=1e-10, max_iter=5000).fit(x, y == outcomes[1])
        expected = reference.predict_proba(x)[:, 1] if outcomes[1] == 1.0 else np.zeros(90)
        np.testing.assert_allclose(found, expected, atol=1e-5)  # scikit-learn has one row w for our two, ±w/2
    else:
        np.testing.assert_array_equal(found, np.ones(90))


def test_random_depends_on_text_and_seed_alone_and_is_even() -> None:
    texts = [f"prompt {number}" for number in range(4000)]
    first = win_rates("random", {}, texts, np.zeros((4000, 2)), 1)
    np.testing.assert_array_equal(first, win_rates("random", {}, texts, np.ones((4000, 2)), 1))
    other = win_rates("random", {}, texts, np.zeros((4000, 2)), 2)
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.06
    np.testing.assert_allclose(np.quantile(first, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)


@pytest.mark.parametrize("estimator", ["mf", "sw_ranking", "classifier"])
def test_without_rows_it_is_even(estimator: Any) -> None:
    arrays = learn_win_rates(estimator, np.zeros((0, 4)), np.zeros(0), **TRAINING)
    np.testing.assert_array_equal(win_rates(estimator, arrays, ["a", "b"], np.ones((2, 4))), [0.5, 0.5])


# -- preference rows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weak", ["base", C])
@pytest.mark.parametrize("strong", [None, [A, B]])
def test_rows_compare_the_strong_model_s_score_with_the_weak_one_s(weak: str, strong: list[str] | None) -> None:
    embeddings, scores = random_table(0, unknown=0.2)
    scores[:, 1] = np.where(np.arange(60) % 3 == 0, 0.5, scores[:, 1])
    directions = centres(4, 6)
    directions[3] = np.nan  # an expert without an example
    experts = (A, B, C, expert_id(3))
    x, y = preference_rows(scored_of(table_data(embeddings, scores)), experts, directions, strong, weak)
    expected = []
    for embedding, row in zip(embeddings, scores, strict=True):
        able = [number for number in range(3) if experts[number] != weak]
        nearest = max(able, key=lambda number: float(directions[number] @ embedding))
        theirs = row[1 + nearest] if strong is None else (row[1] + row[2]) / 2
        mine = row[0] if weak == "base" else row[3]
        if not math.isnan(theirs - mine):
            expected.append((embedding, 1.0 if theirs > mine else 0.0 if theirs < mine else 0.5))
    np.testing.assert_array_equal(x, [embedding for embedding, _ in expected])
    assert y.tolist() == [outcome for _, outcome in expected]
    assert set(y.tolist()) == {0.0, 0.5, 1.0}


# -- thresholds and decisions -------------------------------------------------------------------------------------


def clusters(seed: int = 0) -> tuple[FitData, np.ndarray]:
    """Three experts in their clusters: A beats the base there, B ties with it, C loses."""
    directions = centres(3, 16, seed)
    embeddings = np.concatenate([around(direction, 40, 0.6, number) for number, direction in enumerate(directions)])
    scores = np.full((120, 4), 0.5)
    scores[:40, 1], scores[80:, 3] = 1.0, 0.0
    examples = {expert: around(direction, 8, 0.4, 9) for expert, direction in zip((A, B, C), directions, strict=True)}
    return table_data(embeddings, scores, experts=examples), directions


@pytest.mark.parametrize("estimator", ["mf", "sw_ranking", "classifier", "random"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_share_of_the_strong_model_is_met_on_the_table(estimator: str, share: float) -> None:
    data, _ = clusters()
    router = fitted(RouteLlmRouter, data, estimator=estimator, strong_share=share)
    assert data.scores is not None
    pairs = zip(data.scores.samples, data.scores.embeddings, strict=True)
    strong = [not router.route(RouteQuery(sample.prompt, row)).abstained for sample, row in pairs]
    assert np.mean(strong) == pytest.approx(share, abs=1.5 / 120)


@pytest.mark.parametrize("estimator", ["mf", "sw_ranking", "classifier", "random"])
def test_the_threshold_of_the_query_comes_first(estimator: str) -> None:
    data, directions = clusters()
    for own in (None, 0.0, 2.0):
        router = fitted(RouteLlmRouter, data, estimator=estimator, threshold=own)
        for number, direction in enumerate(directions):
            always = router.route(RouteQuery("prompt", direction, threshold=0.0))
            assert [e.expert_id for e in always.experts] == [(A, B, C)[number]]
            assert router.route(RouteQuery("prompt", direction, threshold=1.01)).abstained
            rate = always.confidence
            assert not router.route(RouteQuery("prompt", direction, threshold=rate)).abstained
            assert router.route(RouteQuery("prompt", direction, threshold=np.nextafter(rate, 2))).abstained
            if own is not None:
                assert router.route(RouteQuery("prompt", direction)).abstained == (own == 2.0)


@pytest.mark.parametrize("estimator", ["mf", "sw_ranking", "classifier"])
def test_where_the_expert_wins_its_rate_is_high(estimator: str) -> None:
    data, directions = clusters()
    router = fitted(RouteLlmRouter, data, estimator=estimator)
    winning, _, losing = (router.route(RouteQuery("", direction)).confidence for direction in directions)
    assert winning > 0.6
    assert losing < 0.4


def test_the_calibrated_threshold_is_a_quantile() -> None:
    rates = np.random.default_rng(0).random(1000)
    for share in (0.1, 0.5, 1.0):
        assert (rates >= calibrated(rates, share)).mean() == pytest.approx(share, abs=1e-3)
    assert calibrated(np.full(9, 0.5), 0.5) > 0.5  # nothing was learned: the weak model
    assert calibrated(np.full(9, 1.0), 0.5) <= 1.0
    assert calibrated(np.empty(0), 0.5) > 0.5


def test_a_list_of_experts_is_mixed_equally_as_far_as_it_may_be_used() -> None:
    data, directions = clusters()
    router = fitted(RouteLlmRouter, data, strong=["expert-001", "expert-000"], threshold=0.0)
    decision = router.route(RouteQuery("", directions[2]))
    assert {e.expert_id: e.weight for e in decision.experts} == {A: 0.5, B: 0.5}
    some = router.route(RouteQuery("", directions[2], frozenset({B, C})))
    assert {e.expert_id: e.weight for e in some.experts} == {B: 1.0}
    none = router.route(RouteQuery("", directions[2], frozenset({C})))
    assert none.abstained
    assert not none.candidates


def test_a_cheap_expert_as_the_weak_model() -> None:
    data, directions = clusters()
    router = fitted(RouteLlmRouter, data, weak="expert-000", threshold=2.0)
    assert [e.expert_id for e in router.route(RouteQuery("", directions[1])).experts] == [A]
    assert router.route(RouteQuery("", directions[1], frozenset({B, C}))).abstained
    only_weak = router.route(RouteQuery("", directions[1], frozenset({A})))
    assert [e.expert_id for e in only_weak.experts] == [A]
    strong = router.route(RouteQuery("", directions[0], threshold=0.0))
    assert strong.experts[0].expert_id != A  # the weak model is not the strong one, near as it is
    assert A not in {candidate.expert_id for candidate in strong.candidates}


def test_candidates_are_the_nearest_experts() -> None:
    data, directions = clusters()
    router = fitted(RouteLlmRouter, data, threshold=0.0)
    means = {expert: data.embeddings[expert].astype(np.float64).mean(axis=0) for expert in (A, B, C)}
    decision = router.route(RouteQuery("", directions[1]))
    shown = {candidate.expert_id: candidate.score for candidate in decision.candidates}
    assert shown == pytest.approx({e: m @ directions[1] / np.linalg.norm(m) for e, m in means.items()}, abs=1e-6)
    assert decision.experts[0].expert_id == decision.candidates[0].expert_id == B


def test_scores_that_nobody_knows_leave_the_prompt_to_the_base() -> None:
    embeddings, scores = random_table(0, num_models=2)
    scores[:, 0] = np.nan
    data = table_data(embeddings, scores)
    for estimator in ("mf", "sw_ranking", "classifier"):
        decision = fitted(RouteLlmRouter, data, estimator=estimator).route(RouteQuery("", embeddings[0]))
        assert decision.abstained
        assert decision.confidence == 0.5


def test_names_that_the_library_lacks_are_refused() -> None:
    data, _ = clusters()
    for options in ({"strong": ["expert-000", "nobody"]}, {"weak": "nobody"}):
        with pytest.raises(NotFittable, match="no expert named nobody"):
            RouteLlmRouter.fit(RouteLlmConfig.model_validate(options), data, no_progress)
    with pytest.raises(ValueError, match="strong"):
        RouteLlmConfig.model_validate({"strong": []})


def test_an_artefact_of_another_estimator_is_refused() -> None:
    data, _ = clusters()
    artefact = RouteLlmRouter.fit(RouteLlmConfig(), data, no_progress)
    with pytest.raises(BadArtefact):
        RouteLlmRouter.load(RouteLlmConfig(estimator="classifier"), artefact)
