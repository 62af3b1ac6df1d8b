"""Figures of a router's quality on labelled prompts, computed from its decisions.

A prompt without an expert (out of scope) has the label None; the right decision is then to abstain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routers.base import Decision, Matrix, RouteQuery, Router


@dataclass(frozen=True, slots=True)
class RoutingFigures:
    """Figures over a set of labelled prompts. Rates are in [0, 1], NaN if there was no prompt to count.

    Attributes:
        num_in_library: Number of prompts with an expert.
        num_out_of_scope: Number of prompts without an expert.
        top1_accuracy: Share of the prompts with an expert that were routed to it; abstaining counts as wrong.
        ranking_accuracy: Share of the prompts with an expert that ranked it first, even if the router abstained.
        false_abstention_rate: Share of the prompts with an expert on which the router abstained.
        abstention_rate: Share of the prompts without an expert on which the router abstained.
        auroc: Probability that a prompt with an expert gets a higher confidence than one without.
        by_expert: Top-1 accuracy by expert.
    """

    num_in_library: int
    num_out_of_scope: int
    top1_accuracy: float
    ranking_accuracy: float
    false_abstention_rate: float
    abstention_rate: float
    auroc: float
    by_expert: Mapping[str, float]


def decide(router: Router, prompts: Sequence[str], embeddings: Matrix) -> list[Decision]:
    """Return the decision on each prompt; `embeddings` (n, dim) are in the order of `prompts`."""
    pairs = zip(prompts, embeddings, strict=True)
    return [router.route(RouteQuery(text=prompt, embedding=row)) for prompt, row in pairs]


def evaluate(decisions: Sequence[Decision], labels: Sequence[str | None]) -> RoutingFigures:
    """Compute the figures of decisions whose right experts are `labels`."""
    pairs = list(zip(decisions, labels, strict=True))
    inside = [(decision, label) for decision, label in pairs if label is not None]
    outside = [decision for decision, label in pairs if label is None]
    hits = [first_expert(decision) == label for decision, label in inside]
    ranked = [bool(d.candidates) and d.candidates[0].expert_id == label for d, label in inside]
    experts = sorted({label for _, label in inside})
    return RoutingFigures(
        num_in_library=len(inside),
        num_out_of_scope=len(outside),
        top1_accuracy=_mean(hits),
        ranking_accuracy=_mean(ranked),
        false_abstention_rate=_mean(decision.abstained for decision, _ in inside),
        abstention_rate=_mean(decision.abstained for decision in outside),
        auroc=auroc([decision.confidence for decision, _ in inside], [decision.confidence for decision in outside]),
        by_expert={e: _mean(h for h, (_, label) in zip(hits, inside, strict=True) if label == e) for e in experts},
    )


def first_expert(decision: Decision) -> str | None:
    """Return the expert with the largest weight, or None if the router abstained."""
    return max(decision.experts, key=lambda chosen: chosen.weight).expert_id if decision.experts else None


def auroc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Return the area under the ROC curve, where ties count half (Mann-Whitney U / (n m)); NaN if either is empty."""
    if not len(positives) or not len(negatives):
        return float("nan")
    scores: NDArray[np.float64] = np.sort(np.asarray(negatives, np.float64))
    wanted = np.asarray(positives, np.float64)
    below = np.searchsorted(scores, wanted, side="left") + np.searchsorted(scores, wanted, side="right")
    return float(below.sum() / 2 / len(positives) / len(negatives))


def _mean(values: Iterable[bool]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else float("nan")
