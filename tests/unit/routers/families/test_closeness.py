"""Directions of experts' examples, against numpy's singular value decomposition in float64."""

from __future__ import annotations

import numpy as np
import pytest

from routers.base import FitData, LibraryExpert, RouteQuery
from routers.evaluation.routing_figures import auroc
from routers.families.closeness import MAX_DIRECTIONS, closeness, directions_of
from routers.library.examples import Examples, examples_of
from routers.maths.unit_rows import to_unit
from routers.methods.centroid import CentroidConfig, CentroidRouter
from routers.methods.classifier import ClassifierConfig, ClassifierRouter


def library(*rows: np.ndarray) -> FitData:
    experts = tuple(
        LibraryExpert(f"e{number}@00000000", examples=tuple(f"{number} {row}" for row in range(len(own))))
        for number, own in enumerate(rows)
    )
    return FitData(experts, {e.expert_id: own for e, own in zip(experts, rows, strict=True)}, "m", "v")


def near(direction: int, num: int, rng: np.random.Generator, *, dim: int = 32, spread: float = 0.3) -> np.ndarray:
    return np.asarray(to_unit(np.eye(dim)[direction] + spread * rng.normal(size=(num, dim)) / dim**0.5), np.float32)


def examples(*rows: np.ndarray) -> Examples:
    return examples_of(library(*rows))


@pytest.mark.parametrize(("num", "dim"), [(40, 16), (12, 64), (3, 64), (1, 8)])
def test_closeness_is_the_length_of_the_part_in_the_first_singular_vectors(
    num: int, dim: int, rng: np.random.Generator
) -> None:
    own, prompts = (np.asarray(to_unit(rng.normal(size=(n, dim))), np.float32) for n in (num, 20))
    found = directions_of(examples(own, prompts))
    assert found.shape == (2, MAX_DIRECTIONS, dim)
    _, _, vectors = np.linalg.svd(own.astype(np.float64), full_matrices=False)
    expected = np.linalg.norm(prompts @ vectors[:MAX_DIRECTIONS].T, axis=1)
    of_first = np.broadcast_to(found[0], (20, MAX_DIRECTIONS, dim))
    np.testing.assert_allclose(closeness(of_first, prompts), expected, atol=3e-3)  # they are kept in float16


def test_experts_without_examples_and_examples_that_are_all_alike() -> None:
    alike = np.repeat(np.eye(6, dtype=np.float32)[:1], 5, axis=0)
    found = directions_of(examples(alike, np.zeros((0, 6), np.float32), np.zeros((2, 6), np.float32)))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(closeness(found[[0, 1, 2]], np.repeat(alike[:1], 3, axis=0)), [1, 0, 0], atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "config"), [(CentroidRouter, CentroidConfig()), (ClassifierRouter, ClassifierConfig())], ids=str
)
def test_prompts_as_near_to_the_mean_but_in_other_directions_are_told_apart(
    kind: type, config: object, rng: np.random.Generator
) -> None:
    axes = np.eye(32)

    def around(expert: int, first: int, num: int) -> np.ndarray:
        return np.asarray(to_unit(axes[expert] + rng.normal(size=(num, 4)) @ axes[first : first + 4] / 2), np.float32)

    data = library(*(around(expert, 4 + 4 * expert, 60) for expert in range(3)))
    router = kind.load(config, kind.fit(config, data, lambda done, total: None))

    def evidence(first: int) -> list[float]:
        decisions = [router.route(RouteQuery("x", row)) for row in around(1, first, 300)]
        assert {decision.candidates[0].expert_id for decision in decisions} == {"e1@00000000"}
        return [float(decision.reason.split()[1]) for decision in decisions]

    assert auroc(evidence(8), evidence(20)) > 0.7  # by their scores alone: 0.5


def test_evidence_is_the_mean_of_score_and_closeness_adjusted_for_typicality(rng: np.random.Generator) -> None:
    data = library(near(0, 30, rng), near(1, 30, rng))
    artefact = CentroidRouter.fit(CentroidConfig(), data, lambda done, total: None)
    router = CentroidRouter.load(CentroidConfig(), artefact)
    (prompt,) = near(1, 1, rng)
    score = float(prompt @ artefact.arrays["means"][1])
    close = float(np.linalg.norm(artefact.arrays["directions"][1].astype(np.float32) @ prompt))
    usual = artefact.data["usual"]["e1@00000000"]
    evidence = (score + close) / 2
    evidence += 0.5 * (evidence - usual)
    assert f"Evidence {evidence:.3f} " in router.route(RouteQuery("x", prompt)).reason
