"""Routing with benchmark data sets against its formulae in plain loops."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from routers.base import RouteQuery, no_progress
from routers.errors import BadArtefact
from routers.families.score_table import scored_of
from routers.methods.benchmark_routing import (
    BenchmarkRoutingRouter,
    Neighbours,
    held_out_tasks,
    scotts_rule,
    smooth,
)
from tests.unit.routers.builders import around, centres, expert_id, unit
from tests.unit.routers.tables import ask, fitted, random_table, table_data, window


def g_by_hand(x: np.ndarray, embeddings: np.ndarray, scores: np.ndarray, k: int) -> list[float]:
    """Mean score of each model on the k nearest prompts for which it is known."""
    found = []
    for column in scores.T:
        known = [(float(row @ x), score) for row, score in zip(embeddings, column, strict=True) if not np.isnan(score)]
        nearest = sorted(known, key=lambda pair: -pair[0])[:k]
        found.append(sum(score for _, score in nearest) / len(nearest) if nearest else np.nan)
    return found


def distance_by_hand(x: np.ndarray, embeddings: np.ndarray, k: int) -> float:
    return float(np.mean(sorted(1 - embeddings @ x)[:k]))


@pytest.mark.parametrize("unknown", [0.0, 0.4])
@pytest.mark.parametrize("k", [1, 5, 100])
def test_predictions_are_means_over_the_nearest(unknown: float, k: int) -> None:
    embeddings, scores = random_table(1, unknown=unknown, graded=True)
    scores[3:, 2] = np.nan  # a model with three scores
    prompts = unit(np.random.default_rng(9).normal(size=(70, 6)))  # more than a block
    g, distances = Neighbours(embeddings, scores).predict(prompts, k)
    expected = np.array([g_by_hand(x, embeddings, scores, k) for x in prompts])
    np.testing.assert_allclose(g, expected, atol=1e-6)
    np.testing.assert_allclose(distances, [distance_by_hand(x, embeddings, k) for x in prompts], atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_s1_and_s2_are_means_over_the_window(seed: int) -> None:
    embeddings, scores = random_table(seed, unknown=0.2)
    data = table_data(embeddings, scores)
    prompts = unit(np.random.default_rng(50 + seed).normal(size=(4, 6)))
    g = np.array([g_by_hand(x, embeddings, scores, 5) for x in prompts])
    for score, expected in (("s1", g), ("s2", (g > 0.5).astype(float))):
        router = fitted(BenchmarkRoutingRouter, data, score=score)
        np.testing.assert_allclose(ask(router, prompts[-1]), expected[-1], atol=1e-6)
        decision = router.route(RouteQuery("", prompts[-1], window=window(prompts)))
        shown = {candidate.expert_id: candidate.score for candidate in decision.candidates}
        assert shown == pytest.approx({expert_id(i): expected[:, i + 1].mean() for i in range(3)}, abs=1e-6)


def test_prompts_of_the_window_that_say_nothing_are_left_out() -> None:
    embeddings, scores = random_table(2)
    router = fitted(BenchmarkRoutingRouter, table_data(embeddings, scores))
    rows = np.stack([embeddings[0], np.full(6, np.nan), embeddings[1]])
    with_nan = router.route(RouteQuery("", embeddings[1], window=window(rows)))
    assert with_nan == router.route(RouteQuery("", embeddings[1], window=window(rows[[0, 2]])))
    assert with_nan != router.route(RouteQuery("", embeddings[1]))
    alone = router.route(RouteQuery("", embeddings[1], window=window(rows[[1]])))
    assert alone == router.route(RouteQuery("", embeddings[1]))


def test_all_prompts_as_neighbours_give_the_best_model_on_average() -> None:
    embeddings, scores = random_table(3, num_models=6)
    router = fitted(BenchmarkRoutingRouter, table_data(embeddings, scores), k=1000)
    for prompt in unit(np.random.default_rng(1).normal(size=(5, 6))):
        np.testing.assert_allclose(ask(router, prompt), scores.mean(axis=0))


def of_tasks(seed: int, unknown: float = 0.0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Five tasks of which some are near each other."""
    embeddings = np.concatenate([around(c, 12, 0.5 + 0.3 * i, i) for i, c in enumerate(centres(5, 6, seed))])
    _, scores = random_table(seed, num_rows=60, unknown=unknown)
    scores[np.isnan(scores).all(axis=1), 0] = 0.0
    return embeddings, scores, [f"task {row // 12}" for row in range(60)]


