"""From outcomes to figures: means over tasks, intervals, paired tests, curves. Pure functions of numpy arrays.

Means are *macro*: first over a task's prompts, then over tasks, so that a large task does not drown the others.

Intervals are the 2.5th and 97.5th percentile of 2,000 bootstrap samples that draw prompts with replacement within each
task, the same ones for all policies. A policy is tested against another by flipping the signs of the prompts'
differences in score 10,000 times (paired permutation test, two-sided); with many policies, read p with that in mind.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routers.base import BASE
from routers.evaluation.routing_figures import auroc
from server.compare.run import ORACLE, Outcome
from server.engine.recipes import experts_of, parse

Floats = NDArray[np.float64]

NUM_BOOTSTRAP = 2000
NUM_FLIPS = 10_000
NUM_BINS = 10
LEAST_GAIN = 0.02
"""A task counts for the normalised score only if the oracle beats the base by at least this much on it."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What is known of one policy over the tasks that have an expert, unless said otherwise; NaN where nothing is.

    Attributes:
        score: Macro mean of the metric.
        normalised: Mean over tasks of (score - base) / (oracle - base).
        top1, top3: Part of the prompts whose own expert was the best, or among the three best, candidates.
        routed: Part that reached it: ranked first, and not abstained.
        regret: Mean of what the oracle scored more, prompt by prompt, never below zero.
        abstained_in, abstained_out: Part left to the base, of prompts with an expert and of out-of-scope ones.
        auroc: Probability that a prompt with an expert gets a higher confidence than one that is out of scope.
        held_out: Macro score on tasks without an expert, minus the base's there.
        calibration_error: Mean distance of confidence and the part that was ranked right, over ten bins.
        p_value: Of the difference in score to the best policy that is no oracle; 1 for that policy.
        num_experts: Different experts that were used.
    """

    policy: str
    score: Interval
    normalised: Interval
    top1: float
    top3: float
    routed: float
    regret: float
    abstained_in: float
    abstained_out: float
    auroc: float
    held_out: Interval
    calibration_error: float
    p_value: float
    num_experts: int
    tokens_per_prompt: float
    cost_per_thousand: float
    route_ms: float
    embed_ms: float
    ttft_ms: float
    ms_per_token: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that a report shows.

    Attributes:
        by_task: Score of each policy on each task.
        confusion: Of each policy: task → chosen expert (or ``base``) → number of prompts.
        calibration: Of each policy: (mean confidence, part ranked right, number of prompts) of each bin.
        coverage: Of each policy: (part of all prompts answered by experts, part of those ranked right), as the
            threshold of confidence falls.
    """

    figures: tuple[Figures, ...]
    tasks: tuple[str, ...]
    by_task: Mapping[str, Mapping[str, float]]
    confusion: Mapping[str, Mapping[str, Mapping[str, int]]]
    calibration: Mapping[str, tuple[tuple[float, float, int], ...]]
    coverage: Mapping[str, tuple[tuple[float, float], ...]]


def compare_outcomes(outcomes: Sequence[Outcome], seed: int = 0) -> Comparison:
    """All figures; `outcomes` hold the base and the oracle on the same prompts as every policy."""
    by_policy: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_policy[outcome.policy].append(outcome)
    scores = {policy: _Scores.of(found) for policy, found in by_policy.items()}
    rng = np.random.default_rng(seed)
    draws = _Draws.of(scores[BASE].inside, rng)
    outer = _Draws.of(scores[BASE].held_out, rng)
    contenders = [policy for policy in scores if policy != ORACLE]
    best = max(contenders, key=lambda policy: (_macro(scores[policy].inside), policy))
    figures = []
    for policy, found in by_policy.items():
        p_value = permutation_p(scores[policy].inside, scores[best].inside, rng) if policy != best else 1.0
        figures.append(_figures(policy, found, scores, draws, outer, p_value))
    return Comparison(
        tuple(figures),
        tuple(sorted({outcome.task for outcome in outcomes})),
        {policy: _by_task(found) for policy, found in by_policy.items()},
        {policy: _confusion(found) for policy, found in by_policy.items()},
        {policy: calibration_bins(*_ranked_right(found)) for policy, found in by_policy.items()},
        {policy: coverage_curve(*_ranked_right(found)) for policy, found in by_policy.items()},
    )


