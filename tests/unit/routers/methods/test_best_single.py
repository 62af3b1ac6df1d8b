"""The best model on average, against means in plain Python."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from routers.base import Artefact, FitData, LibraryExpert, RouteQuery, Sample, ScoreTable, no_progress
from routers.errors import BadArtefact, NotFittable
from routers.fitting import fit_data
from routers.methods.best_single import BestSingleConfig, BestSingleRouter
from tests.unit.routers.builders import expert_id, ids


def table_of(scores: np.ndarray, tasks: list[str], models: tuple[str, ...]) -> ScoreTable:
    blank = np.full(scores.shape, np.nan)
    samples = tuple(Sample(f"prompt {row}", "", task) for row, task in enumerate(tasks))
    return ScoreTable(models, samples, np.zeros((len(tasks), 2), np.float32), scores, blank, blank, blank)


def library(num_experts: int, table: ScoreTable | None) -> FitData:
    return replace(fit_data([LibraryExpert(expert_id(i)) for i in range(num_experts)], {}, "none"), scores=table)


def fitted(data: FitData, **options: int) -> BestSingleRouter:
    config = BestSingleConfig(**options)
    return BestSingleRouter.load(config, BestSingleRouter.fit(config, data, no_progress))


def macro_mean(column: list[float], tasks: list[str], counted: set[str]) -> float:
    means = []
    for task in sorted(counted):
        known = [score for score, own in zip(column, tasks, strict=True) if own == task and not math.isnan(score)]
        means.append(sum(known) / len(known) if known else math.nan)
    return sum(means) / len(means)


@pytest.mark.parametrize("seed", range(8))
def test_the_best_macro_mean_among_those_allowed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_experts = 6
    tasks = [f"task {n}" for n in np.repeat(np.arange(4), [1, 2, 30, 9])]
    scores = rng.random((len(tasks), num_experts + 1)).round(2)
    scores[rng.random(scores.shape) < 0.2] = np.nan
    models = ("base", *(expert_id(i) for i in rng.permutation(num_experts)))
    router = fitted(library(num_experts, table_of(scores, tasks, models)), max_candidates=99)
    counted = {task for task, row in zip(tasks, scores, strict=True) if np.isfinite(row).any()}
    expected = {model: macro_mean(scores[:, column].tolist(), tasks, counted) for column, model in enumerate(models)}
    base = expected.pop("base")
    for size in range(1, num_experts + 1):
        allowed = frozenset(expert_id(int(i)) for i in rng.choice(num_experts, size, replace=False))
        known = {m: s for m, s in expected.items() if m in allowed and not math.isnan(s)}
        decision = router.route(RouteQuery("", candidates=allowed))
        assert {s.expert_id: s.score for s in decision.candidates} == pytest.approx(known)
        best = max(known, key=lambda model: known[model], default=None)
        if best is None or known[best] <= base:
            assert decision.abstained
        else:
            assert ids(decision.experts) == [best]
            assert decision.confidence == pytest.approx(known[best])


def test_every_task_weighs_the_same() -> None:
    tasks = ["large"] * 9 + ["small"]
    scores = np.array([[0, 1, 0]] * 9 + [[0, 0, 1]], float)
    scores[0, 2] = 1  # 1/9 and 1, against 1 and 0
    router = fitted(library(2, table_of(scores, tasks, ("base", expert_id(0), expert_id(1)))))
    assert ids(router.route(RouteQuery("")).experts) == [expert_id(1)]


def test_a_model_that_missed_a_task_is_not_compared() -> None:
    scores = np.array([[0.1, 0.2, 0.9], [0.1, 0.2, np.nan], [np.nan, np.nan, np.nan]])
    router = fitted(library(2, table_of(scores, ["easy", "hard", "new"], ("base", expert_id(0), expert_id(1)))))
    assert ids(router.route(RouteQuery("")).candidates) == [expert_id(0)]
    assert router.route(RouteQuery("", candidates=frozenset({expert_id(1)}))).abstained


@pytest.mark.parametrize(("base", "abstains"), [(0.5, True), (0.49, False), (math.nan, False)])
def test_the_base_answers_where_no_expert_is_better(base: float, abstains: bool) -> None:
    router = fitted(library(1, table_of(np.array([[base, 0.5]]), ["t"], ("base", expert_id(0)))))
    assert router.route(RouteQuery("")).abstained == abstains


def test_ties_go_by_name_and_experts_outside_the_library_are_left_out() -> None:
    models = ("base", expert_id(7), expert_id(1), expert_id(0))
    router = fitted(library(2, table_of(np.array([[0.0, 1.0, 0.5, 0.5]]), ["t"], models)))
    assert ids(router.route(RouteQuery("")).candidates) == [expert_id(0), expert_id(1)]


def test_without_a_table_it_cannot_be_fitted() -> None:
    with pytest.raises(NotFittable):
        fitted(library(2, None))


def test_without_any_score_it_abstains() -> None:
    router = fitted(library(1, table_of(np.full((1, 2), np.nan), ["t"], ("base", expert_id(0)))))
    assert router.route(RouteQuery("")).abstained
    router = fitted(library(1, table_of(np.zeros((0, 2)), [], ("base", expert_id(0)))))
    assert router.route(RouteQuery("")).abstained


@pytest.mark.parametrize("arrays", [{}, {"scores": np.zeros(1)}, {"scores": np.zeros((2, 1))}])
def test_a_garbled_artefact_is_refused(arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(BadArtefact):
        BestSingleRouter.load(
            BestSingleConfig(), Artefact("best_single", arrays, {"experts": ["a@00000000"]}, "v", "e")
        )