@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_tasks_are_held_out_one_at_a_time(unknown: float) -> None:
    embeddings, scores, tasks = of_tasks(4, unknown)
    distances, accuracies = held_out_tasks(scored_of(table_data(embeddings, scores, tasks)), 5, 0.5, no_progress)
    for number, task in enumerate(sorted(set(tasks))):
        own = [row for row in range(60) if tasks[row] == task]
        rest = [row for row in range(60) if tasks[row] != task]
        u = np.mean([distance_by_hand(embeddings[row], embeddings[rest], 5) for row in own])
        assert distances[number] == pytest.approx(u, abs=1e-6)
        for model in range(4):
            g = {row: g_by_hand(embeddings[row], embeddings[rest], scores[rest], 5)[model] for row in own}
            right = [(g[r] > 0.5) == (scores[r, model] > 0.5) for r in own if not np.isnan(scores[r, model])]
            assert accuracies[number, model] == pytest.approx(np.mean(right))


def test_the_smoother_weighs_tasks_by_distance() -> None:
    rng = np.random.default_rng(6)
    distances, accuracies = rng.random(7), rng.random((7, 3))
    accuracies[2:, 2] = np.nan
    found = smooth(0.4, distances, accuracies, 0.2)
    for model in range(3):
        pairs = [(NormalDist(0.4, 0.2).pdf(u), p) for u, p in zip(distances, accuracies[:, model], strict=True)]
        pairs = [(weight, p) for weight, p in pairs if not np.isnan(p)]
        assert found[model] == pytest.approx(sum(w * p for w, p in pairs) / sum(w for w, _ in pairs))
    far = smooth(1e6, distances, accuracies, 0.01)  # every weight underflows: the nearest task speaks
    assert far[0] == pytest.approx(accuracies[distances.argmax(), 0])
    np.testing.assert_array_equal(smooth(0.4, np.empty(0), np.empty((0, 3)), 0.1), [0.5] * 3)
    assert scotts_rule(distances) == pytest.approx(np.std(distances, ddof=1) * 7 ** (-1 / 5))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("eta", [0.0, 0.6, 0.95])
def test_s3_or_the_mean_scores_if_it_is_not_sure_enough(seed: int, eta: float) -> None:
    embeddings, scores, tasks = of_tasks(seed)
    data = table_data(embeddings, scores, tasks)
    router = fitted(BenchmarkRoutingRouter, data, score="s3", eta=eta, bandwidth=0.05)
    distances, accuracies = held_out_tasks(scored_of(data), 5, 0.5, no_progress)
    prompts = around(centres(5, 6, seed)[2], 9, 1.0, seed)
    s2 = np.mean([np.array(g_by_hand(x, embeddings, scores, 5)) > 0.5 for x in prompts], axis=0)
    u = np.mean([distance_by_hand(x, embeddings, 5) for x in prompts])
    p = smooth(u, distances, accuracies, 0.05)
    s3 = s2 * p + (1 - s2) * (1 - p)
    winner, average = s3.argmax(), scores.mean(axis=0).argmax()
    spread = np.sqrt((p[winner] * (1 - p[winner]) + p[average] * (1 - p[average])) / 9)
    sure = winner == average or NormalDist().cdf((s3[winner] - s3[average]) / spread) > eta
    expected = s3 if sure else scores.mean(axis=0)
    decision = router.route(RouteQuery("", prompts[-1], window=window(prompts)))
    shown = {candidate.expert_id: candidate.score for candidate in decision.candidates}
    assert shown == pytest.approx({expert_id(i): expected[i + 1] for i in range(3)}, abs=1e-6)
    best = int(expected.argmax())
    assert [e.expert_id for e in decision.experts] == ([expert_id(best - 1)] if best else [])
    assert ("mean score over the table" in decision.reason) == (not sure)


def test_s3_leaves_out_models_that_may_not_be_used() -> None:
    embeddings, scores, tasks = of_tasks(1)
    scores[:, 3] = 1.0  # the best by far, and forbidden
    router = fitted(BenchmarkRoutingRouter, table_data(embeddings, scores, tasks), score="s3")
    others = fitted(BenchmarkRoutingRouter, table_data(embeddings, scores[:, :3], tasks), score="s3")
    mine = frozenset({expert_id(0), expert_id(1)})
    for prompt in embeddings[::7]:
        assert router.route(RouteQuery("", prompt, mine)).experts == others.route(RouteQuery("", prompt)).experts


def test_s3_with_a_single_task_takes_the_best_model_on_average() -> None:
    embeddings, scores = random_table(8)
    router = fitted(BenchmarkRoutingRouter, table_data(embeddings, scores, ["one"] * 60), score="s3")
    for prompt in embeddings[:9]:
        average = int(scores.mean(axis=0).argmax())
        chosen = router.route(RouteQuery("", prompt)).experts
        assert [e.expert_id for e in chosen] == ([expert_id(average - 1)] if average else [])


def test_an_artefact_of_s1_does_not_serve_s3() -> None:
    embeddings, scores = random_table(1)
    config = BenchmarkRoutingRouter.config_class
    artefact = BenchmarkRoutingRouter.fit(config(), table_data(embeddings, scores), no_progress)
    with pytest.raises(BadArtefact):
        BenchmarkRoutingRouter.load(config(score="s3"), artefact)  # type: ignore[call-arg]