@dataclass(frozen=True, slots=True)
class _Scores:
    """Scores by task, in order of the prompts: of tasks with an expert, and of scored ones without."""

    inside: Mapping[str, Floats]
    held_out: Mapping[str, Floats]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> _Scores:
        inside: dict[str, list[float]] = defaultdict(list)
        held_out: dict[str, list[float]] = defaultdict(list)
        for outcome in sorted(outcomes, key=lambda each: each.index):
            if outcome.score is not None:
                (inside if outcome.expert else held_out)[outcome.task].append(outcome.score)
        return cls({k: np.array(v) for k, v in inside.items()}, {k: np.array(v) for k, v in held_out.items()})


@dataclass(frozen=True, slots=True)
class _Draws:
    """Bootstrap samples: for each task, prompts drawn with replacement, shape (NUM_BOOTSTRAP, n)."""

    rows: Mapping[str, NDArray[np.int64]]

    @classmethod
    def of(cls, scores: Mapping[str, Floats], rng: np.random.Generator) -> _Draws:
        return cls({t: rng.integers(0, len(v), (NUM_BOOTSTRAP, len(v))) for t, v in sorted(scores.items())})

    def means(self, scores: Mapping[str, Floats]) -> Floats:
        """Mean of each task in each sample, shape (tasks, NUM_BOOTSTRAP)."""
        return np.array([scores[task][rows].mean(axis=1) for task, rows in self.rows.items()])


def _figures(
    policy: str,
    found: Sequence[Outcome],
    scores: Mapping[str, _Scores],
    draws: _Draws,
    outer: _Draws,
    p_value: float,
) -> Figures:
    inside = [outcome for outcome in found if outcome.expert]
    nowhere = [outcome for outcome in found if not outcome.expert and outcome.score is None]
    mine, base, oracle = scores[policy], scores[BASE], scores[ORACLE]
    gains = [mine.held_out[task] - base.held_out[task] for task in outer.rows]
    held_out = {task: gain for task, gain in zip(outer.rows, gains, strict=True)}
    lost = [np.maximum(oracle.inside[task] - mine.inside[task], 0).mean() for task in mine.inside]
    used = {part for outcome in found for part in _experts_in(outcome.recipe)}
    confidence, right = _ranked_right(found)
    return Figures(
        policy=policy,
        score=_interval(_macro(mine.inside), draws.means(mine.inside).mean(axis=0) if draws.rows else np.empty(0)),
        normalised=_normalised(mine.inside, base.inside, oracle.inside, draws),
        top1=_mean([outcome.chosen == outcome.expert for outcome in inside]),
        top3=_mean([outcome.expert in outcome.top for outcome in inside]),
        routed=_mean([outcome.chosen == outcome.expert and not outcome.abstained for outcome in inside]),
        regret=_mean(lost),
        abstained_in=_mean([outcome.abstained for outcome in inside]),
        abstained_out=_mean([outcome.abstained for outcome in nowhere]),
        auroc=auroc([outcome.confidence for outcome in inside], [outcome.confidence for outcome in nowhere]),
        held_out=_interval(_macro(held_out), outer.means(held_out).mean(axis=0) if held_out else np.empty(0)),
        calibration_error=calibration_error(confidence, right),
        p_value=p_value,
        num_experts=len(used),
        tokens_per_prompt=_mean([outcome.prompt_tokens + outcome.completion_tokens for outcome in found]),
        cost_per_thousand=1000 * _mean([outcome.cost for outcome in found]),
        route_ms=_median([outcome.route_ms for outcome in found]),
        embed_ms=_median([outcome.embed_ms for outcome in found]),
        ttft_ms=_median([outcome.ttft_ms for outcome in found]),
        ms_per_token=_median([outcome.ms_per_token for outcome in found if outcome.ms_per_token]),
    )


