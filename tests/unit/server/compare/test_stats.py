"""Figures of a comparison against plain formulas, on random outcomes."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from server.compare.run import BASE, ORACLE, Outcome
from server.compare.stats import (
    Comparison,
    Figures,
    calibration_bins,
    calibration_error,
    compare_outcomes,
    coverage_curve,
    permutation_p,
)

TASKS = {"a": "a@00000000", "b": "b@00000000", "elsewhere": None, "nowhere": None}


def outcomes(seed: int = 0, skill: float = 0.8, num: int = 40) -> list[Outcome]:
    """The base is right one time in ten, experts nine; `good` chooses right with probability `skill`, `bad` seldom."""
    rng = np.random.default_rng(seed)
    found = []
    for task, expert in TASKS.items():
        for index in range(num):
            by_base, by_expert = float(rng.random() < 0.1), float(rng.random() < 0.9)
            for policy, chance in ((BASE, 0.0), (ORACLE, 1.0), ("good", skill), ("bad", 0.2)):
                hit = expert is not None and rng.random() < chance
                other = "b@00000000" if expert == "a@00000000" else "a@00000000"
                chosen = expert if hit else other
                abstained = (
                    policy == BASE or (policy == ORACLE and expert is None) or (expert is None and rng.random() < 0.5)
                )
                score = by_base if abstained or not hit else by_expert
                found.append(
                    Outcome(
                        policy=policy,
                        task=task,
                        index=index,
                        expert=expert,
                        recipe=BASE if abstained else chosen,
                        chosen=None if policy == BASE else chosen,
                        top=() if policy == BASE else (chosen,),
                        abstained=abstained,
                        confidence=float(np.clip(rng.normal(0.7 if hit else 0.4, 0.2), 0, 1)),
                        score=None if task == "nowhere" else score,
                        route_ms=1.0,
                        embed_ms=5.0,
                        prompt_tokens=10,
                        completion_tokens=5,
                        ttft_ms=20.0,
                        ms_per_token=2.0,
                        cost=1e-6 * (policy != BASE),
                        answer="",
                    )
                )
    return found


def of(comparison: Comparison, policy: str) -> Figures:
    return next(each for each in comparison.figures if each.policy == policy)


def test_figures_are_the_plain_formulas() -> None:
    found = outcomes()
    comparison = compare_outcomes(found)
    good = of(comparison, "good")
    mine = [each for each in found if each.policy == "good"]

    def mean(policy: str, task: str) -> float:
        return float(np.mean([e.score for e in found if e.policy == policy and e.task == task]))

    assert good.score.value == pytest.approx((mean("good", "a") + mean("good", "b")) / 2)
    parts = [(mean("good", t) - mean(BASE, t)) / (mean(ORACLE, t) - mean(BASE, t)) for t in "ab"]
    assert good.normalised.value == pytest.approx(np.mean(parts))
    assert good.normalised.low < good.normalised.value < good.normalised.high
    inside = [each for each in mine if each.expert]
    assert good.top1 == pytest.approx(np.mean([each.chosen == each.expert for each in inside]))
    assert good.held_out.value == pytest.approx(mean("good", "elsewhere") - mean(BASE, "elsewhere"))
    nowhere = [each for each in mine if each.task == "nowhere"]
    labels = [1] * len(inside) + [0] * len(nowhere)
    assert good.auroc == pytest.approx(roc_auc_score(labels, [e.confidence for e in inside + nowhere]))
    assert good.abstained_out == pytest.approx(np.mean([each.abstained for each in nowhere]))
    assert (good.num_experts, good.tokens_per_prompt, good.route_ms) == (2, 15, 1)
    assert good.cost_per_thousand == pytest.approx(1e-3)
    assert of(comparison, ORACLE).normalised.value == pytest.approx(1)
    assert of(comparison, BASE).normalised.value == pytest.approx(0)
    assert of(comparison, BASE).held_out.value == 0
    assert sum(sum(row.values()) for row in comparison.confusion["good"].values()) == len(mine)


def test_a_difference_is_told_from_noise() -> None:
    comparison = compare_outcomes(outcomes())
    assert of(comparison, "good").p_value == 1
    assert of(comparison, "bad").p_value < 0.01
    same = compare_outcomes(outcomes(skill=0.2, num=25))
    assert min(of(same, "good").p_value, of(same, "bad").p_value) > 0.01


def test_the_permutation_test_is_exact_on_a_small_case() -> None:
    ours, theirs = {"t": np.ones(8)}, {"t": np.zeros(8)}
    p = permutation_p(ours, theirs, np.random.default_rng(0))
    assert p == pytest.approx(2 / 2**8, abs=0.004)
    assert permutation_p(ours, ours, np.random.default_rng(0)) == 1
    assert math.isnan(permutation_p({}, {}, np.random.default_rng(0)))


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(60):
        interval = of(compare_outcomes(outcomes(seed)), "good").score
        truth = 0.8 * 0.9 + 0.2 * 0.1
        covered += interval.low <= truth <= interval.high
    assert covered >= 50


def test_calibration_and_coverage() -> None:
    confidence = np.array([0.05, 0.95, 0.95, 1.0, 0.45])
    right = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    bins = calibration_bins(confidence, right)
    np.testing.assert_allclose(bins, [(0.05, 0, 1), (0.45, 1, 1), (2.9 / 3, 2 / 3, 3)])
    expected = (0.05 + 0.55 + 3 * (2.9 / 3 - 2 / 3)) / 5
    assert calibration_error(confidence, right) == pytest.approx(expected)
    np.testing.assert_allclose(coverage_curve(confidence, right), [(0.2, 0), (0.6, 2 / 3), (0.8, 0.75), (1, 0.6)])
    assert coverage_curve(np.empty(0), np.empty(0)) == ()
