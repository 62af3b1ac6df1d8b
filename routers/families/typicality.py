"""Evidence adjusted for how typical a score is of the expert.

    evidence(e) = score(e) + ½ (score(e) - expected(e))

expected(e) is the mean score of e for its own examples when they are held out, shrunk towards the mean of all experts
with the weight of three examples. Homogeneous examples score high and varied ones low, and out-of-scope prompts score
like the varied ones. So an expert with homogeneous examples needs a closer match.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers.base import Floats

TYPICALITY_WEIGHT = 0.5
"""Share of a score's excess over the expected one that is added to the score as evidence."""

_PRIOR_EXAMPLES = 3.0


def typicality_adjusted(scores: Any, expected: Any) -> Floats:
    """Return the evidence by the module's formula; shapes must broadcast."""
    return np.asarray(scores + TYPICALITY_WEIGHT * (scores - expected), np.float64)


def expected_scores(owner: NDArray[np.int32], scores: Floats, experts: Sequence[str]) -> dict[str, float]:
    """Return the expected score of each expert that has a scored example.

    Args:
        owner: Expert of each held-out example, shape (n,).
        scores: Score of that expert for the example, shape (n,); not finite where it has none.
        experts: Ids of all experts, shape (E,).
    """
    there = np.isfinite(scores)
    counts = np.bincount(owner[there], minlength=len(experts))
    sums = np.bincount(owner[there], scores[there].astype(np.float64), minlength=len(experts))
    scored = np.flatnonzero(counts)
    mean = float((sums[scored] / counts[scored]).mean()) if len(scored) else 0.0
    expected = (sums[scored] + _PRIOR_EXAMPLES * mean) / (counts[scored] + _PRIOR_EXAMPLES)
    return {experts[number]: value for number, value in zip(scored.tolist(), expected.tolist(), strict=True)}


def expected_of(known: Mapping[str, float], experts: Sequence[str]) -> Floats:
    """Return the expected score of each of `experts`, shape (E,); the mean of `known` for one that is not in it."""
    mean = sum(known.values()) / len(known) if known else 0.0
    return np.array([known.get(expert, mean) for expert in experts], np.float64)