def permutation_p(ours: Mapping[str, Floats], theirs: Mapping[str, Floats], rng: np.random.Generator) -> float:
    """Two-sided p of the difference in macro mean, by flipping signs of paired differences; NaN without prompts."""
    if not ours:
        return float("nan")
    tasks = sorted(ours)
    weighted = np.concatenate([(ours[t] - theirs[t]) / len(ours[t]) / len(tasks) for t in tasks])
    weighted = weighted[weighted != 0]
    seen = abs(weighted.sum())
    extreme = 0
    for _ in range(NUM_FLIPS // 1000):
        signs = rng.integers(0, 2, (1000, len(weighted))) * 2.0 - 1.0
        extreme += int((np.abs(signs @ weighted) >= seen - 1e-12).sum())
    return (extreme + 1) / (NUM_FLIPS + 1)


def calibration_bins(confidence: Floats, right: Floats) -> tuple[tuple[float, float, int], ...]:
    """(mean confidence, part right, number) of each of ten equal bins of [0, 1] that is not empty."""
    places = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    found = []
    for place in range(NUM_BINS):
        inside = places == place
        if inside.any():
            found.append((float(confidence[inside].mean()), float(right[inside].mean()), int(inside.sum())))
    return tuple(found)


def calibration_error(confidence: Floats, right: Floats) -> float:
    """Expected calibration error: distance of confidence and success in each bin, weighted by its prompts."""
    bins = calibration_bins(confidence, right)
    total = sum(number for _, _, number in bins)
    return sum(abs(mean - part) * number for mean, part, number in bins) / total if total else float("nan")


def coverage_curve(confidence: Floats, right: Floats) -> tuple[tuple[float, float], ...]:
    """(part answered, part of those right) for each threshold of confidence, from strict to none; ties go together."""
    order = np.argsort(-confidence, kind="stable")
    hits = np.cumsum(right[order])
    counts = np.arange(1, len(order) + 1)
    last = np.append(np.diff(confidence[order]) != 0, True)[: len(order)]
    points = [(float(n / len(order)), float(h / n)) for n, h in zip(counts[last], hits[last], strict=True)]
    step = max(1, len(points) // 200)
    return tuple(point for number, point in enumerate(points) if number % step == 0 or number == len(points) - 1)


def _normalised(
    mine: Mapping[str, Floats], base: Mapping[str, Floats], oracle: Mapping[str, Floats], draws: _Draws
) -> Interval:
    tasks = [task for task in draws.rows if oracle[task].mean() - base[task].mean() >= LEAST_GAIN]
    if not tasks:
        return Interval(float("nan"), float("nan"), float("nan"))

    def ratio(of: Mapping[str, Floats]) -> float:
        parts = [(of[t].mean() - base[t].mean()) / (oracle[t].mean() - base[t].mean()) for t in tasks]
        return float(np.mean(parts))

    chosen = [number for number, task in enumerate(draws.rows) if task in tasks]
    ours, low, high = (draws.means(each)[chosen] for each in (mine, base, oracle))
    samples = ((ours - low) / np.maximum(high - low, LEAST_GAIN)).mean(axis=0)
    return _interval(ratio(mine), samples)


def _ranked_right(outcomes: Sequence[Outcome]) -> tuple[Floats, Floats]:
    """Confidence, and whether the first candidate was the prompt's own expert, of every prompt; shape (n,) each."""
    confidence = np.array([outcome.confidence for outcome in outcomes], np.float64)
    right = np.array(
        [outcome.expert is not None and outcome.chosen == outcome.expert for outcome in outcomes], np.float64
    )
    return confidence, right


def _by_task(outcomes: Sequence[Outcome]) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.score is not None:
            found[outcome.task].append(outcome.score)
    return {task: _mean(values) for task, values in sorted(found.items())}


def _confusion(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in outcomes:
        counts[outcome.task][BASE if outcome.abstained else outcome.chosen or BASE] += 1
    return {task: dict(found) for task, found in sorted(counts.items())}


def _experts_in(recipe: str) -> list[str]:
    return list(experts_of(parse(recipe)))


def _interval(value: float, samples: Floats) -> Interval:
    if not len(samples):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(samples, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def _macro(scores: Mapping[str, Floats]) -> float:
    return _mean([float(values.mean()) for values in scores.values()])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else float("nan")
