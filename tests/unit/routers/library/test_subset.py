"""Choosing experts of a library: greedy selection against brute force, medoids against theirs, and the rest of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from pydantic import ValidationError

from routers.base import FitData, LibraryExpert, Sample, ScoreTable
from routers.errors import NotFittable
from routers.fitting import fit_data
from routers.library.subset import restrict, select
from routers.library.subset_config import SubsetConfig
from tests.unit.routers.builders import around, centres, clustered, expert_id, library_of, unit


def table_of(scores: np.ndarray, tasks: list[str], models: tuple[str, ...] | None = None) -> ScoreTable:
    num, width = scores.shape
    models = models or ("base", *(expert_id(i) for i in range(width - 1)))
    samples = tuple(Sample(f"prompt {n}", "x", task) for n, task in enumerate(tasks))
    return ScoreTable(models, samples, unit(np.ones((num, 4))), scores, scores + 1, scores + 2, scores + 3)


def scored(scores: np.ndarray, tasks: list[str] | None = None) -> FitData:
    experts = [LibraryExpert(expert_id(i)) for i in range(scores.shape[1] - 1)]
    return replace(fit_data(experts, {}, "none"), scores=table_of(scores, tasks or [""] * len(scores)))


def greedily(size: int, data: FitData) -> tuple[str, ...]:
    return select(SubsetConfig(method="greedy", size=size), data)


def value(scores: np.ndarray, tasks: list[str], chosen: tuple[str, ...]) -> float:
    """Mean over tasks of the mean score of an oracle with the base and these experts; unknown scores are zero."""
    by_task: dict[str, list[float]] = {}
    for row, task in zip(scores, tasks, strict=True):
        known = [row[0], *(row[1 + int(expert[7:10])] for expert in chosen)]
        by_task.setdefault(task, []).append(max(0.0 if np.isnan(score) else score for score in known))
    return sum(sum(own) / len(own) for own in by_task.values()) / len(by_task)


def random_scores(seed: int, num_experts: int = 7) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    num = int(rng.integers(5, 40))
    scores = rng.uniform(size=(num, num_experts + 1)) ** 3
    if seed % 2:
        scores = (scores > 0.4).astype(np.float64)
    scores[rng.uniform(size=scores.shape) < 0.1] = np.nan
    return scores, [f"task {n}" for n in rng.integers(0, 4, num)]


@pytest.mark.parametrize("seed", range(12))
def test_greedy_against_all_subsets(seed: int) -> None:
    scores, tasks = random_scores(seed)
    data = scored(scores, tasks)
    alone = value(scores, tasks, ())
    before: tuple[str, ...] = ()
    for size in range(1, 7):
        chosen = greedily(size, data)
        assert len(chosen) == size
        assert chosen == tuple(sorted(chosen))
        best = max(value(scores, tasks, each) for each in combinations(data_ids(data), size))
        reached = value(scores, tasks, chosen)
        assert reached - alone >= (1 - 1 / np.e) * (best - alone) - 1e-12
        if size == 1:
            assert reached == pytest.approx(best)
        assert set(before) < set(chosen)  # each step adds one
        gains = [value(scores, tasks, (*before, e)) for e in data_ids(data) if e not in before]
        assert reached == pytest.approx(max(gains))
        assert reached >= value(scores, tasks, before) - 1e-12
        before = chosen


def data_ids(data: FitData) -> list[str]:
    return [expert.expert_id for expert in data.experts]


def test_greedy_is_not_the_best_singles() -> None:
    """Two good experts for the same prompts are worth less than one of them and a worse one for the others."""
    scores = np.array([[0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0.9, 0], [0, 0, 0, 1.0]])
    assert greedily(2, scored(scores)) == (expert_id(0), expert_id(2))


def test_every_task_weighs_the_same() -> None:
    scores = np.zeros((12, 3))
    scores[:9, 1], scores[:2, 1] = 1, 0  # 7 of 10 prompts of one task
    scores[10:, 2] = 1  # both prompts of the other
    tasks = ["large"] * 10 + ["small"] * 2
    assert greedily(1, scored(scores, tasks)) == (expert_id(1),)
    assert greedily(1, scored(scores)) == (expert_id(0),)


def test_ties_and_experts_without_scores_go_by_id() -> None:
    same = scored(np.tile([0.1, 0.3, 0.3, 0.3], (7, 1)), list("aaabbcc"))
    assert greedily(2, same) == (expert_id(0), expert_id(1))
    for seed in range(20):  # equal but for the order in which they are added up
        rng = np.random.default_rng(seed)
        column = rng.uniform(size=9)
        shuffled = np.stack([np.zeros(9), *(rng.permutation(column) for _ in range(4))], axis=1)
        assert greedily(1, scored(shuffled)) == (expert_id(0),)
    scores = table_of(np.array([[0.0, 1.0]]), ["t"], ("base", expert_id(3)))
    unknown = replace(same, experts=tuple(LibraryExpert(expert_id(i)) for i in range(5)), scores=scores)
    assert greedily(2, unknown) == (expert_id(0), expert_id(3))


def grouped(num_groups: int, seed: int) -> FitData:
    """Groups of experts around few directions."""
    directions = centres(num_groups, dim=24, seed=seed)
    blocks = {
        expert_id(i): around(around(directions[i % num_groups], 1, 0.5, i)[0], 2 + i % 5, 0.3, 50 + i)
        for i in range(4 * num_groups + 1)
    }
    return library_of(blocks)


@pytest.mark.parametrize("seed", range(5))
def test_cluster_takes_the_medoid_of_each_group(seed: int) -> None:
    num = 5
    data = grouped(num, seed)
    mean = {expert: rows.mean(axis=0, dtype=np.float64) for expert, rows in data.embeddings.items()}
    points = {expert: row / np.linalg.norm(row) for expert, row in mean.items()}
    expected = []
    for group in range(num):
        own = [expert for expert in points if int(expert[7:10]) % num == group]
        expected.append(min(own, key=lambda e: sum(((points[e] - points[other]) ** 2).sum() for other in own)))
    config = SubsetConfig(method="cluster", size=num)
    assert select(config, data) == tuple(sorted(expected))
    assert select(config, replace(data, experts=tuple(reversed(data.experts)))) == tuple(sorted(expected))


def test_cluster_ignores_how_alike_an_experts_examples_are() -> None:
    """Means of loose examples are short; the direction counts."""
    axes = np.eye(8)
    blocks = {expert_id(n): unit(axes[[0]] + side * axes[1]) for n, side in enumerate((0.3, -0.3))}
    for number in (2, 3):
        for loose in range(3):
            rows = unit(0.1 * axes[number] + [[1], [-1]] * axes[4 + loose])
            blocks[expert_id(10 * number + loose)] = rows
    chosen = select(SubsetConfig(method="cluster", size=3), library_of(blocks))
    assert [int(expert[7:10]) // 10 for expert in chosen] == [0, 2, 3]


def test_cluster_leaves_out_experts_without_examples_and_doubles() -> None:
    row = centres(2, 8)
    blocks = {expert_id(0): row[:1], expert_id(1): row[:1], expert_id(2): np.zeros((0, 8)), expert_id(3): row[1:]}
    for size in (2, 3):
        assert select(SubsetConfig(method="cluster", size=size), library_of(blocks)) == (expert_id(0), expert_id(3))


def test_what_is_missing_is_named() -> None:
    data = clustered(4)
    nothing = replace(data, scores=table_of(np.zeros((0, 5)), []))
    for lacking in (data, nothing):
        with pytest.raises(NotFittable, match="no table of scores") as caught:
            greedily(2, lacking)
        assert caught.value.need == "scores"
    with pytest.raises(NotFittable, match="no expert has an example prompt") as caught:
        select(SubsetConfig(method="cluster", size=2), scored(np.zeros((2, 5))))
    assert caught.value.need == "examples"


@pytest.mark.parametrize("method", ["cluster", "greedy"])
def test_a_small_library_is_kept_whole(method: str) -> None:
    config = SubsetConfig.model_validate({"method": method, "size": 3})
    assert select(config, clustered(3)) == tuple(expert_id(i) for i in range(3))
    assert select(config, clustered(0)) == ()


def test_options_are_checked() -> None:
    for bad in ({"size": 0}, {}, {"size": 2, "method": "random"}, {"size": 2, "speed": 1}):
        with pytest.raises(ValidationError):
            SubsetConfig.model_validate(bad)
    with pytest.raises(ValidationError):
        SubsetConfig(size=2).size = 3  # type: ignore[misc]


def test_restriction_is_a_library_of_the_kept() -> None:
    data = clustered(5)
    rng = np.random.default_rng(0)
    models = tuple(["base", *(expert_id(i) for i in (4, 2, 0, 1, 3))])
    scores = table_of(rng.uniform(size=(6, 6)), list("aabbcc"), models)
    bare = {expert_id(i): data.embeddings[expert_id(i)] * 1 for i in (1, 4)}
    data = replace(data, scores=scores, bare=bare, samples=scores.samples)
    kept = (expert_id(1), expert_id(2))
    part = restrict(data, kept)
    assert tuple(expert.expert_id for expert in part.experts) == kept
    assert set(part.embeddings) == set(kept)
    assert set(part.bare) == {expert_id(1)}
    assert part.samples == data.samples
    assert (part.version, part.embedder) == (data.version, data.embedder)
    assert part.scores is not None
    assert part.scores.models == ("base", expert_id(2), expert_id(1))
    for name in ("scores", "losses", "prompt_losses", "entropies"):
        np.testing.assert_array_equal(getattr(part.scores, name), getattr(scores, name)[:, [0, 2, 4]])
    assert len(data.experts) == 5
    whole = restrict(data, data_ids(data))
    assert (whole.experts, whole.scores and whole.scores.models) == (data.experts, models)
    with pytest.raises(ValueError, match="gone@1"):
        restrict(data, [expert_id(1), "gone@1"])


def test_what_is_chosen_restricts() -> None:
    scores, tasks = random_scores(3)
    data = scored(scores, tasks)
    chosen = greedily(3, data)
    again = restrict(data, chosen)
    assert greedily(3, again) == chosen
    assert value(scores, tasks, greedily(1, again)) == pytest.approx(value(scores, tasks, greedily(1, data)))
