"""Figures of decisions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from routers.base import Decision, ScoredExpert, WeightedExpert
from routers.evaluation.routing_figures import auroc, evaluate, first_expert


def decision(expert: str | None, confidence: float = 0.5, ranked: str = "a") -> Decision:
    return Decision((WeightedExpert(expert),) if expert else (), confidence, (ScoredExpert(ranked, 1.0),))


def test_counts_each_kind_of_outcome() -> None:
    decisions = [
        decision("a", 0.9),
        decision("b", 0.8, "b"),
        decision(None, 0.3),
        decision(None, 0.1),
        decision("a", 0.5),
    ]
    figures = evaluate(decisions, ["a", "a", "a", None, None])
    assert (figures.num_in_library, figures.num_out_of_scope) == (3, 2)
    assert figures.top1_accuracy == pytest.approx(1 / 3)
    assert figures.ranking_accuracy == pytest.approx(2 / 3)
    assert figures.false_abstention_rate == pytest.approx(1 / 3)
    assert figures.abstention_rate == pytest.approx(1 / 2)
    assert figures.auroc == pytest.approx(5 / 6)
    assert figures.by_expert == {"a": pytest.approx(1 / 3)}


def test_nothing_to_count_is_not_a_number() -> None:
    figures = evaluate([], [])
    assert math.isnan(figures.top1_accuracy)
    assert math.isnan(figures.auroc)


def test_auroc_equals_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(0)
    positives, negatives = rng.integers(0, 8, 50) / 8, rng.integers(0, 6, 70) / 8
    labels = np.repeat([1, 0], [50, 70])
    assert auroc(positives, negatives) == pytest.approx(roc_auc_score(labels, np.concatenate([positives, negatives])))


def test_first_expert_has_the_largest_weight() -> None:
    assert first_expert(Decision((WeightedExpert("a", 0.3), WeightedExpert("b", 0.7)), 1.0)) == "b"
    assert first_expert(Decision((), 0.0)) is None
